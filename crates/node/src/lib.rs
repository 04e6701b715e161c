//! The program `rekindle`.

pub mod guest;
pub mod vmm;
