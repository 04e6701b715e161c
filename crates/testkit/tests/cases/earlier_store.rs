//! An older copy of the store is put in its place.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use rekindle_engine::engine::Engine;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::republish::LookedFor;
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::store_gate::OtherStore;
use rekindle_testkit::site::Site;
use rekindle_testkit::stores::{Fault, Operation, Rule, UnreliableStore};

use crate::store::{start_gated, wait_failure};
use crate::{check, check_elsewhere, child, first_pause, run, site, wait_published};

fn start(site: &Site) -> Engine {
    start_gated(site, site.objects.clone(), OtherStore::Refused)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers")
}

fn names(objects: &InMemory) -> Vec<Path> {
    let listed = runtime().block_on(objects.list(None).collect::<Vec<_>>());
    let mut names: Vec<_> = listed.into_iter().map(|object| object.expect("RAM").location).collect();
    names.sort();
    names
}

/// Replaces the store's content by `state`, unnoticed by its users.
fn put_back(site: &Site, state: &InMemory) {
    for path in names(&site.objects) {
        runtime().block_on(site.objects.delete(&path)).expect("it is there");
    }
    for path in names(state) {
        let object =
            runtime().block_on(async { state.get(&path).await?.bytes().await }).expect("it is there");
        runtime().block_on(site.objects.put(&path, PutPayload::from_bytes(object))).expect("RAM");
    }
}

#[test]
fn an_older_copy_of_the_store_is_away_and_gets_nothing_until_the_newer_one_is_back() {
    for starts_anew in [false, true] {
        let site = site();
        let mut engine = start(&site);
        let first = first_pause(&engine, 100);
        wait_settled(&site, &first.0);
        let earlier = site.objects.fork();
        let mut second = child(&engine, &first, run(20, 6), 2);
        wait_settled(&site, &second.0);
        let newer = site.objects.fork();
        put_back(&site, &earlier);
        if starts_anew {
            let id = second.0.id();
            drop((engine, first.0, second.0));
            engine = start(&site);
            second.0 = engine.snapshot(id).expect("it is recorded");
        }
        let third = child(&engine, &second, run(30, 6), 3);
        wait_failure(&third.0);
        let failure = third.0.status().failure.expect("it waited for one");
        assert!(failure.contains("the store is away") && failure.contains("earlier state"), "{failure}");
        assert_eq!(names(&site.objects), names(&earlier), "nothing is written to it");
        check(&engine, &third);
        put_back(&site, &newer);
        wait_published(&third.0);
        check_elsewhere(&site, &second);
        check_elsewhere(&site, &third);
    }
}

/// Waits until `is_so`; waiting for a state of the sealed snapshot passes the time.
fn until(sealed: &Snapshot, is_so: impl Fn() -> bool) {
    while !is_so() {
        assert!(!sealed.wait_state(SnapshotState::Captured, Duration::from_millis(10)));
    }
}

/// Waits until a snapshot is published and, after that, all signs but the last are deleted.
fn wait_settled(site: &Site, snapshot: &Snapshot) {
    wait_published(snapshot);
    let is_sign = |path: &&Path| path.as_ref().starts_with("nodes/");
    until(snapshot, || names(&site.objects).iter().filter(is_sign).count() == 1);
}

/// Looks for the published snapshots until all were looked for: the store has to be opened first.
fn look(engine: &Engine, sealed: &Snapshot) {
    until(sealed, || engine.publish_what_is_missing().expect("the store answers") == LookedFor::All);
}

#[test]
fn what_an_accepted_older_copy_of_the_store_lacks_is_published_again_also_after_a_crash() {
    for crashes in [false, true] {
        let site = site();
        let engine = start(&site);
        let first = first_pause(&engine, 100);
        wait_settled(&site, &first.0);
        let earlier = site.objects.fork();
        let mut second = child(&engine, &first, run(20, 6), 2);
        wait_published(&second.0);
        put_back(&site, &earlier);
        let id = second.0.id();
        drop((engine, first.0, second.0));
        let mut engine = start_gated(&site, site.objects.clone(), OtherStore::Accepted);
        second.0 = engine.snapshot(id).expect("it is recorded");
        if crashes {
            // This one is published after the store was accepted.
            let third = child(&engine, &second, run(30, 6), 3);
            wait_published(&third.0);
            drop((engine, second.0, third));
            engine = start(&site);
            second.0 = engine.snapshot(id).expect("it is recorded");
        }
        look(&engine, &second.0);
        wait_published(&second.0);
        check_elsewhere(&site, &second);
    }
}

#[test]
fn what_an_accepted_store_lacks_and_the_disk_too_says_so_and_is_not_called_published() {
    let site = site();
    let empty = Arc::new(InMemory::new());
    let engine = start(&site);
    let (id, elsewhere) = (first_pause(&engine, 100).0.id(), site.elsewhere().expect("a directory"));
    wait_published(&engine.snapshot(id).expect("it is known"));
    let cold = start(&elsewhere);
    cold.open(id).expect("it is published");
    drop(cold);
    let cold = start_gated(&elsewhere, empty, OtherStore::Accepted);
    let there = cold.snapshot(id).expect("it is recorded");
    look(&cold, &there);
    wait_failure(&there);
    let failure = there.status().failure.expect("it waited for one");
    assert!(failure.contains("does not have the whole layer"), "{failure}");
    assert_eq!(there.state(), SnapshotState::Sealed);
}

#[test]
fn signs_that_cannot_be_put_listed_or_deleted_cost_nothing_and_give_no_false_alarm() {
    let faults =
        [Operation::Put, Operation::List, Operation::Delete].map(|on| [(on, Fault::Fail), (on, Fault::Lie)]);
    for (on, fault) in faults.into_iter().flatten() {
        let site = site();
        let unreliable = UnreliableStore::new(site.objects.clone());
        let control = unreliable.faults();
        let objects: Arc<dyn ObjectStore> = Arc::new(unreliable);
        let engine = start_gated(&site, Arc::clone(&objects), OtherStore::Refused);
        let first = first_pause(&engine, 100);
        wait_published(&first.0);
        let struck = control.inject(Rule::once(on, "nodes", fault));
        let mut second = child(&engine, &first, run(20, 6), 2);
        wait_published(&second.0);
        // A sign is deleted afterwards.
        until(&second.0, || control.struck() == 1);
        drop(struck);
        let id = second.0.id();
        drop((engine, first.0, second.0));
        let engine = start_gated(&site, objects, OtherStore::Refused);
        second.0 = engine.snapshot(id).expect("it is recorded");
        for seed in 3..5 {
            let next = child(&engine, &second, run(30, 6), seed);
            wait_published(&next.0);
            check_elsewhere(&site, &next);
        }
        wait_settled(&site, &second.0);
    }
}

#[test]
fn a_snapshot_that_another_node_deletes_is_no_earlier_state_of_the_store() {
    let site = site();
    let engine = start(&site);
    let first = first_pause(&engine, 100);
    wait_published(&first.0);
    let elsewhere = site.elsewhere().expect("a directory");
    let peer = start(&elsewhere);
    let there = peer.open(first.0.id()).expect("it is published");
    peer.delete(&there).expect("a disk");
    drop(there);
    let manifest = Path::from(format!("manifests/{}/1", first.0.id()));
    until(&first.0, || runtime().block_on(site.objects.head(&manifest)).is_err());
    drop(peer);
    let second = child(&engine, &first, run(20, 6), 2);
    wait_published(&second.0);
    check_elsewhere(&site, &second);
    assert_eq!(engine.store_away(), None);
}
