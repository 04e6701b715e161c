//! Daemons that are ended and replaced on purpose.

use rekindle::api::types::{SandboxState, SnapshotState};
use rekindle_testkit::black_box::Role;

use crate::support::{Node, rewrite};

#[test]
fn guests_run_on_while_their_daemon_is_ended_and_started_again() {
    let mut node = Node::start();
    node.filled("a", 1);
    node.pause("a", "base");
    let before = node.resume("a").pid;
    let ticked = node.told("a").tick(16).expect("ticks").count;
    node.terminate();
    let guests = |node: &Node| {
        let processes = node.place.processes().expect("processes are listed");
        processes.iter().filter(|process| process.role == Role::Guest).count()
    };
    assert_eq!(guests(&node), 1);
    node.start_again();
    assert_eq!(node.client.sandbox("a").expect("it is listed").pid, before);
    assert_eq!(node.told("a").tick(16).expect("ticks").count, ticked + 1);
    node.assert_verified("a");
}

#[test]
fn a_newer_program_takes_over_by_a_restart() {
    let mut node = Node::start();
    node.filled("runs", 1);
    node.filled("paused", 2);
    node.pause("runs", "runs-base");
    node.resume("runs");
    node.pause("paused", "paused-base");
    node.terminate();
    node.place.upgrade().expect("another program is put in place");
    node.start_again();
    node.assert_verified("runs");
    node.told("runs").rewrite(rewrite(3)).expect("rewrites");
    node.pause("runs", "runs-after");
    node.wait("runs-after", SnapshotState::Published);
    for name in ["runs", "paused"] {
        let sandbox = node.resume(name);
        assert_eq!(sandbox.state, SandboxState::Running);
        node.assert_verified(name);
    }
}

#[test]
fn a_second_daemon_on_the_same_directories_is_refused_and_harms_nothing() {
    let node = Node::start();
    node.filled("a", 1);
    let second = node.place.command(["serve"]).output().expect("the program runs");
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("catalog") || said.contains("another"), "it says why: {said}");
    node.assert_verified("a");
}
