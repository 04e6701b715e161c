//! Snapshots that a node forgets and the store keeps.

use rekindle_api::problem::Code;
use rekindle_api::types::SnapshotState;

use crate::support::{Node, Outage, files_in};

/// The words of the refusal to forget a snapshot, which stays as it is.
fn refused(node: &Node, snapshot: &str) -> String {
    let error = node.client.forget_snapshot(snapshot).expect_err("it is not forgotten");
    assert_eq!(error.code(), Some(Code::WrongState), "{error}");
    node.client.snapshot(snapshot).expect("it is listed as before");
    error.to_string()
}

#[test]
fn a_forgotten_snapshot_leaves_the_node_and_stays_in_the_store_for_all() {
    let mut node = Node::start();
    node.filled("a", 1);
    let first = node.pause("a", "first");
    node.wait("first", SnapshotState::Published);
    node.client.remove_sandbox("a").expect("it is removed");
    node.client.forget_snapshot("first").expect("nothing uses it");
    assert_eq!(node.client.all_snapshots(&[]).expect("it answers"), Vec::new());
    let layers = node.place.state_directory().join("layers");
    node.eventually("its layer files being gone", || files_in(&layers).is_empty());
    node.crash();
    assert_eq!(node.client.all_snapshots(&[]).expect("it answers"), Vec::new());
    node.resumed(&first.id.to_string(), "b");
    node.assert_verified("b");
    assert_eq!(node.client.snapshot("first").expect("it is listed again").id, first.id);
}

#[test]
fn a_snapshot_that_is_only_here_or_in_use_is_not_forgotten() {
    let node = Node::start();
    node.filled("a", 1);
    let outage = Outage::of(&node.place.store_directory());
    node.pause("a", "first");
    node.wait("first", SnapshotState::Sealed);
    assert!(refused(&node, "first").contains("is paused in"), "a sandbox needs it");
    node.resume("a");
    assert!(refused(&node, "first").contains(" runs from "), "a guest is served from it");
    node.client.remove_sandbox("a").expect("it is removed");
    assert!(refused(&node, "first").contains("only here"), "it has no other copy");
    outage.end();
    node.wait("first", SnapshotState::Published);
    node.client.forget_snapshot("first").expect("the store has it");
}
