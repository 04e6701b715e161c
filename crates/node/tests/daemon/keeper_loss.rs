//! Keepers that die, with their daemon and without it.

use rekindle::api::problem::Code;
use rekindle::api::types::{ResumeSandbox, SandboxState, SnapshotState};
use rekindle_testkit::black_box::Role;

use crate::support::{Node, Outage};

fn kill_keeper(node: &Node) {
    let pid = node.place.keeper().expect("a keeper runs").identity().pid;
    node.place.kill(pid).expect("it can be killed");
}

#[test]
fn when_the_keeper_dies_with_the_daemon_what_was_saved_is_there_and_the_rest_is_lost_by_name() {
    let mut node = Node::start();
    node.filled("published", 1);
    node.filled("sealed", 2);
    node.filled("running", 3);
    node.pause("published", "published");
    node.wait("published", SnapshotState::Published);
    let outage = Outage::of(&node.place.store_directory());
    node.pause("sealed", "sealed");
    node.wait("sealed", SnapshotState::Sealed);
    node.kill();
    kill_keeper(&node);
    node.start_again();
    outage.end();
    let running = node.client.sandbox("running").expect("it is listed");
    assert!(matches!(running.state, SandboxState::Lost | SandboxState::Stopped), "{running:?}");
    assert!(running.reason.is_some(), "it says why: {running:?}");
    for name in ["published", "sealed"] {
        node.resume(name);
        node.assert_verified(name);
    }
    node.eventually("guests of the old keeper ending", || {
        let processes = node.place.processes().expect("processes are listed");
        processes.iter().filter(|process| process.role == Role::Guest).count() == 2
    });
}

#[test]
fn a_snapshot_lost_with_the_keeper_is_listed_with_its_reason_until_it_is_deleted() {
    let mut node = Node::start();
    // Whether a snapshot is sealed before both are killed is up to the machine: with enough of them one is not.
    for number in 0..20 {
        let name = format!("sandbox-{number}");
        node.filled(&name, number);
        node.pause(&name, &format!("snapshot-{number}"));
    }
    node.kill();
    kill_keeper(&node);
    node.start_again();
    for number in 0..20 {
        let (sandbox, snapshot) = (format!("sandbox-{number}"), format!("snapshot-{number}"));
        let shown = node.client.snapshot(&snapshot).expect("it is listed");
        if shown.state != SnapshotState::Lost {
            node.resume(&sandbox);
            node.assert_verified(&sandbox);
            continue;
        }
        assert!(shown.reason.is_some(), "{shown:?}");
        let refused = node.client.resume_sandbox(&sandbox, &ResumeSandbox::default());
        assert_eq!(refused.expect_err("there is nothing to resume").code(), Some(Code::Lost));
        node.client.remove_sandbox(&sandbox).expect("it is removed");
        node.client.delete_snapshot(&snapshot).expect("it is deleted");
        assert_eq!(node.client.snapshot(&snapshot).expect_err("it is deleted").code(), Some(Code::NotFound));
    }
}

#[test]
fn a_keeper_that_dies_alone_is_replaced_and_the_next_crash_loses_nothing() {
    let mut node = Node::start();
    node.filled("runs", 1);
    node.filled("paused", 2);
    node.pause("runs", "base");
    node.resume("runs");
    node.pause("paused", "paused");
    kill_keeper(&node);
    node.eventually("another keeper holding everything", || {
        let Ok(keeper) = node.place.keeper() else { return false };
        let held = keeper.list().unwrap_or_default();
        held.iter().any(|entry| entry.key.starts_with("guest/") && entry.names.len() >= 4)
    });
    node.crash();
    node.assert_verified("runs");
    node.resume("paused");
    node.assert_verified("paused");
}
