//! The guest's serial console, and Firecracker's own words, which are no part of it.

use std::time::Instant;

use rekindle_vmm::firecracker::FirecrackerError;

use crate::peer::Step;
use crate::support::{LIMIT, Node};

#[test]
fn what_is_typed_reaches_a_guest_after_each_resume_although_only_a_pipe_is_read() {
    let node = Node::start();
    let mut vm = node.run(&node.spec(8));
    assert_eq!(vm.say("tick"), "tick 1");
    let mut snapshot = node.pause(vm);
    for tick in 2..4 {
        let mut vm = node.resume(&snapshot);
        assert_eq!(vm.say("tick"), format!("tick {tick}"));
        snapshot = node.pause(vm);
    }
}

#[test]
fn what_a_guest_prints_while_nobody_reads_is_there_later() {
    const BYTES: u64 = 60_000;
    let node = Node::start();
    let mut vm = node.run(&node.spec(8));
    vm.say("tick");
    vm.console.begin(&format!("print {BYTES}"));
    let (begun, printed) =
        (Instant::now(), vm.guest.serial().try_clone().expect("a descriptor is free").output);
    while rustix::io::ioctl_fionread(&printed).expect("a pipe says how full it is") < BYTES {
        assert!(begun.elapsed() < LIMIT, "what was printed is lost");
        std::thread::yield_now();
    }
    assert_eq!(vm.console.answer(), "x".repeat(usize::try_from(BYTES).expect("64 bits")));
    node.end(vm);
}

#[test]
fn what_firecracker_logs_is_not_in_the_console_and_is_told_where_something_fails() {
    let node = Node::start();
    let mut vm = node.filled(&node.spec(8));
    vm.console.begin("tick");
    assert_eq!(vm.console.line(), "guest: tick 1\n", "the log is elsewhere");
    let log = node.file("firecracker-vm-0.log");
    assert!(std::fs::read_to_string(&log).expect("it is there").contains("Running Firecracker"));
    let snapshot = node.pause(vm);
    assert!(!log.exists(), "it goes with its VM");
    node.set(|settings| settings.dies_at = Some(Step::LoadTouched));
    let error = node.try_resume(&snapshot, &node.spec_of(&snapshot)).map(drop).expect_err("it died");
    assert!(matches!(error, FirecrackerError::Logged { .. }), "{error}");
    assert!(error.to_string().contains("about to die at LoadTouched"), "{error}");
}
