//! The tiny guest under QEMU's own instructions, in both machines.

use std::fs;

use rekindle_guest::machine::tiny_kernel;
use rekindle_testkit::skip::skipped;

use crate::console::{Console, QEMU, have_qemu, number};

#[test]
fn the_tiny_guest_answers_and_judges_its_memory_in_a_microvm() {
    converse("microvm,acpi=off");
}

#[test]
fn the_tiny_guest_answers_and_judges_its_memory_in_a_pc() {
    converse("q35");
}

fn converse(machine: &str) {
    if !have_qemu() {
        return skipped("the tiny guest", &format!("there is no {QEMU}"));
    }
    let directory = tempfile::tempdir().expect("a directory");
    let kernel = directory.path().join("tiny.elf");
    fs::write(&kernel, tiny_kernel()).expect("room for a kernel");
    let mut guest = Console::start(machine, "16M", &kernel, &[]);
    let greeting = guest.line_with("rekindle tiny guest, ");
    let words = greeting.split("guest, ").nth(1).expect("said just now");
    let pages: u32 = words.strip_suffix(" pages").expect("pages").parse().expect("a number");
    assert!((3500..4096).contains(&pages), "{pages} pages of 16 MiB");
    assert_eq!(guest.ask("verify"), "verified 0 0");
    assert_eq!(guest.ask("fill 7"), format!("filled {pages}"));
    assert_eq!(guest.ask("verify"), format!("verified {pages} 0"));
    let dirtied = number(&guest.ask("dirty 8 10"));
    assert!((pages / 20..pages / 5).contains(&dirtied), "{dirtied} of {pages} pages are about a tenth");
    assert_eq!(guest.ask("verify"), format!("verified {pages} 0"));
    let touched = number(&guest.ask("touch 50"));
    assert!((pages / 3..pages).contains(&touched), "{touched} of {pages} pages are about a half");
    assert_eq!(guest.ask("tick"), "tick 1");
    assert_eq!(guest.ask("count on"), "counting");
    assert_eq!(guest.line(), "tick 2");
    assert_eq!(guest.line(), "tick 3");
    guest.say("count off");
    let last = guest.line_with("not counting");
    assert_eq!(last, "not counting");
    assert_eq!(guest.ask("echo a  b"), "echo a  b");
    assert_eq!(guest.ask("nonsense 1"), "error: unknown command nonsense");
    let long = "x".repeat(1000);
    assert!(guest.ask(&long).starts_with("error: unknown command xxx"), "a line too long is cut");
}
