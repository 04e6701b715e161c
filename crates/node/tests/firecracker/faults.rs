//! The hand-over and the faults of a load, in the orders in which they come.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;

use rekindle_engine::serve::{EndReason, ServeStatus};
use rekindle_kernel::wakeup::wait_readable;
use rekindle_vmm::firecracker::{CallError, DriveSource, FirecrackerError, FirecrackerGuest};

use crate::peer::Step;
use crate::support::{LIMIT, Node, let_go_on, pipe};

#[test]
fn faults_come_before_the_load_is_answered_and_are_served_meanwhile() {
    let node = Node::start();
    let snapshot = node.pause(node.filled(&node.spec(8)));
    let gate = node.file("gate");
    pipe(&gate);
    node.set(|settings| settings.stands_at = Some((Step::LoadTouched, gate.clone())));
    let mut vm = node.begin_resume(&snapshot, &node.spec_of(&snapshot)).expect("it begins");
    // It has read memory, or is about to: without a server it would never come to its gate.
    let_go_on(&gate);
    assert!(vm.server.as_ref().expect("it is served").stats().faults > 0);
    vm.guest.finish_load().expect("it is loaded");
    assert_eq!(vm.verify(), 2048);
    node.end(vm);
}

#[test]
fn a_slow_answer_is_waited_for_and_the_guest_is_served_meanwhile() {
    let node = Node::start();
    let snapshot = node.pause(node.filled(&node.spec(8)));
    let mut vm = node.resume(&snapshot);
    let gate = node.file("gate");
    pipe(&gate);
    node.set(|settings| settings.stands_at = Some((Step::CreateState, gate.clone())));
    let opened = std::thread::spawn(move || let_go_on(&gate));
    vm.say("dirty 3 30");
    let snapshot = node.pause(vm);
    opened.join().expect("it stood there");
    node.set(|_| {});
    node.assert_resumes(&snapshot);
}

#[test]
fn the_socket_stays_open_as_long_as_the_vmm_lives_and_no_longer() {
    let node = Node::start();
    let snapshot = node.pause(node.filled(&node.spec(8)));
    let mut vm = node.resume(&snapshot);
    vm.verify();
    let server = vm.server.as_ref().expect("it is served");
    assert_eq!(server.status(), ServeStatus::Running);
    vm.guest.process.kill().expect("ends");
    let server = vm.server.as_ref().expect("it is served");
    let ended = server.wait_status(LIMIT, |status| matches!(status, ServeStatus::Ended { .. }));
    let gone = [EndReason::HungUp, EndReason::MemoryGone].map(|why| ServeStatus::Ended { why });
    assert!(gone.contains(&ended), "{ended:?}");
    node.end(vm);
}

#[test]
fn a_load_that_fails_before_the_hand_over_says_why() {
    let node = Node::start();
    let snapshot = node.pause(node.filled(&node.spec(8)));
    // A resume's parts without the state.
    let socket = node.file("h.sock");
    let listener = UnixListener::bind(&socket).expect("the socket is new");
    let disks = DriveSource { snapshot: &snapshot, fetcher: node.engine.fetcher() };
    let spec = node.spec_of(&snapshot);
    let resumed = FirecrackerGuest::resume(
        &node.keeper,
        &node.next_key(),
        &spec,
        &node.places,
        disks,
        (&socket, b"no state of Firecracker"),
    );
    let mut guest = resumed.expect("the process starts");
    let loading = guest.loading().expect("it was begun");
    let [answered, connected] =
        wait_readable([Some(loading), Some(listener.as_fd())], Some(LIMIT)).expect("poll");
    assert!(answered.readable && !connected.readable);
    let error = guest.finish_load().expect_err("that is no state");
    let FirecrackerError::Call(CallError::Refused { status: 400, fault, .. }) = &error else {
        panic!("{error}")
    };
    assert!(fault.contains("Failed to load snapshot state"), "{fault}");
    assert!(guest.process.ends_within(LIMIT), "a process that could not load ends");
}

#[test]
fn a_load_is_only_of_a_fresh_process() {
    let node = Node::start();
    let vm = node.run(&node.spec(8));
    let stream =
        std::os::unix::net::UnixStream::connect(vm.guest.facts().directory.api()).expect("it listens");
    let body = r#"{"snapshot_path":"/proc/self/fd/31","mem_backend":{"backend_type":"Uffd","backend_path":"/none"}}"#;
    let answer = crate::requests::raw(&stream, "PUT /snapshot/load", body);
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("not allowed after configuring boot-specific resources"), "{answer}");
}
