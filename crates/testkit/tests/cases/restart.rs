//! Cases of a node's process that dies, at every step of a snapshot's life, and is followed by another.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use object_store::ObjectStoreExt;
use rekindle_engine::catalog::Catalog;
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::keep::Keeper;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::open::OpenError;
use rekindle_engine::pause::PauseError;
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::watch::Watcher;
use rekindle_testkit::guest::{Guest, Tracking, judge};
use rekindle_testkit::hooks::Point;
use rekindle_testkit::model::ModelMemory;
use rekindle_testkit::random::Random;
use rekindle_testkit::site::{PATIENCE, Site};
use rekindle_testkit::stores::{Fault, Operation, Rule};

use crate::{
    check, check_elsewhere, child, first_pause, pause, run, site, verified, wait_published, wait_sealed,
};

pub(crate) type Known = (Arc<Snapshot>, ModelMemory);

/// An engine with the site's catalog and keeper.
pub(crate) fn start(site: &Site) -> Engine {
    Engine::start(site.recording().expect("nobody else has the catalog")).expect("an engine starts")
}

/// Ids and expected content of the snapshots that are left once the process has died.
pub(crate) fn end<const N: usize>(engine: Engine, known: [Known; N]) -> [(SnapshotId, ModelMemory); N] {
    engine.stop();
    let left = known.map(|(snapshot, memory)| (snapshot.id(), memory));
    drop(engine);
    left
}

pub(crate) fn find<const N: usize>(engine: &Engine, left: [(SnapshotId, ModelMemory); N]) -> [Known; N] {
    left.map(|(id, memory)| (engine.snapshot(id).expect("it was acknowledged"), memory))
}

pub(crate) fn states(engine: &Engine) -> Vec<SnapshotState> {
    engine.snapshots().iter().map(|snapshot| snapshot.state()).collect()
}

/// Checked at once, then saved, then checked elsewhere.
pub(crate) fn check_and_publish<const N: usize>(site: &Site, engine: &Engine, known: &[Known; N]) {
    known.iter().for_each(|known| check(engine, known));
    known.iter().for_each(|known| wait_published(&known.0));
    known.iter().for_each(|known| check_elsewhere(site, known));
    assert!(site.keeper.wait_empty(PATIENCE), "memory of published snapshots is kept");
}

#[test]
fn case_50_a_pause_that_was_answered_is_there_after_a_crash_at_every_step_of_its_life() {
    for point in [Point::Compare, Point::Manifest, Point::Record, Point::Forget] {
        let site = site();
        let engine = start(&site);
        let held = site.hooks.hold(point);
        let first = first_pause(&engine, 150);
        let second = child(&engine, &first, run(20, 60), 2);
        let third = child(&engine, &second, run(70, 30), 3);
        assert!(site.hooks.wait_standing(point, first.0.id(), PATIENCE));
        engine.stop();
        drop(held);
        let left = end(engine, [first, second, third]);
        let engine = start(&site);
        let replay = engine.replayed();
        assert_eq!((replay.sealed + replay.captured, replay.lost.len()), (3, 0), "{point:?}");
        assert_eq!(replay.sealed > 0, point == Point::Forget, "{replay:?}");
        let known = find(&engine, left);
        assert_eq!(known[2].0.parent_id(), Some(known[1].0.id()));
        assert_eq!(known[2].0.generation(), 2);
        let forked = child(&engine, &known[1], run(0, 9), 4);
        let [first, second, third] = known;
        check_and_publish(&site, &engine, &[first, second, third, forked]);
    }
}

#[test]
fn pages_that_were_fetched_before_a_restart_can_be_read_while_the_store_is_away() {
    // One object that is fetched whole with its table, and one that is not.
    for pages in [200, 600] {
        let (site, _engine, first) = crate::published(pages);
        let elsewhere = site.elsewhere().expect("a temporary directory");
        let engine = start(&elsewhere);
        let opened = engine.open(first.0.id()).expect("it is published");
        let known = (opened, first.1.clone());
        check(&engine, &known);
        let left = end(engine, [known]);
        let outage = site.faults.outage();
        let engine = start(&elsewhere);
        let [known] = find(&engine, left);
        check(&engine, &known);
        drop(outage);
    }
}

#[test]
fn case_51_the_list_after_a_crash_is_the_list_before_it() {
    let site = site();
    let engine = start(&site);
    let held = site.hooks.hold(Point::Compare);
    let first = first_pause(&engine, 40);
    let second = child(&engine, &first, run(0, 5), 2);
    let deleted = child(&engine, &first, run(3, 5), 3);
    engine.delete(&deleted.0).expect("the disk has room");
    let before: Vec<_> = engine.snapshots().iter().map(|snapshot| snapshot.id()).collect();
    assert_eq!(before, [first.0.id(), second.0.id()]);
    engine.stop();
    drop(held);
    let left = end(engine, [first, second, deleted]);
    let engine = start(&site);
    let after: Vec<_> = engine.snapshots().iter().map(|snapshot| snapshot.id()).collect();
    assert_eq!(after, before);
    assert_eq!(engine.replayed().deleted, 1);
    assert!(matches!(engine.open(left[2].0), Err(OpenError::Deleted { .. })), "it was deleted");
    let [first, second, _] = left;
    check_and_publish_all(&site, &engine, [first, second]);
}

pub(crate) fn check_and_publish_all<const N: usize>(
    site: &Site,
    engine: &Engine,
    left: [(SnapshotId, ModelMemory); N],
) {
    let known = find(engine, left);
    known.iter().for_each(|known| check(engine, known));
    known.iter().for_each(|known| wait_published(&known.0));
    known.iter().for_each(|known| check_elsewhere(site, known));
}

#[test]
fn nothing_is_compared_after_a_crash_before_the_vmm_has_let_go_of_the_memory() {
    let site = site();
    let engine = start(&site);
    let mut guest = Guest::fresh(30);
    guest.write_random(&engine, run(0, 30), &mut Random::new(1)).expect("its own pages");
    let paused = guest.pause(&engine, Tracking::Exact).expect("nothing stands against it");
    let vmm = paused.vmm;
    let left = end(engine, [(paused.snapshot, paused.memory)]);
    let engine = start(&site);
    let [known] = find(&engine, left);
    check(&engine, &known);
    assert!(!known.0.wait_state(SnapshotState::Sealed, Duration::from_millis(20)), "it is mapped writable");
    drop(vmm);
    check_and_publish(&site, &engine, &[known]);
}

#[test]
fn case_31_an_upload_that_a_crash_cut_short_goes_on_after_it() {
    for after in 0..4 {
        let site = site();
        let engine = start(&site);
        let gone = site.faults.inject(Rule { after, ..Rule::always(Operation::Put, "", Fault::Fail) });
        let first = first_pause(&engine, 200);
        let second = child(&engine, &first, run(20, 60), 2);
        for snapshot in [&first, &second] {
            wait_sealed(&snapshot.0);
            while snapshot.0.status().failure.is_none() && snapshot.0.state() == SnapshotState::Sealed {
                snapshot.0.wait_state(SnapshotState::Published, Duration::from_millis(5));
            }
        }
        let left = end(engine, [first, second]);
        let outage = site.faults.outage();
        let engine = start(&site);
        let known = find(&engine, left);
        known.iter().for_each(|known| check(&engine, known));
        drop(outage);
        drop(gone);
        check_and_publish(&site, &engine, &known);
    }
}

#[test]
fn case_47_a_manifest_that_reached_the_store_before_a_crash_is_put_again_with_the_same_bytes() {
    let site = site();
    let engine = start(&site);
    let lying = site.faults.inject(Rule::always(Operation::Put, "manifests/", Fault::Lie));
    let first = first_pause(&engine, 100);
    while first.0.status().failure.is_none() {
        first.0.wait_state(SnapshotState::Published, Duration::from_millis(5));
    }
    let left = end(engine, [first]);
    let before = manifest_object(&site, left[0].0);
    let puts = site.faults.calls(Operation::Put, "layers/");
    drop(lying);
    let engine = start(&site);
    let known = find(&engine, left);
    wait_published(&known[0].0);
    assert_eq!(manifest_object(&site, known[0].0.id()), before);
    assert_eq!(site.faults.calls(Operation::Put, "layers/"), puts, "what is stored is not uploaded again");
    check_and_publish(&site, &engine, &known);
}

fn manifest_object(site: &Site, id: SnapshotId) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers");
    let object = async { site.objects.get(&format!("manifests/{id}/1").into()).await?.bytes().await };
    runtime.block_on(object).expect("the manifest is there").to_vec()
}

#[test]
fn case_09_a_deletion_that_a_crash_cut_short_is_done_and_what_still_runs_from_it_goes_on() {
    let site = site();
    let engine = start(&site);
    let first = first_pause(&engine, 80);
    wait_published(&first.0);
    let mut guest = Guest::resume(&first.0, first.1.clone());
    guest.write_random(&engine, run(2, 3), &mut Random::new(5)).expect("the parent can be read");
    let outage = site.faults.outage();
    engine.delete(&first.0).expect("the disk has room");
    let origin = guest.let_go_of_parent().expect("it runs from the first");
    let [(id, _)] = end(engine, [first]);
    assert_eq!(origin, id);
    // The guest is found again and paused: its snapshot is there although it was deleted.
    let engine = start(&site);
    assert!(engine.snapshot(id).is_none() && engine.snapshots().is_empty());
    guest.stand_on(&engine.origin(id).expect("a guest runs from it"));
    engine.end_replay();
    guest.verify(&engine).expect("every page is the model's");
    let second = pause(&engine, guest);
    let third = child(&engine, &second, run(9, 9), 6);
    let left = end(engine, [second, third]);
    let engine = start(&site);
    engine.end_replay();
    let known = find(&engine, left);
    known.iter().for_each(|known| check(&engine, known));
    drop(outage);
    check_and_publish(&site, &engine, &known);
    // The first has no users any more: it is removed for good.
    let left = end(engine, known);
    let forgets = site.keeper.forgets(id);
    let engine = start(&site);
    engine.end_replay();
    if engine.replayed().deleted > 0 {
        site.keeper.wait_forgets(id, forgets + 1);
    }
    drop(engine);
    let engine = start(&site);
    assert_eq!(engine.replayed().deleted, 0);
    assert!(engine.open(id).is_err(), "it was deleted");
    check_and_publish_all(&site, &engine, left);
}

#[test]
fn what_nobody_kept_is_lost_by_name_with_what_stands_on_it_and_nothing_else_is() {
    let site = site();
    let engine = start(&site);
    let sealed = first_pause(&engine, 60);
    wait_sealed(&sealed.0);
    let held = site.hooks.hold(Point::Compare);
    let first = child(&engine, &sealed, run(0, 20), 2);
    let second = child(&engine, &first, run(5, 20), 3);
    engine.stop();
    drop(held);
    let left = end(engine, [sealed, first, second]);
    site.keeper.die();
    for _ in 0..2 {
        let engine = start(&site);
        let lost: Vec<_> = engine.replayed().lost.iter().map(|lost| lost.id).collect();
        assert_eq!(lost, [left[1].0, left[2].0]);
        let reasons: Vec<_> = engine.replayed().lost.iter().map(|lost| lost.reason.clone()).collect();
        assert!(reasons[0].contains("keeper") && reasons[1].contains(&left[1].0.to_string()), "{reasons:?}");
        let [sealed, first, _] = find(&engine, left.clone());
        check(&engine, &sealed);
        wait_published(&sealed.0);
        assert_eq!(first.0.state(), SnapshotState::Lost);
        judge(&engine, &first.0, &first.1).expect_err("no byte of it is invented");
        assert_eq!(verified(&engine, &first.0).wrong_pages, 60);
        assert!(matches!(engine.open(first.0.id()), Err(OpenError::Lost { .. })));
        assert!(matches!(engine.permit_pause(Some(&first.0), 4096), Err(PauseError::Lost { .. })));
    }
    let engine = start(&site);
    for id in [left[1].0, left[2].0] {
        engine.delete(&engine.snapshot(id).expect("listed until it is deleted")).expect("the disk has room");
    }
    drop(engine);
    let engine = start(&site);
    assert_eq!(engine.replayed().lost, []);
    assert_eq!(states(&engine), [SnapshotState::Published]);
}

#[test]
fn a_sealed_snapshot_whose_only_copy_is_gone_is_lost_by_name() {
    let site = site();
    let engine = start(&site);
    let outage = site.faults.outage();
    let first = first_pause(&engine, 60);
    let second = child(&engine, &first, run(0, 60), 2);
    wait_sealed(&second.0);
    let layer = first.0.manifest_now().expect("it is sealed").layers()[0].id;
    let left = end(engine, [first, second]);
    std::fs::remove_file(site.cache_directory().join(format!("{layer}.raw"))).expect("it is there");
    let engine = start(&site);
    let lost = &engine.replayed().lost;
    assert_eq!(lost.iter().map(|lost| lost.id).collect::<Vec<_>>(), [left[0].0]);
    assert!(lost[0].reason.contains(&layer.to_string()), "{lost:?}");
    let [_, second] = find(&engine, left);
    check(&engine, &second);
    drop(outage);
    wait_published(&second.0);
    check_elsewhere(&site, &second);
}

#[test]
fn memory_that_an_unacknowledged_pause_left_with_the_keeper_is_let_go() {
    let site = site();
    let engine = start(&site);
    let first = first_pause(&engine, 10);
    let id = first.0.id();
    let left = end(engine, [first]);
    let volumes = site.keeper.kept(id).expect("it answers");
    if let Some(volumes) = volumes {
        site.keeper.keep(SnapshotId::new(), &volumes).expect("it keeps");
    }
    let engine = start(&site);
    let [known] = find(&engine, left);
    check_and_publish(&site, &engine, &[known]);
}

#[test]
fn case_14_a_pause_that_the_keeper_refuses_leaves_nothing_behind() {
    let site = site();
    let engine = start(&site);
    site.keeper.refuse(true);
    let mut guest = Guest::fresh(10);
    guest.write_random(&engine, run(0, 10), &mut Random::new(1)).expect("its own pages");
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        guest.pause(&engine, Tracking::Exact).map(|paused| paused.snapshot)
    }));
    assert!(refused.is_err(), "the test's guest takes a refusal for a bug");
    assert!(engine.snapshots().is_empty());
    site.keeper.refuse(false);
    let held = site.keeper.held().expect("it answers");
    assert_eq!(held, []);
    drop(engine);
    let engine = start(&site);
    assert!(engine.snapshots().is_empty() && engine.replayed().lost.is_empty());
}

#[test]
fn a_catalog_has_one_user_at_a_time() {
    let site = site();
    let engine = start(&site);
    let refused = Catalog::open(&site.catalog_path()).expect_err("the engine has it");
    assert!(refused.to_string().contains("catalog.redb is in use"), "{refused}");
    drop(engine);
    Catalog::open(&site.catalog_path()).expect("nobody has it");
}

#[test]
fn memory_taken_back_counts_and_pauses_wait_for_it() {
    let site = site();
    let engine = start(&site);
    let held = site.hooks.hold(Point::Compare);
    let first = first_pause(&engine, 64);
    engine.stop();
    drop(held);
    let left = end(engine, [first]);
    let held = site.hooks.hold(Point::Compare);
    let options = EngineOptions { capture_bytes_max: 4096, pause_wait: Duration::ZERO, ..recording(&site) };
    let engine = Engine::start(options).expect("what was acknowledged needs no room");
    assert_eq!(engine.capture_bytes_held(), 64 * 4096);
    assert!(engine.permit_pause(None, 4096).is_err(), "no room");
    drop(held);
    let known = find(&engine, left);
    check_and_publish(&site, &engine, &known);
    assert!(engine.permit_pause(None, 4096).is_ok() || engine.capture_bytes_held() > 0);
}

fn recording(site: &Site) -> EngineOptions {
    site.recording().expect("nobody else has the catalog")
}

#[test]
fn a_keeper_that_takes_anothers_place_is_given_everything_again() {
    let site = site();
    let engine = start(&site);
    let sealed = first_pause(&engine, 20);
    wait_published(&sealed.0);
    let held = site.hooks.hold(Point::Compare);
    let first = child(&engine, &sealed, run(0, 9), 2);
    let second = child(&engine, &first, run(4, 9), 3);
    engine.delete(&first.0).expect("the disk has room");
    site.keeper.die();
    let lost = [first.0.id(), second.0.id()].into();
    assert!(engine.keep_again(&lost, Vec::new()).is_empty());
    assert_eq!(site.keeper.held().expect("it answers"), [first.0.id(), second.0.id()]);
    engine.stop();
    drop(held);
    let [sealed, _, second] = end(engine, [sealed, first, second]);
    let engine = start(&site);
    let known = find(&engine, [sealed, second]);
    check_and_publish(&site, &engine, &known);
}

/// Remembers the reported states.
#[derive(Debug, Default)]
struct States(Mutex<Vec<(SnapshotId, SnapshotState)>>);

impl Watcher for States {
    fn changed(&self, snapshot: &Arc<Snapshot>) {
        self.0.lock().expect("no thread panics here").push((snapshot.id(), snapshot.state()));
    }
}

#[test]
fn a_watcher_is_told_of_every_state_before_and_after_a_crash() {
    let site = site();
    let watcher = Arc::new(States::default());
    let options = EngineOptions { watcher: watcher.clone(), ..recording(&site) };
    let engine = Engine::start(options).expect("threads for an engine");
    let outage = site.faults.outage();
    let first = first_pause(&engine, 20);
    let id = first.0.id();
    while first.0.status().failure.is_none() {
        first.0.wait_state(SnapshotState::Published, Duration::from_millis(5));
    }
    let left = end(engine, [first]);
    let told: Vec<_> = watcher.0.lock().expect("no thread panics here").drain(..).collect();
    assert_eq!(told[..2], [(id, SnapshotState::Captured), (id, SnapshotState::Sealed)]);
    drop(outage);
    let options = EngineOptions { watcher: watcher.clone(), ..recording(&site) };
    let engine = Engine::start(options).expect("threads for an engine");
    let known = find(&engine, left);
    wait_published(&known[0].0);
    engine.delete(&known[0].0).expect("the disk has room");
    drop(engine);
    let told = watcher.0.lock().expect("no thread panics here").clone();
    assert_eq!(told[..2], [(id, SnapshotState::Published), (id, SnapshotState::Discarded)]);
}

#[test]
fn a_snapshot_that_is_opened_and_deleted_while_another_open_of_it_waits_is_not_brought_back() {
    let (home, engine, known) = crate::published(100);
    let site = home.elsewhere().expect("a temporary directory");
    let id = known.0.id();
    drop((engine, known));
    let engine = start(&site);
    let [held, waiting] = [Point::Opened, Point::OpenWaits].map(|point| site.hooks.hold(point));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| engine.open(id));
        assert!(site.hooks.wait_standing(Point::Opened, id, PATIENCE));
        let second = scope.spawn(|| engine.open(id));
        assert!(site.hooks.wait_standing(Point::OpenWaits, id, PATIENCE), "two open it at once");
        drop(held);
        let opened = first.join().expect("no panic").expect("it is in the store");
        engine.delete(&opened).expect("the catalog works");
        drop(opened);
        site.faults.wait_calls(Operation::Delete, "manifests/", 1);
        drop(waiting);
        let late = second.join().expect("no panic").expect_err("it was deleted for good");
        let is_gone = matches!(late, OpenError::Deleted { .. } | OpenError::Store { .. });
        assert!(is_gone, "{late}");
    });
    assert!(engine.snapshot(id).is_none());
    drop(engine);
    let engine = start(&site);
    assert!(engine.snapshots().is_empty(), "its record came back");
}
