//! The cost of snapshots, as a node tells it.

use rekindle_api::types::SnapshotState;

use crate::support::{Node, files_in, rewrite};

/// Number of objects in a node's store, and their bytes.
fn in_store(node: &Node) -> (u64, u64) {
    let files = files_in(&node.place.store_directory());
    let bytes = files.iter().map(|file| file.metadata().expect("a disk").len()).sum();
    (u64::try_from(files.len()).expect("a few"), bytes)
}

#[test]
fn the_parts_of_usage_add_up_to_every_object_and_a_deletion_frees_what_is_said() {
    let node = Node::start();
    node.filled("a", 1);
    node.pause("a", "first");
    node.wait("first", SnapshotState::Published);
    node.resume("a");
    node.told("a").rewrite(rewrite(2)).expect("its guest rewrites a part of its memory");
    node.pause("a", "second");
    node.wait("second", SnapshotState::Published);
    // Roots and signs go after the snapshot is published.
    let mut told = node.client.usage().expect("it answers");
    node.eventually("usage being that of the store", || {
        told = node.client.usage().expect("it answers");
        (told.stored_objects, told.stored_bytes) == in_store(&node)
    });
    let parts =
        told.own_bytes + told.unique_bytes + told.shared_bytes + told.unnamed_bytes + told.bookkeeping_bytes;
    assert_eq!(parts, told.stored_bytes, "{told:?}");
    assert_eq!((told.snapshots, told.unread_snapshots, told.unnamed_bytes), (2, 0, 0), "{told:?}");
    let first = node.client.snapshot_usage("first").expect("it answers");
    let second = node.client.snapshot_usage("second").expect("it answers");
    assert_eq!(first.shared_bytes, told.shared_bytes, "the second stands on the layer of the first");
    assert_eq!((first.unique_bytes, first.freed_bytes), (0, first.own_bytes), "{first:?}");
    assert!(
        second.unique_bytes > 0 && second.freed_bytes == second.own_bytes + second.unique_bytes,
        "{second:?}"
    );
    assert_eq!(told.largest.first().map(|largest| largest.snapshot), Some(second.snapshot));
}
