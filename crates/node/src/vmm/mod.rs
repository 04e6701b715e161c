//! Drivers of the programs guests run in.

pub mod firecracker;
pub mod process;
pub mod vmm_process;
