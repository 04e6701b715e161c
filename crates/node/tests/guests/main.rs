//! The guests that the program carries, started in an unmodified QEMU.

mod console;
mod linux;
mod tiny;
