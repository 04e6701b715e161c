//! Debian's kernel with our init under QEMU's own instructions, in both machines, with a disk.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use rekindle_guest::machine::linux_command_line;
use rekindle_testkit::linux::kernel_or_skip;
use rekindle_testkit::skip::skipped;

use crate::console::{Console, QEMU, have_qemu};

const TIER: &str = "the Linux guest";

#[test]
fn the_linux_guest_answers_judges_its_memory_and_keeps_files_in_a_microvm() {
    converse("microvm", "virtio-blk-device,drive=disk");
}

#[test]
fn the_linux_guest_answers_judges_its_memory_and_keeps_files_in_a_pc() {
    converse("q35", "virtio-blk-pci,drive=disk");
}

fn converse(machine: &str, device: &str) {
    if !have_qemu() {
        return skipped(TIER, &format!("there is no {QEMU}"));
    }
    let Some(kernel) = kernel_or_skip(TIER) else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let disk = directory.path().join("disk");
    if !make_file_system(&disk) {
        return skipped(TIER, "there is no mkfs.ext4");
    }
    let initrd = directory.path().join("initrd");
    fs::write(&initrd, kernel.initrd()).expect("room for a file system");
    let drive = format!("file={},format=raw,if=none,id=disk", disk.display());
    let command_line = linux_command_line();
    let initrd = initrd.to_str().expect("a path of letters");
    let more = ["-initrd", initrd, "-append", &command_line, "-drive", &drive, "-device", device];
    let mut guest = Console::start(machine, "128M", &kernel.image, &more);
    assert!(guest.line_with("rekindle linux guest, ").ends_with(" pages, /dev/vda at /disk"));
    judge_memory(&mut guest);
    keep_files(&mut guest);
    know_the_time(&mut guest);
    assert_eq!(guest.ask("end"), "ending");
    guest.wait();
    let checked = file_system_tool("e2fsck").arg("-fn").arg(&disk).output();
    let checked = checked.expect("it is where mkfs.ext4 is");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

fn make_file_system(disk: &Path) -> bool {
    File::create(disk).and_then(|file| file.set_len(64 << 20)).expect("a sparse file");
    let made = file_system_tool("mkfs.ext4").arg("-q").arg(disk).stdin(Stdio::null()).status();
    made.is_ok_and(|status| status.success())
}

/// A program of e2fsprogs, which users other than root have to look for.
fn file_system_tool(name: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("env");
    command.arg(format!("PATH={path}:/usr/sbin:/sbin")).arg(name);
    command
}

fn judge_memory(guest: &mut Console) {
    assert_eq!(guest.ask("verify"), "verified 0 0");
    assert_eq!(guest.ask("fill 7 1000"), "error: no memory for that");
    assert_eq!(guest.ask("fill 7 16"), "filled 4096");
    assert_eq!(guest.ask("dirty 9 10"), "dirtied 435", "which pages follows from the seed");
    assert_eq!(guest.ask("verify"), "verified 4096 0");
    assert_eq!(guest.ask("touch 100"), "touched 4096");
    assert_eq!(guest.ask("tick"), "tick 1");
    assert_eq!(guest.ask("count on"), "counting");
    assert_eq!(guest.line(), "tick 2");
    guest.say("count off");
    guest.line_with("not counting");
}

fn keep_files(guest: &mut Console) {
    assert_eq!(guest.ask("write a hello world"), "written 11");
    assert_eq!(guest.ask("read a"), "read hello world");
    assert_eq!(guest.ask("read b"), "error: /disk/b: error 2");
    assert_eq!(guest.ask("store c 5 4"), "stored 1024");
    assert_eq!(guest.ask("forget"), "forgot");
    assert_eq!(guest.ask("check c 5"), "checked 1024 0");
    assert_eq!(guest.ask("check c 6"), "checked 1024 1024", "it would be seen if they were wrong");
    assert_eq!(guest.ask("sync"), "synced");
}

fn know_the_time(guest: &mut Console) {
    let time = guest.ask("time");
    let words: Vec<&str> = time.split(' ').collect();
    let ["time", now, "up", up] = words[..] else { unreachable!("{time}") };
    let (now, up): (f64, f64) = (now.parse().expect("seconds"), up.parse().expect("seconds"));
    assert!(now > 1.7e9 && up > 0.0, "{time}: the machine's clock is the host's");
    let (random, other) = (guest.ask("random"), guest.ask("random"));
    assert!(random.len() == "random ".len() + 32 && random != other, "{random}, {other}");
}
