//! Drivers of the programs guests run in.

pub mod process;
