//! Guests that the program carries: a tiny one without an operating system, and the init of a Linux one.
//!
//! Both answer lines on their serial console with lines, and judge their own memory. A command is answered by one line:
//! `fill SEED` (`filled PAGES`), `verify` (`verified PAGES WRONG`, and where any are wrong ` first PAGE`),
//! `dirty SEED PERCENT` (`dirtied PAGES`), `touch PERCENT` (`touched PAGES`), `tick` (`tick N`), `count on`,
//! `count every TURNS`, `count off` (`counting`, `not counting`; from time to time, about every 50 ms or TURNS times 10
//! ms, there is a `tick N` between the answers), `echo TEXT` (`echo TEXT`). A word that is no command, or a command
//! that fails, is answered by a line that starts with `error: `. Nothing typed is echoed; lines end in CR LF.
//!
//! The Linux guest takes the memory to fill at the first `fill SEED MIB`, and has a disk at `/disk` if it finds one:
//! `write NAME TEXT` (`written BYTES`, when it is on the disk), `read NAME` (`read TEXT`), `store NAME SEED MIB`
//! (`stored PAGES`), `check NAME SEED` (`checked PAGES WRONG`), `forget` (`forgot`: the next reads are of the disk),
//! `sync` (`synced`), `time` (`time SECONDS up SECONDS`, with milliseconds), `clock` (`clock ok`: set by the hardware
//! clock), `network A.B.C.D` (`network ok`), `send A.B.C.D PORT TEXT` (`heard TEXT`: what came back, over UDP), `random`
//! (`random` and 32 digits), `channel` (`channel open`: what comes over the machine's channel goes back there),
//! `end` (`ending`, then the machine is reset).

mod initrd;
mod kernel_modules;
mod linux_kernel;
mod console_lines;

pub use console_lines::{ConsoleLines, GuestRefuses};
pub use initrd::{initrd, initrd_of};
pub use linux_kernel::{LinuxKernel, LinuxKernelError};

/// The tiny guest: a 64-bit ELF file of a few KB with a note for PVH's direct entry, and an entry for Linux's 64-bit boot
/// protocol. QEMU and Firecracker boot it.
///
/// It prints `rekindle tiny guest, N pages` when it is up; `fill SEED` writes these pages.
pub fn tiny_kernel() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/tiny.elf"))
}

/// The first process of the Linux guest, a static 64-bit program: see [`initrd()`].
///
/// It prints `rekindle linux guest, N pages, ` and `no disk` or `/dev/vda at /disk` when it is up; N pages are free.
pub fn linux_init() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/init"))
}

/// Kernel command line of the Linux guest, for a serial console and a quick start.
///
/// A microvm has no clock to measure the speed of the processor's counter with, so the command line has that speed.
pub fn linux_command_line() -> String {
    let khz = rekindle_kernel::tsc_khz();
    format!("console=ttyS0 reboot=t random.trust_cpu=on no_timer_check tsc=reliable tsc_early_khz={khz}")
}
