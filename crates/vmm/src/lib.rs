//! Drivers of the programs that guests run in.

pub mod firecracker;
pub mod copied_memory;
pub mod kernel_format;
pub mod last_words;
pub mod process;
pub mod qemu;
mod program_output;
pub mod serial_line;
pub mod taps;
pub mod namespace;
pub mod vmm_process;

/// The blob of a snapshot that holds the device state of its guest.
pub const DEVICE_STATE: &str = "device-state";
