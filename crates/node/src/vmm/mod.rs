//! Drivers of the programs guests run in.

pub mod firecracker;
pub mod guests;
pub mod process;
pub mod qemu;
pub mod vmm_process;
