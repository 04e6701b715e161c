//! Daemons that are ended and replaced on purpose.

use rekindle_api::client::ClientError;
use rekindle_api::types::{SandboxState, SnapshotState};
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
fn a_client_that_goes_on_behind_an_event_of_an_earlier_daemon_is_told_that_it_may_have_missed_some() {
    let mut node = Node::start();
    let last = |node: &Node| {
        let mut events = node.client.events(Some(0)).expect("they are streamed");
        events.next().expect("there is one").expect("the first that is known").id
    };
    let had = last(&node);
    node.crash();
    let mut events = node.client.events(Some(had)).expect("they are streamed");
    let told = events.next().expect("it is told").expect_err("not what comes after");
    assert!(matches!(told, ClientError::EventsLost { .. }), "{told}");
    assert!(events.next().is_none());
    assert!(last(&node) > had, "those that are known begin anew");
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
