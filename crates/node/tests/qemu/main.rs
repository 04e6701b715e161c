//! The driver of QEMU against the real one: its own guest judges every page of its memory.

mod lives;
mod support;
