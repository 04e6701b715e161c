//! The driver of QEMU against the real one: its own guest judges every page of its memory.

mod killed;
mod linux;
mod lives;
mod machines;
mod support;
mod taken_over;
