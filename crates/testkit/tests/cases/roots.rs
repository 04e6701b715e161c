//! Cases of nodes that publish into a store from which others delete.

use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use rekindle_engine::cache_limits::CacheLimits;
use rekindle_engine::collectable::{Collectable, LayerCopy};
use rekindle_engine::condemned::Condemned;
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::root::{Cause, Root};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::store_gate::OtherStore;
use rekindle_testkit::model::ModelMemory;
use rekindle_testkit::site::{PATIENCE, Site};
use rekindle_testkit::stores::{Fault, Faults, Operation, Rule, UnreliableStore};

use crate::run_roots::wait_for;
use crate::store::{gated, start_gated, wait_failure};
use crate::{check, check_elsewhere, child, first_pause, run, site, wait_published};

/// An engine on a site, through the store's gate.
pub(crate) fn begin(site: &Site) -> Engine {
    start_gated(site, site.objects.clone(), OtherStore::Refused)
}

/// The same with a store that can fail.
pub(crate) fn begin_unreliable(site: &Site) -> (Engine, Faults) {
    let unreliable = UnreliableStore::new(site.objects.clone());
    let faults = unreliable.faults();
    (start_gated(site, Arc::new(unreliable), OtherStore::Refused), faults)
}

/// An engine with a snapshot that is published, and no root in the store any more.
pub(crate) fn begun_with(pages: u32) -> (Site, Engine, (Arc<Snapshot>, ModelMemory)) {
    let site = site();
    let engine = begin(&site);
    let first = first_pause(&engine, pages);
    wait_published(&first.0);
    wait_no_roots(&site);
    (site, engine, first)
}

fn block_on<T>(asked: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers").block_on(asked)
}

pub(crate) fn put(site: &Site, path: &str, bytes: Vec<u8>) {
    block_on(site.objects.put(&Path::from(path), PutPayload::from(bytes))).expect("RAM");
}

pub(crate) fn names(site: &Site, under: &str) -> Vec<Path> {
    let listed: Vec<_> = block_on(site.objects.list(Some(&Path::from(under))).collect());
    listed.into_iter().map(|object: object_store::Result<_>| object.expect("RAM").location).collect()
}

pub(crate) fn roots(site: &Site) -> Vec<Root> {
    let root = |path: Path| {
        // One that was listed may have been taken away since.
        let answer = block_on(site.objects.get(&path)).ok()?;
        Some(Root::decode(&block_on(answer.bytes()).expect("RAM")).expect("it is one"))
    };
    names(site, "roots").into_iter().filter_map(root).collect()
}

pub(crate) fn wait_no_roots(site: &Site) {
    let begun = Instant::now();
    while !names(site, "roots").is_empty() {
        assert!(begun.elapsed() < PATIENCE, "roots stay: {:?}", names(site, "roots"));
        std::thread::yield_now();
    }
}

pub(crate) fn copies(snapshot: &Snapshot) -> Vec<LayerCopy> {
    let layers = snapshot.memory().load().layers().to_vec();
    let copy = |layer: &Arc<rekindle_engine::layer::Layer>| {
        Some(LayerCopy { layer: layer.id(), object: layer.stored_at()?.object })
    };
    layers.iter().filter_map(copy).collect()
}

#[test]
fn a_root_covers_what_is_published_from_before_its_first_upload_until_its_manifest_is_there() {
    let site = site();
    let (engine, faults) = begin_unreliable(&site);
    let first = first_pause(&engine, 50);
    wait_published(&first.0);
    wait_no_roots(&site);
    let (puts, lists) = (faults.calls(Operation::Put, "roots/"), faults.calls(Operation::List, "condemned"));
    assert_eq!((puts, lists, faults.calls(Operation::Delete, "roots/")), (1, 1, 1));
    let failing = faults.inject(Rule::always(Operation::Put, "layers/", Fault::Fail));
    let second = child(&engine, &first, run(20, 6), 2);
    wait_failure(&second.0);
    let named = copies(&first.0).into_iter().collect();
    let root = Root { snapshot: second.0.id(), cause: Cause::Publishes, named };
    assert_eq!(roots(&site), [root], "one root, however often it is tried");
    drop(failing);
    wait_published(&second.0);
    wait_no_roots(&site);
    check_elsewhere(&site, &second);
}

#[test]
fn a_copy_on_a_collectors_list_is_uploaded_anew_by_the_next_snapshot_that_names_it() {
    let site = site();
    let engine = begin(&site);
    let first = first_pause(&engine, 50);
    wait_published(&first.0);
    let condemned = copies(&first.0);
    let list = Condemned(condemned.iter().copied().map(Collectable::Layer).collect());
    put(&site, "condemned/collector/list", list.encode());
    let second = child(&engine, &first, run(20, 6), 2);
    wait_published(&second.0);
    for copy in &condemned {
        block_on(site.objects.delete(&Path::from(copy.to_string()))).expect("it is still there");
    }
    check_elsewhere(&site, &second);
}

/// The engine on a site anew, with next to no room for layer files.
fn begin_small(site: &Site) -> Engine {
    let cache_limits = CacheLimits { bytes_max: Some(4096), ..CacheLimits::default() };
    let options = gated(site, site.objects.clone(), OtherStore::Refused);
    let engine = Engine::start(EngineOptions { cache_limits, ..options }).expect("threads for an engine");
    engine.end_replay();
    engine
}

#[test]
fn a_layer_with_two_copies_is_read_from_the_older_one_once_the_newer_one_went_with_its_snapshot() {
    for starts_anew in [false, true] {
        let site = site();
        let mut engine = begin(&site);
        let mut first = first_pause(&engine, 50);
        wait_published(&first.0);
        let older = copies(&first.0);
        let list = Condemned(older.iter().copied().map(Collectable::Layer).collect());
        put(&site, "condemned/collector/list", list.encode());
        let mut second = child(&engine, &first, run(20, 6), 2).0;
        wait_published(&second);
        block_on(site.objects.delete(&Path::from("condemned/collector/list"))).expect("it is there");
        if starts_anew {
            let ids = (first.0.id(), second.id());
            drop((first.0, second, engine));
            engine = begin_small(&site);
            let known = |id| engine.snapshot(id).expect("the catalog has it");
            (first.0, second) = (known(ids.0), known(ids.1));
        }
        let is_newer = |path: &Path| older.iter().all(|copy| *path != Path::from(copy.to_string()));
        let newer: Vec<_> = names(&site, "layers").into_iter().filter(is_newer).collect();
        assert_eq!(newer.len(), 2, "its own layer, and that of the other one again");
        engine.delete(&second).expect("a disk");
        drop(second);
        wait_for("it is deleted", || !names(&site, "deleted").is_empty());
        for path in &newer {
            block_on(site.objects.delete(path)).expect("it is there");
        }
        let runs_from = engine.runs_from(&first.0);
        engine.look_after_roots().expect("the store is there");
        let named = older.iter().copied().collect();
        let root = Root { snapshot: first.0.id(), cause: Cause::Runs, named };
        assert!(roots(&site).contains(&root), "{:?}", roots(&site));
        if starts_anew {
            engine.hold_cache_limits();
            check(&engine, &first);
        }
        drop(runs_from);
    }
}

#[test]
fn a_list_that_cannot_be_understood_stops_publishing_until_it_is_gone() {
    let site = site();
    put(&site, "condemned/collector/list", br#"{"version":9}"#.to_vec());
    let engine = begin(&site);
    let first = first_pause(&engine, 50);
    wait_failure(&first.0);
    let failure = first.0.status().failure.unwrap_or_default();
    assert!(failure.contains("condemned/collector/list: version 9 is unknown"), "{failure}");
    assert!(names(&site, "layers").is_empty());
    block_on(site.objects.delete(&Path::from("condemned/collector/list"))).expect("it is there");
    wait_published(&first.0);
}

#[test]
fn a_snapshot_that_another_node_deleted_is_not_published_again() {
    let site = site();
    let (engine, faults) = begin_unreliable(&site);
    let failing = faults.inject(Rule::always(Operation::Put, "layers/", Fault::Fail));
    let first = first_pause(&engine, 50);
    wait_failure(&first.0);
    put(&site, &format!("deleted/{}", first.0.id()), br#"{"version":1}"#.to_vec());
    drop(failing);
    let begun = Instant::now();
    while !first.0.status().failure.is_some_and(|failure| failure.contains("was deleted by another node")) {
        assert!(begun.elapsed() < PATIENCE, "{:?}", first.0.status());
        std::thread::yield_now();
    }
    assert!(names(&site, "manifests").is_empty());
    engine.delete(&first.0).expect("a disk");
    wait_no_roots(&site);
}

#[test]
fn a_root_that_lands_after_its_snapshot_was_deleted_is_taken_away() {
    let site = site();
    let (engine, faults) = begin_unreliable(&site);
    let stalled = faults.inject(Rule::always(Operation::Put, "roots/", Fault::Stall));
    let first = first_pause(&engine, 50);
    faults.wait_calls(Operation::Put, "roots/", 1);
    engine.delete(&first.0).expect("a disk");
    faults.wait_calls(Operation::Delete, "roots/", 1);
    drop(stalled);
    faults.wait_calls(Operation::Delete, "roots/", 2);
    wait_no_roots(&site);
}

#[test]
fn roots_that_a_crash_left_are_taken_away_by_the_next_start_and_by_the_publish_that_they_are_for() {
    let site = site();
    let unreliable = UnreliableStore::new(site.objects.clone());
    let (faults, objects) = (unreliable.faults(), Arc::new(unreliable));
    let engine = start_gated(&site, objects.clone(), OtherStore::Refused);
    let kept = faults.inject(Rule::always(Operation::Delete, "roots/", Fault::Fail));
    let first = first_pause(&engine, 50);
    wait_published(&first.0);
    faults.wait_calls(Operation::Delete, "roots/", 1);
    let failing = faults.inject(Rule::always(Operation::Put, "manifests/", Fault::Fail));
    let second = child(&engine, &first, run(20, 6), 2);
    wait_failure(&second.0);
    assert_eq!(roots(&site).len(), 2);
    let ids = [first.0.id(), second.0.id()];
    drop((engine, first, second, kept));
    let engine = start_gated(&site, objects, OtherStore::Refused);
    let second = engine.snapshot(ids[1]).expect("it is recorded");
    wait_failure(&second);
    let is_of = |root: &Root, id: SnapshotId| root.snapshot == id;
    let begun = Instant::now();
    while roots(&site).iter().any(|root| is_of(root, ids[0])) {
        assert!(begun.elapsed() < PATIENCE, "the root of a published snapshot stays");
        std::thread::yield_now();
    }
    assert!(roots(&site).iter().any(|root| is_of(root, ids[1])), "it is not published yet");
    drop(failing);
    wait_published(&second);
    engine.end_replay();
    engine.look_after_roots().expect("the store is there");
    wait_no_roots(&site);
}
