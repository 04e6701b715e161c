//! Deleted snapshots that are brought back.

use rekindle_api::problem::Code;
use rekindle_api::types::{Collect, SnapshotState};

use crate::support::{Node, resume_as};

const AT_ONCE: Collect = Collect { dry_run: false, probation_ms: Some(0) };

#[test]
fn a_deleted_snapshot_is_brought_back_within_its_window_and_runs_as_before() {
    let mut node = Node::start_with("undelete_window = \"1h\"\n");
    node.filled("a", 1);
    let first = node.pause("a", "first");
    node.wait("first", SnapshotState::Published);
    node.client.remove_sandbox("a").expect("it is removed");
    let deleted = node.client.delete_snapshot("first").expect("it is deleted");
    assert_eq!(deleted.undelete_seconds, Some(3600));
    let id = first.id.to_string();
    node.eventually("its deletion being in the store", || {
        node.client.withdrawn_snapshots().expect("it answers").iter().any(|one| one.id == first.id)
    });
    node.crash();
    node.client.collect(&AT_ONCE).expect("the store is there");
    node.eventually("this node having forgotten it", || {
        let refused = node.client.resume_snapshot(&id, None, &resume_as("b", 1)).expect_err("it is deleted");
        refused.to_string().contains("was deleted by node")
    });
    let back = node.client.undelete_snapshot(&id).expect("its window has not passed");
    assert_eq!((back.id, back.state), (first.id, SnapshotState::Published));
    assert_eq!(back.name, first.name);
    node.client.collect(&AT_ONCE).expect("the store is there");
    node.resumed(&id, "b");
    node.assert_verified("b");
    assert_eq!(node.client.withdrawn_snapshots().expect("it answers"), []);
}

#[test]
fn a_snapshot_whose_window_has_passed_is_collected_and_one_that_was_never_deleted_is_told() {
    let node = Node::start_with("undelete_window = \"1s\"\n");
    node.filled("a", 1);
    let first = node.pause("a", "first");
    node.wait("first", SnapshotState::Published);
    let id = first.id.to_string();
    let refused = node.client.undelete_snapshot(&id).expect_err("it is there");
    assert_eq!(refused.code(), Some(Code::NotFound), "{refused}");
    node.client.remove_sandbox("a").expect("it is removed");
    node.client.delete_snapshot("first").expect("it is deleted");
    let is_listed = || !node.client.withdrawn_snapshots().expect("it answers").is_empty();
    node.eventually("its deletion being in the store", is_listed);
    node.eventually("its deletion being final", || {
        node.client.collect(&AT_ONCE).expect("the store is there");
        !is_listed()
    });
    let refused = node.client.undelete_snapshot(&id).expect_err("its window has passed");
    assert!(refused.to_string().contains("deleted for good by node"), "{refused}");
}
