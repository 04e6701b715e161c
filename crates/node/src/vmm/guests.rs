//! Guests that the program carries: a tiny one without an operating system, and the init of a Linux one.
//!
//! Both answer lines on their serial console with lines, and judge their own memory. A command is answered by one line
//! that starts with its own word: `fill` (`filled PAGES`), `verify` (`verified PAGES WRONG`, and where any are wrong
//! ` first PAGE`), `dirty SEED PERCENT` (`dirtied PAGES`), `touch PERCENT` (`touched PAGES`), `tick` (`tick N`),
//! `count on`, `count off`, `count every TURNS` (`counting`, `not counting`, and `tick N` from time to time between
//! the answers), `echo TEXT` (`echo TEXT`). What is no command is answered by a line that starts with `error: `.

/// The tiny guest: a 32-bit ELF program with a multiboot word and a note for PVH's direct entry, a few KB.
///
/// It says `rekindle tiny guest, N pages` when it is up; `fill SEED` writes these pages.
pub fn tiny_kernel() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/tiny.elf"))
}
