//! Cases of collectors: all that nobody needs goes, and nothing that somebody needs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use object_store::ObjectStore;
use rekindle_engine::collect_steps::Verdict;
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::limits;
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::store_gate::OtherStore;
use rekindle_testkit::guest::{Guest, judge};
use rekindle_testkit::model::ModelMemory;
use rekindle_testkit::random::Random;
use rekindle_testkit::site::{PATIENCE, Site};
use rekindle_testkit::stores::{Fault, Operation, Rule, UnreliableStore};

use crate::roots::{begin, begin_unreliable, begun_with, copies, names, put, roots, wait_no_roots};
use crate::run_roots::wait_for;
use crate::store::start_gated;
use crate::{check_elsewhere, child, first_pause, pause, run, site, wait_published};

type Kept = (Arc<Snapshot>, ModelMemory);

/// Deletes a snapshot, and waits until its node has nothing more to do for that.
fn delete(site: &Site, engine: &Engine, snapshot: &Arc<Snapshot>) {
    engine.delete(snapshot).expect("a disk");
    let id = snapshot.id();
    wait_for("it is deleted from the store", || {
        let tombstone = format!("deleted/{id}");
        let has_tombstone = names(site, "deleted").iter().any(|path| path.as_ref() == tombstone);
        has_tombstone && names(site, &format!("manifests/{id}")).is_empty()
    });
    wait_for("its roots are gone", || roots(site).iter().all(|root| root.snapshot != id));
}

pub(crate) fn collect(engine: &Engine) {
    engine.collect(Duration::ZERO).expect("the store is there");
}

/// Names of objects that are not there for good.
fn transient(site: &Site) -> Vec<String> {
    let stays = ["store", "nodes", "deleted", "domains"];
    let names = names(site, "").into_iter().map(|path| path.to_string());
    names.filter(|name| !stays.iter().any(|place| name.split('/').next() == Some(*place))).collect()
}

#[test]
fn all_that_was_published_and_deleted_is_collected_until_only_identity_signs_and_tombstones_are_left() {
    let site = site();
    let engine = begin(&site);
    let first = first_pause(&engine, 50);
    let second = child(&engine, &first, run(20, 6), 2);
    wait_published(&first.0);
    wait_published(&second.0);
    wait_no_roots(&site);
    let before = transient(&site);
    collect(&engine);
    assert_eq!(transient(&site), before, "all of it is needed");
    delete(&site, &engine, &first.0);
    let judged = engine.judge_store().expect("the store is there");
    assert!(judged.iter().all(|judged| matches!(judged.verdict, Verdict::Kept(_))), "{judged:?}");
    collect(&engine);
    check_elsewhere(&site, &second);
    delete(&site, &engine, &second.0);
    let waiting = engine.collect(Duration::from_secs(3600)).expect("the store is there");
    assert_eq!((waiting.condemned, waiting.deleted, waiting.waiting), (2, 0, 2));
    assert_eq!(names(&site, "layers").len(), 2, "their probation is not over");
    // The next process of the node knows what the last one has condemned.
    drop((first, second, engine));
    let engine = begin(&site);
    // No sandbox of that process runs from what it deleted.
    engine.end_replay();
    let again = engine.collect(Duration::ZERO).expect("the store is there");
    assert_eq!((again.condemned, again.waiting), (0, 2));
    let other = site.elsewhere().expect("a directory");
    let other = begin(&other);
    collect(&other);
    let left: Vec<_> = transient(&site).into_iter().filter(|name| !name.starts_with("condemned/")).collect();
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn a_second_pass_reads_no_manifest_again() {
    let site = site();
    let engine = begin(&site);
    let first = first_pause(&engine, 8);
    wait_published(&first.0);
    collect(&engine);
    let read = engine.collect_counts().manifests_read;
    assert_eq!(read, 1);
    collect(&engine);
    assert_eq!(engine.collect_counts().manifests_read, read);
    let second = child(&engine, &first, run(2, 2), 2);
    wait_published(&second.0);
    collect(&engine);
    assert_eq!(engine.collect_counts().manifests_read, read + 1);
}

#[test]
fn a_pass_after_a_restart_reads_no_manifest_that_was_read_before_and_any_if_the_memory_is_damaged() {
    let site = site();
    let engine = begin(&site);
    let first = first_pause(&engine, 8);
    let second = child(&engine, &first, run(2, 2), 2);
    wait_published(&first.0);
    wait_published(&second.0);
    collect(&engine);
    assert_eq!(engine.collect_counts().manifests_read, 2);
    delete(&site, &engine, &second.0);
    collect(&engine);
    drop((first, second, engine));
    let engine = begin(&site);
    collect(&engine);
    assert_eq!(engine.collect_counts().manifests_read, 0);
    drop(engine);
    std::fs::write(site.manifest_memory(), b"RKMM").expect("a disk");
    let engine = begin(&site);
    collect(&engine);
    assert_eq!(engine.collect_counts().manifests_read, 1);
    assert_eq!(names(&site, "layers").len(), 1, "the first snapshot is there");
}

#[test]
fn a_manifest_that_cannot_be_read_stops_collection_and_is_named_until_its_snapshot_is_deleted() {
    let site = site();
    let engine = begin(&site);
    let first = first_pause(&engine, 8);
    wait_published(&first.0);
    let strange = SnapshotId::new();
    put(&site, &format!("manifests/{strange}/1"), b"no manifest".to_vec());
    let error = engine.collect(Duration::ZERO).expect_err("it may name anything").to_string();
    assert!(error.contains(&format!("manifests/{strange}/1")), "{error}");
    put(&site, &format!("deleted/{strange}"), br#"{"version":1}"#.to_vec());
    collect(&engine);
    check_elsewhere(&site, &first);
    assert!(names(&site, &format!("manifests/{strange}")).is_empty());
}

#[test]
fn a_sandbox_goes_on_that_reads_a_snapshot_which_another_node_deleted_and_collected() {
    let (site, engine, first) = begun_with(50);
    let there = site.elsewhere().expect("a directory");
    let elsewhere = begin(&there);
    let opened = elsewhere.open(first.0.id()).expect("it is published");
    let runs_from = elsewhere.runs_from(&opened);
    wait_for("a root is there", || roots(&site).len() == 1);
    engine.delete(&first.0).expect("a disk");
    wait_for("its manifest is gone", || names(&site, "manifests").is_empty());
    collect(&engine);
    collect(&elsewhere);
    judge(&elsewhere, &opened, &first.1).expect("every page is the model's");
    let third = site.elsewhere().expect("a directory");
    let told = begin(&third).open(first.0.id()).expect_err("it is deleted").to_string();
    assert!(told.contains("was deleted by node ") && told.ends_with("minutes ago"), "{told}");
    drop(runs_from);
    collect(&elsewhere);
    assert_eq!(transient(&site), Vec::<String>::new());
}

#[test]
fn a_sandbox_that_began_before_the_deletion_keeps_its_pages_though_its_root_comes_after_the_collectors_list()
{
    let (site, engine, first) = begun_with(50);
    let there = site.elsewhere().expect("a directory");
    let (elsewhere, faults) = begin_unreliable(&there);
    let opened = elsewhere.open(first.0.id()).expect("it is published");
    let late = faults.inject(Rule::always(Operation::Put, "roots/", Fault::Stall));
    let runs_from = elsewhere.runs_from(&opened);
    let third = site.elsewhere().expect("a directory");
    let second_look_after = limits::SECOND_LOOK_AFTER;
    let options = EngineOptions { second_look_after, ..third.options() };
    let collecting = Engine::start(options).expect("threads for an engine");
    delete(&site, &engine, &first.0);
    std::thread::scope(|scope| {
        let collected = scope.spawn(|| collecting.collect(Duration::ZERO).expect("the store is there"));
        wait_for("the layer is condemned", || !names(&site, "condemned").is_empty());
        drop(late);
        assert_eq!(collected.join().expect("it does not panic").deleted, 0);
    });
    judge(&elsewhere, &opened, &first.1).expect("every page is the model's");
    drop(runs_from);
}

/// The requests of a collector, but for the checks that its store is the right one.
const REQUESTS: [(Operation, &str); 10] = [
    (Operation::Put, "nodes/"),
    (Operation::List, "roots"),
    (Operation::List, "deleted"),
    (Operation::List, "manifests"),
    (Operation::Get, "manifests/"),
    (Operation::List, "layers"),
    (Operation::Put, "condemned/"),
    (Operation::List, "condemned"),
    (Operation::Delete, "layers/"),
    (Operation::Delete, "condemned/"),
];

#[test]
fn a_collector_that_dies_at_any_request_and_is_begun_again_takes_all_that_is_deleted_and_nothing_else() {
    let site = site();
    let unreliable = UnreliableStore::new(site.objects.clone());
    let faults = unreliable.faults();
    let objects: Arc<dyn ObjectStore> = Arc::new(unreliable);
    let start = || start_gated(&site, objects.clone(), OtherStore::Refused);
    let mut engine = start();
    let (kept, memory) = first_pause(&engine, 8);
    wait_published(&kept);
    let (id, needed) = (kept.id(), copies(&kept).iter().map(ToString::to_string).collect::<Vec<_>>());
    drop(kept);
    let mut deaths = 0;
    for (fault, (on, under)) in
        [Fault::Fail, Fault::Lie].into_iter().flat_map(|fault| REQUESTS.map(|on| (fault, on)))
    {
        for after in 0.. {
            let kept = (engine.open(id).expect("it is known"), memory.clone());
            let doomed = child(&engine, &kept, run(2, 2), 2 + deaths);
            wait_published(&doomed.0);
            delete(&site, &engine, &doomed.0);
            drop((kept, doomed));
            let dying = faults.inject(Rule { after, ..Rule::always(on, under, fault) });
            let died = engine.collect(Duration::ZERO);
            deaths += 1;
            if deaths % 2 == 0 {
                drop(engine);
                engine = start();
                engine.end_replay();
            }
            drop(dying);
            wait_for("the store is used again", || engine.collect(Duration::ZERO).is_ok());
            let left: Vec<_> = names(&site, "layers").iter().map(ToString::to_string).collect();
            assert_eq!(left, needed, "{fault:?} of {on:?} {under} after {after}");
            assert!(names(&site, "condemned").is_empty());
            if died.is_ok() {
                break;
            }
        }
    }
    println!("a collector died {deaths} times");
    check_elsewhere(&site, &(engine.open(id).expect("it is known"), memory));
}

/// Snapshots of all nodes that were not deleted.
type Alive = Mutex<BTreeMap<SnapshotId, ModelMemory>>;

#[test]
fn nodes_that_publish_delete_and_collect_at_once_lose_no_snapshot_and_leave_nothing() {
    for seed in [1, 2] {
        println!("seed {seed}");
        let site = site();
        let sites = [site.elsewhere().expect("a directory"), site.elsewhere().expect("a directory")];
        let engines = sites.each_ref().map(begin);
        let alive = Alive::default();
        std::thread::scope(|scope| {
            for (number, engine) in (1..).zip(&engines) {
                let alive = &alive;
                scope.spawn(move || live(engine, alive, &mut Random::new(100 * seed + number)));
            }
        });
        let alive = alive.into_inner().expect("no thread panicked");
        println!("{} snapshots are left, {:?}", alive.len(), engines.each_ref().map(Engine::collect_counts));
        for engine in &engines {
            collect(engine);
        }
        let reader = site.elsewhere().expect("a directory");
        let reader = begin(&reader);
        for (id, memory) in &alive {
            let opened = reader.open(*id).expect("it was not deleted");
            judge(&reader, &opened, memory).expect("every page is the model's");
            reader.delete(&opened).expect("a disk");
        }
        for engine in engines.iter().chain([&reader]) {
            for snapshot in engine.snapshots() {
                engine.delete(&snapshot).expect("a disk");
            }
        }
        wait_for("all is collected", || {
            for engine in &engines {
                collect(engine);
            }
            transient(&site).is_empty()
        });
    }
}

/// The life of one node: it makes snapshots, also from those of the other one, deletes and collects.
fn live(engine: &Engine, alive: &Alive, random: &mut Random) {
    for _ in 0..40 {
        match random.below(8) {
            0 => publish(engine, alive, first_pause(engine, 12)),
            1..=3 => grow(engine, alive, random),
            4..=5 => drop_one(engine, alive, random),
            _ => drop(engine.collect(Duration::from_millis(u64::from(random.below(3))))),
        }
    }
}

/// A child of any snapshot, which may be deleted meanwhile.
fn grow(engine: &Engine, alive: &Alive, random: &mut Random) {
    let Some((id, memory)) = any_of(alive, random) else { return };
    let Ok(parent) = engine.open(id) else { return };
    let runs_from = engine.runs_from(&parent);
    let mut guest = Guest::resume(&parent, memory);
    let written = run(random.below(8), 3);
    if guest.write_random(engine, written, &mut Random::new(random.number())).is_ok() {
        publish(engine, alive, pause(engine, guest));
    }
    drop(runs_from);
}

/// Waits until a snapshot is published. One whose parent's pages were deleted before this node relied on them is given up.
fn publish(engine: &Engine, alive: &Alive, (snapshot, memory): Kept) {
    let begun = Instant::now();
    while snapshot.state() != SnapshotState::Published {
        assert!(begun.elapsed() < PATIENCE, "it is not published: {:?}", snapshot.status());
        let failure = snapshot.status().failure.unwrap_or_default();
        if failure.contains("not in the store") {
            return engine.delete(&snapshot).expect("a disk");
        }
        std::thread::yield_now();
    }
    alive.lock().expect("no thread panicked").insert(snapshot.id(), memory);
}

fn drop_one(engine: &Engine, alive: &Alive, random: &mut Random) {
    let Some((id, _)) = any_of(alive, random) else { return };
    let Ok(snapshot) = engine.open(id) else { return };
    if alive.lock().expect("no thread panicked").remove(&id).is_some() {
        engine.delete(&snapshot).expect("a disk");
    }
}

fn any_of(alive: &Alive, random: &mut Random) -> Option<(SnapshotId, ModelMemory)> {
    let alive = alive.lock().expect("no thread panicked");
    let at = random.position(alive.len().max(1));
    alive.iter().nth(at).map(|(id, memory)| (*id, memory.clone()))
}
