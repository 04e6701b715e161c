//! A snapshot's progress: its waiters miss nothing, and it may be deleted at any moment.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use engine_under_shuttle::lifecycle::{SnapshotEvent, SnapshotState, SnapshotWork};
use engine_under_shuttle::snapshot::Snapshot;
use engine_under_shuttle::stop::{Stop, Stopped};
use shuttle::future::block_on;
use shuttle::thread;

use crate::node::{GUEST_BYTES, Node, directory};
use crate::schedule::{every, random};

/// Longer than any test: a wait without end means a missed change, which Shuttle reports as a deadlock.
const FOR_EVER: Duration = Duration::from_secs(3600);

#[test]
fn whoever_waits_for_a_manifest_or_a_state_gets_it() {
    let cache = directory();
    random(1500, move || {
        let node = Node::new(cache.path(), 8 * GUEST_BYTES);
        let paused = node.pause(None, &[(0, 1)]);
        let snapshot = Arc::clone(&paused.snapshot);
        let for_manifest = thread::spawn(move || {
            let manifest = snapshot.wait_manifest(FOR_EVER).expect("the seal ends");
            assert_eq!(manifest.snapshot(), snapshot.id());
            assert!(snapshot.state().has_manifest());
        });
        let snapshot = Arc::clone(&paused.snapshot);
        let for_state =
            thread::spawn(move || assert!(snapshot.wait_state(SnapshotState::Published, FOR_EVER)));
        assert_eq!(node.steps.seal(&paused.snapshot, paused.captures), SnapshotWork::Publish);
        node.steps.record(&paused.snapshot, SnapshotEvent::PublishSucceeded);
        for_manifest.join().expect("it got the manifest");
        for_state.join().expect("it saw the state");
    });
}

/// Publishes like a life, with a store that fails `failures` times; returns the work that is left.
fn publish(node: &Node, snapshot: &Snapshot, mut work: SnapshotWork, failures: usize) -> SnapshotWork {
    let mut left = failures;
    while matches!(work, SnapshotWork::Publish | SnapshotWork::Again) {
        thread::yield_now();
        let event = if left > 0 { SnapshotEvent::PublishFailed } else { SnapshotEvent::PublishSucceeded };
        left = left.saturating_sub(1);
        work = node.steps.record(snapshot, event);
    }
    work
}

/// No event happens in a state where the table does not allow it, and a manifest that may have reached the store is
/// removed by the last thread.
#[test]
fn deleting_races_with_sealing_and_publishing_by_the_table() {
    let cache = directory();
    random(3000, move || {
        let node = Arc::new(Node::new(cache.path(), 8 * GUEST_BYTES));
        let paused = node.pause(None, &[(0, 1)]);
        let snapshot = Arc::clone(&paused.snapshot);
        let (living, captures) = (Arc::clone(&node), paused.captures);
        let life = thread::spawn(move || {
            let work = living.steps.seal(&snapshot, captures);
            (work, publish(&living, &snapshot, work, 1))
        });
        let (deleting, snapshot) = (Arc::clone(&node), Arc::clone(&paused.snapshot));
        let delete = thread::spawn(move || deleting.steps.record(&snapshot, SnapshotEvent::Deleted));
        let (sealed, last) = life.join().expect("the life ends");
        let deleted = delete.join().expect("deleting is always possible");
        assert_eq!(paused.snapshot.state(), SnapshotState::Discarded);
        // A snapshot that was deleted before its seal has no manifest to remove.
        let unnamed = sealed == SnapshotWork::None;
        assert_eq!(deleted, if unnamed { SnapshotWork::None } else { SnapshotWork::RemoveFromStore });
        assert!(matches!(last, SnapshotWork::None | SnapshotWork::RemoveFromStore), "{last:?} is left");
    });
}

/// Case 13: the parent is deleted while its child waits for its manifest.
#[test]
fn a_deleted_parent_still_gives_its_child_a_manifest() {
    let cache = directory();
    random(1500, move || {
        let node = Arc::new(Node::new(cache.path(), 8 * GUEST_BYTES));
        let mut parent = node.pause(None, &[(0, 1), (1, 2)]);
        let child = node.pause(Some(&parent), &[(1, 3)]);
        let captures = std::mem::take(&mut parent.captures);
        let (working, snapshot) = (Arc::clone(&node), Arc::clone(&child.snapshot));
        let sealing = thread::spawn(move || working.steps.seal(&snapshot, child.captures));
        let (deleting, snapshot) = (Arc::clone(&node), Arc::clone(&parent.snapshot));
        let delete = thread::spawn(move || deleting.steps.record(&snapshot, SnapshotEvent::Deleted));
        node.steps.seal(&parent.snapshot, captures);
        drop(parent);
        delete.join().expect("deleting is always possible");
        assert_eq!(sealing.join().expect("the child seals"), SnapshotWork::Publish);
        node.check(child.snapshot.memory(), &[1, 3, 0, 0]);
        assert!(child.snapshot.manifest_now().is_some());
    });
}

#[test]
fn a_stop_is_heard_by_everybody_who_waits() {
    every(500_000, || {
        let stop = Stop::default();
        let waiting: Vec<_> = (0..2)
            .map(|_| {
                let stop = stop.clone();
                thread::spawn(move || block_on(stop.unless_said(pending::<()>())))
            })
            .collect();
        stop.say();
        let heard: Vec<_> = waiting.into_iter().map(|thread| thread.join().expect("it heard")).collect();
        assert_eq!(heard, [Err(Stopped), Err(Stopped)]);
    });
}
