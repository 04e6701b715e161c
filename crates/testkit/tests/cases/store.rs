//! Cases of a store that goes away in the middle, lies, and comes back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use rekindle_engine::catalog::Catalog;
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::identity::{SnapshotId, VolumeName};
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::limits;
use rekindle_engine::manifest::{
    Edition, LayerName, Manifest, Publication, SnapshotFacts, VolumeChange, VolumeShape,
};
use rekindle_engine::open::OpenError;
use rekindle_engine::page_set::PageSet;
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::store::Store;
use rekindle_engine::store_check::StoreFindings;
use rekindle_engine::store_gate::{Holds, OpenedStore, OtherStore, StoreGate, StoreOpener};
use rekindle_kernel::PageKind;
use rekindle_testkit::guest::{Guest, judge};
use rekindle_testkit::hooks::Point;
use rekindle_testkit::site::{PATIENCE, Site};
use rekindle_testkit::stores::{Fault, Operation, Rule, UnreliableStore};

use crate::{
    check, check_elsewhere, child, first_pause, open_elsewhere, pause, published, run, site, start,
    wait_published, wait_sealed,
};

pub(crate) fn wait_failure(snapshot: &Snapshot) {
    while snapshot.status().failure.is_none() {
        assert!(
            !snapshot.wait_state(SnapshotState::Published, Duration::from_millis(10)),
            "the store is out"
        );
    }
}

#[test]
fn case_31_a_store_that_goes_in_the_middle_of_publishing_loses_nothing() {
    for after in 0..6 {
        let site = site();
        let engine = start(&site);
        let gone = site.faults.inject(Rule { after, ..Rule::always(Operation::Put, "", Fault::Fail) });
        let first = first_pause(&engine, 200);
        let second = child(&engine, &first, run(20, 60), 2);
        let third = child(&engine, &second, run(70, 30), 3);
        wait_failure(&third.0);
        for snapshot in [&first, &second, &third] {
            check(&engine, snapshot);
        }
        drop(gone);
        for snapshot in [&first, &second, &third] {
            wait_published(&snapshot.0);
            assert_eq!(snapshot.0.status().failure, None, "it says no more what is over");
            check_elsewhere(&site, snapshot);
        }
    }
}

#[test]
fn case_30_a_manifest_is_not_written_before_its_layers() {
    let site = site();
    let engine = start(&site);
    let gone = site.faults.inject(Rule::always(Operation::Put, "layers/", Fault::Fail));
    let first = first_pause(&engine, 50);
    let second = child(&engine, &first, run(20, 6), 2);
    wait_failure(&first.0);
    wait_failure(&second.0);
    assert_eq!(site.faults.calls(Operation::Put, "manifests/"), 0);
    engine.delete(&first.0).expect("nothing to write");
    drop(gone);
    wait_published(&second.0);
    check_elsewhere(&site, &second);
}

#[test]
fn case_32_neither_a_publish_nor_a_resume_asks_for_the_manifests_of_ancestors() {
    let (site, engine, first) = published(200);
    let gets = |under| site.faults.calls(Operation::Get, under);
    let mut newest = first;
    for number in 1..10 {
        let (manifests, layers) = (gets("manifests/"), gets("layers/"));
        newest = child(&engine, &newest, run(number * 9, 4), number.into());
        wait_published(&newest.0);
        let named = newest.0.layers_now().len();
        assert_eq!(gets("manifests/"), manifests, "of ancestor {number}");
        assert!(gets("layers/") - layers <= named, "each of {named} layers is asked for once");
    }
    let (manifests, layers) = (gets("manifests/"), gets("layers/"));
    let cold = open_elsewhere(&site, &newest.0);
    assert_eq!((gets("manifests/") - manifests, gets("layers/")), (1, layers), "its manifest has all");
    judge(&cold.engine, &cold.snapshot, &newest.1).expect("every page is the model's");
}

#[test]
fn an_engine_ends_although_a_seal_is_held_and_the_store_answers_nothing() {
    let site = site();
    let engine = start(&site);
    let stalled = site.faults.inject(Rule::always(Operation::Put, "layers/", Fault::Stall));
    let first = first_pause(&engine, 50);
    site.faults.wait_stalled();
    let held = site.hooks.hold(Point::Compare);
    let second = child(&engine, &first, run(20, 6), 2);
    assert!(site.hooks.wait_standing(Point::Compare, second.0.id(), PATIENCE));
    drop(engine);
    assert_eq!([first.0.state(), second.0.state()], [SnapshotState::Sealed, SnapshotState::Captured]);
    drop((held, stalled));
}

#[test]
fn case_08_and_35_the_only_copy_of_a_layer_stays_on_the_disk() {
    let site = site();
    let engine = start(&site);
    let outage = site.faults.outage();
    let first = first_pause(&engine, 150);
    let second = child(&engine, &first, run(20, 60), 2);
    wait_sealed(&first.0);
    wait_sealed(&second.0);
    let layers = second.0.manifest_now().expect("it is sealed").layers().to_vec();
    engine.delete(&first.0).expect("nothing to write");
    drop(first);
    for layer in &layers {
        let path = site.cache_directory().join(format!("{}.raw", layer.id));
        assert!(path.exists(), "{path:?} is the only copy of what the second snapshot names");
    }
    check(&engine, &second);
    drop(outage);
    wait_published(&second.0);
    check_elsewhere(&site, &second);
}

/// Opens the store behind a site's faults.
#[derive(Debug)]
struct OpensObjects(Arc<dyn ObjectStore>);

impl StoreOpener for OpensObjects {
    fn open(&self, _: Holds) -> Result<OpenedStore, String> {
        Ok(Arc::clone(&self.0).into())
    }
}

fn keys() -> KeyRing {
    KeyRing::of_name("default")
}

/// An engine with a catalog and a gate to its store.
fn start_with_gate(site: &Site) -> Engine {
    start_gated(site, site.objects.clone(), OtherStore::Refused)
}

/// The same over the objects of a store, and where a person may have accepted it.
pub(crate) fn start_gated(site: &Site, objects: Arc<dyn ObjectStore>, other: OtherStore) -> Engine {
    Engine::start(gated(site, objects, other)).expect("threads for an engine")
}

/// Options of such an engine.
pub(crate) fn gated(site: &Site, objects: Arc<dyn ObjectStore>, other: OtherStore) -> EngineOptions {
    let recording = site.recording().expect("a catalog");
    let catalog: Catalog = recording.catalog.clone().expect("it records");
    let gate = StoreGate::new(Box::new(OpensObjects(objects)), catalog, None, other, keys());
    EngineOptions { store: Store::gated(gate), ..recording }
}

#[test]
fn a_store_whose_identity_cannot_be_read_once_stays_in_use_and_twice_is_away() {
    let directory = tempfile::tempdir().expect("a directory");
    let catalog = Catalog::open(&directory.path().join("catalog.redb")).expect("a disk");
    let unreliable = UnreliableStore::new(Arc::new(InMemory::new()));
    let faults = unreliable.faults();
    let opener = Box::new(OpensObjects(Arc::new(unreliable)));
    let gate = StoreGate::new(opener, catalog, None, OtherStore::Refused, keys());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    let look = || runtime.block_on(gate.checked()).map(drop);
    look().expect("an empty place becomes a store");
    for fault in [Fault::Fail, Fault::Truncate] {
        let once = faults.inject(Rule::once(Operation::Get, "store", fault));
        look().expect("it can be read the second time");
        assert_eq!((faults.struck(), gate.away()), (if fault == Fault::Fail { 1 } else { 2 }, None));
        drop(once);
    }
    let unreadable = faults.inject(Rule::always(Operation::Get, "store", Fault::Truncate));
    let away = look().expect_err("it cannot be understood");
    assert_eq!(gate.away(), Some(away));
    drop(unreadable);
}

/// Removes the objects of a snapshot's layers from the store.
fn lose_layers(site: &Site, snapshot: &Snapshot) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers");
    for layer in snapshot.memory().load().layers() {
        let stored = layer.stored_at().expect("it is published");
        let path = Path::from(format!("layers/{}/{}", layer.id(), stored.object));
        runtime.block_on(site.objects.delete(&path)).expect("it is there");
    }
}

#[test]
fn a_layer_whose_object_is_gone_is_uploaded_again_with_the_next_snapshot_that_names_it() {
    for starts_anew in [false, true] {
        let site = site();
        let mut engine = start_with_gate(&site);
        let mut first = first_pause(&engine, 100);
        wait_published(&first.0);
        lose_layers(&site, &first.0);
        if starts_anew {
            let id = first.0.id();
            drop((engine, first.0));
            engine = start_with_gate(&site);
            first.0 = engine.snapshot(id).expect("it is recorded");
        }
        for seed in 2..4 {
            let next = child(&engine, &first, run(20, 6), seed);
            wait_published(&next.0);
            check_elsewhere(&site, &next);
        }
        assert_eq!(objects_of_layers(&site), 3, "it was uploaded once more, and not with each child");
    }
}

/// The names of the objects of a snapshot's manifest.
fn manifests(site: &Site, snapshot: SnapshotId) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers");
    let listed = site.objects.list(Some(&Path::from(format!("manifests/{snapshot}"))));
    let listed: Vec<_> = runtime.block_on(futures_util::StreamExt::collect(listed));
    let name = |object: object_store::Result<object_store::ObjectMeta>| {
        object.expect("RAM").location.filename().expect("it has a name").to_owned()
    };
    listed.into_iter().map(name).collect()
}

#[test]
fn a_manifest_whose_layers_were_uploaded_anew_is_a_later_edition_and_verifying_misses_one_that_is_gone() {
    for starts_anew in [false, true] {
        let site = site();
        let unreliable = UnreliableStore::new(site.objects.clone());
        let (faults, objects) = (unreliable.faults(), Arc::new(unreliable));
        let mut engine = start_gated(&site, objects.clone(), OtherStore::Refused);
        let lying = faults.inject(Rule::always(Operation::Put, "manifests/", Fault::Lie));
        let mut first = first_pause(&engine, 100);
        wait_failure(&first.0);
        let uploads = faults.calls(Operation::Put, "layers/");
        lose_layers(&site, &first.0);
        if starts_anew {
            let id = first.0.id();
            drop((engine, first.0));
            engine = start_gated(&site, objects, OtherStore::Refused);
            first.0 = engine.snapshot(id).expect("it is recorded");
        }
        // From here on each try has seen that the layer was gone.
        faults.wait_calls(Operation::Put, "layers/", uploads + 1);
        drop(lying);
        wait_published(&first.0);
        assert_eq!(manifests(&site, first.0.id()), ["1", "2"]);
        check_elsewhere(&site, &first);
        let newer = Path::from(format!("manifests/{}/2", first.0.id()));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(site.objects.delete(&newer)).expect("it is there");
        let found = findings_in_store(&engine, &first.0);
        let StoreFindings::Asked { first: Some(fault), .. } = found else { unreachable!("{found:?}") };
        let missed = "edition 1 is the newest in the store, and this node has seen edition 2";
        assert!(fault.contains(missed), "{fault}");
    }
}

#[test]
fn a_later_edition_that_the_store_loses_before_it_is_recorded_is_put_again_though_an_earlier_one_is_there() {
    let site = site();
    let unreliable = UnreliableStore::new(site.objects.clone());
    let (faults, objects) = (unreliable.faults(), Arc::new(unreliable));
    let engine = start_gated(&site, objects, OtherStore::Refused);
    let lying = faults.inject(Rule::always(Operation::Put, "manifests/", Fault::Lie));
    let first = first_pause(&engine, 100);
    wait_failure(&first.0);
    let uploads = faults.calls(Operation::Put, "layers/");
    lose_layers(&site, &first.0);
    faults.wait_calls(Operation::Put, "layers/", uploads + 1);
    let stalled = faults.inject(Rule::once(Operation::Put, "nodes/", Fault::Stall));
    drop(lying);
    faults.wait_stalled();
    assert_eq!(manifests(&site, first.0.id()), ["1", "2"]);
    let newer = Path::from(format!("manifests/{}/2", first.0.id()));
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(site.objects.delete(&newer)).expect("it is there");
    drop(stalled);
    wait_published(&first.0);
    assert_eq!(manifests(&site, first.0.id()), ["1", "2"]);
}

fn findings_in_store(engine: &Engine, snapshot: &Snapshot) -> StoreFindings {
    engine.verify(snapshot, &|| true).expect("it is wanted").store
}

/// The first of `faults` faults that a verification finds in the store, for a snapshot that is completely on the disk.
fn fault_in_store(engine: &Engine, snapshot: &Snapshot, faults: u64) -> String {
    let found = engine.verify(snapshot, &|| true).expect("it is wanted");
    assert_eq!(found.wrong_pages, 0, "all of it is on the disk");
    let StoreFindings::Asked { objects: 3, wrong_objects, first: Some(first) } = &found.store else {
        unreachable!("{found:?}")
    };
    assert_eq!(*wrong_objects, faults, "{first}");
    first.clone()
}

#[test]
fn verifying_a_published_snapshot_says_which_of_its_objects_the_store_lacks_or_has_wrong() {
    let site = site();
    let engine = start_with_gate(&site);
    let first = first_pause(&engine, 100);
    wait_published(&first.0);
    let second = child(&engine, &first, run(20, 6), 2);
    wait_published(&second.0);
    let sound = StoreFindings::Asked { objects: 3, wrong_objects: 0, first: None };
    assert_eq!(findings_in_store(&engine, &second.0), sound);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers");
    let layer = Arc::clone(&second.0.memory().load().layers()[0]);
    let stored = layer.stored_at().expect("it is published");
    let object = Path::from(format!("layers/{}/{}", layer.id(), stored.object));
    runtime.block_on(site.objects.put(&object, vec![0; 10].into())).expect("RAM");
    let fault = fault_in_store(&engine, &second.0, 1);
    assert!(
        fault.contains("has 10 bytes in the store") && fault.contains(&layer.id().to_string()),
        "{fault}"
    );
    lose_layers(&site, &second.0);
    let fault = fault_in_store(&engine, &second.0, 2);
    assert_eq!(fault, format!("{object} is not in the store"));
    let manifest = Path::from(format!("manifests/{}/1", second.0.id()));
    for bytes in [Some(vec![0; 10]), None] {
        match bytes {
            Some(bytes) => drop(runtime.block_on(site.objects.put(&manifest, bytes.into())).expect("RAM")),
            None => runtime.block_on(site.objects.delete(&manifest)).expect("it is there"),
        }
        let found = findings_in_store(&engine, &second.0);
        let StoreFindings::Asked { objects: 1, wrong_objects: 1, first: Some(fault) } = found else {
            unreachable!("{found:?}")
        };
        assert!(fault.contains(&second.0.id().to_string()), "{fault}");
    }
    runtime.block_on(site.objects.delete(&Path::from("store"))).expect("it is there");
    let found = findings_in_store(&engine, &second.0);
    assert!(
        matches!(&found, StoreFindings::NotAsked { reason } if reason.contains("the store is away")),
        "{found:?}"
    );
}

fn objects_of_layers(site: &Site) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers");
    let listed = site.objects.list(Some(&Path::from("layers")));
    runtime.block_on(futures_util::StreamExt::count(listed))
}

#[test]
fn a_snapshot_that_names_a_layer_that_is_gone_everywhere_says_so() {
    let (site, _engine, first) = published(100);
    let elsewhere = site.elsewhere().expect("a temporary directory");
    let engine = start_with_gate(&elsewhere);
    let here = engine.open(first.0.id()).expect("it is published");
    lose_layers(&site, &first.0);
    let (own, _) = pause(&engine, Guest::resume(&here, first.1));
    wait_failure(&own);
    let failure = own.status().failure.expect("it waited for one");
    assert!(failure.contains("does not have the whole layer"), "{failure}");
}

#[test]
fn case_47_a_put_that_reports_failure_but_succeeded_is_done_again_and_right() {
    for under in ["manifests/", "layers/"] {
        let site = site();
        let engine = start(&site);
        let lying = site.faults.inject(Rule::once(Operation::Put, under, Fault::Lie));
        let first = first_pause(&engine, 100);
        wait_published(&first.0);
        check_elsewhere(&site, &first);
        assert_eq!(site.faults.struck(), 1);
        drop(lying);
    }
}

#[test]
fn case_47_a_snapshot_deleted_while_its_manifest_is_put_does_not_come_back() {
    for end in [None, Some(Fault::Lie)] {
        let site = site();
        let engine = start(&site);
        let stalled = site.faults.inject(Rule::once(Operation::Put, "manifests/", Fault::Stall));
        let lying = end.map(|fault| site.faults.inject(Rule::once(Operation::Put, "manifests/", fault)));
        let first = first_pause(&engine, 10);
        site.faults.wait_stalled();
        engine.delete(&first.0).expect("nothing to write");
        site.faults.wait_calls(Operation::Delete, "manifests/", 1);
        drop(stalled);
        site.faults.wait_calls(Operation::Delete, "manifests/", 2);
        drop(engine);
        drop(lying);
        let again = start(&site);
        assert!(again.open(first.0.id()).is_err(), "it was deleted");
    }
}

/// Opens a snapshot whose stored manifest another program wrote.
fn open_foreign(site: &Site, engine: &Engine, foreign: &Publication) -> Result<Arc<Snapshot>, OpenError> {
    let id = foreign.manifest().snapshot();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers");
    let path = Path::from(format!("manifests/{id}/{}", foreign.edition().number()));
    runtime
        .block_on(site.objects.put(&path, foreign.encode(KeyRing::of_name("default").own()).into()))
        .expect("into memory");
    engine.open(id)
}

/// Facts and memory of a snapshot of `pages` pages that was never paused.
fn unheard_of(pages: u32) -> (SnapshotFacts, VolumeShape) {
    let facts = SnapshotFacts { snapshot: SnapshotId::new(), created_unix_ms: 0, blobs: BTreeMap::new() };
    (facts, VolumeShape { name: VolumeName::memory(), page_kind: PageKind::Small, pages })
}

#[test]
fn a_stored_manifest_without_memory_is_refused() {
    let site = site();
    let nothing = Manifest::first(unheard_of(0).0, Vec::new(), &[]).expect("within limits");
    let opened = open_foreign(&site, &start(&site), &Publication::new(Edition::FIRST, nothing, Vec::new()));
    assert!(matches!(opened, Err(OpenError::NoMemory { .. })), "{opened:?}");
}

#[test]
fn a_stored_manifest_that_contradicts_an_open_layer_is_refused() {
    let (site, engine, (snapshot, memory)) = published(100);
    let layer = Arc::clone(&snapshot.memory().load().layers()[0]);
    let stored = layer.stored_at().expect("it is published");
    let (facts, shape) = unheard_of(200);
    let pages = PageSet::full(200);
    let change = VolumeChange {
        volume: shape.name.clone(),
        layer: Some((LayerName { pages: 200, ..layer.name().clone() }, &pages)),
        zero: &PageSet::new(200),
    };
    let larger = Manifest::first(facts, vec![shape], &[change]).expect("within limits");
    let opened = open_foreign(&site, &engine, &Publication::new(Edition::FIRST, larger, vec![stored]));
    assert!(matches!(opened, Err(OpenError::Cache { .. })), "{opened:?}");
    check(&engine, &(snapshot, memory));
}

#[test]
fn case_58_an_outage_stalls_a_cold_reader_and_no_other() {
    let (site, engine, first) = published(600);
    let cold = open_elsewhere(&site, &first.0);
    let outage = site.faults.outage();
    judge(&cold.engine, &cold.snapshot, &first.1).expect_err("nothing of it is here, and nothing is made up");
    let own = first_pause(&cold.engine, 40);
    wait_sealed(&own.0);
    check(&cold.engine, &own);
    check(&engine, &first);
    drop(outage);
    judge(&cold.engine, &cold.snapshot, &first.1).expect("the store is back");
    assert!(own.0.wait_state(SnapshotState::Published, PATIENCE));
}

#[test]
fn an_engine_ends_though_layers_to_merge_wait_for_a_store_that_hangs() {
    let (site, engine, mut last) = published(200);
    for generation in 1..u32::try_from(limits::MERGE_AT_LAYERS).expect("a small number") {
        last = child(&engine, &last, run(2 * generation, 1), u64::from(generation));
    }
    wait_published(&last.0);
    let cold = open_elsewhere(&site, &last.0);
    let guest = Guest::resume(&cold.snapshot, last.1);
    let hanging = site.faults.inject(Rule::always(Operation::Get, "layers", Fault::Stall));
    let (snapshot, _) = pause(&cold.engine, guest);
    site.faults.wait_stalled();
    assert!(snapshot.manifest_now().is_none(), "it waits for what is to be merged");
    drop(cold);
    drop(hanging);
}
