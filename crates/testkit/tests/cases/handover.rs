//! Cases between captured memory and the saved layer.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rekindle_engine::budget::Budget;
use rekindle_engine::capture::{Capture, CapturedPages};
use rekindle_engine::engine::Engine;
use rekindle_engine::engine::EngineOptions;
use rekindle_engine::geometry::bytes_of_pages;
use rekindle_engine::identity::{SnapshotId, VolumeName};
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::page_set::PageSet;
use rekindle_engine::pause::{CommitError, PausedGuest, PausedVolume};
use rekindle_engine::read_plan::ReadPlan;
use rekindle_engine::reaper::Reaper;
use rekindle_engine::view::{LiveView, PackedPages, View, ViewPhase};
use rekindle_kernel::{Memfd, PageKind};
use rekindle_testkit::guest::{Guest, Tracking};
use rekindle_testkit::hooks::{Failing, Point};
use rekindle_testkit::random::Random;
use rekindle_testkit::site::PATIENCE;
use rekindle_testkit::stores::Operation;

use crate::{
    check, check_elsewhere, child, first_pause, pause, run, site, start, wait_published, wait_sealed,
};

#[test]
fn case_01_a_read_planned_on_captured_memory_gets_its_bytes_after_the_layer_took_its_place() {
    let site = site();
    let engine = start(&site);
    let (snapshot, memory) = first_pause(&engine, 100);
    let plan = ReadPlan::new(snapshot.memory(), run(0, 100));
    wait_published(&snapshot);
    assert_eq!(snapshot.memory().load().phase(), ViewPhase::Flat);
    let mut found = vec![0; 100 * 4096];
    plan.read(engine.fetcher(), &mut found).expect("the plan owns its sources");
    memory.check(run(0, 100), &found).expect("the model's pages");
}

#[test]
fn case_02_captured_memory_returns_when_its_last_reader_goes_read_or_not() {
    let site = site();
    let bytes = bytes_of_pages(64);
    let options = EngineOptions { capture_bytes_max: bytes, pause_wait: PATIENCE, ..site.options() };
    let engine = Engine::start(options).expect("threads for an engine");
    let (snapshot, _) = first_pause(&engine, 64);
    let declined = ReadPlan::new(snapshot.memory(), run(0, 64));
    wait_published(&snapshot);
    assert_eq!(engine.capture_bytes_held(), bytes, "a plan holds what it may read");
    drop(declined);
    drop(
        engine
            .permit_pause(None, bytes)
            .expect("no word and no timer gives the memory back, only its owners"),
    );
}

#[test]
fn case_03_what_has_no_bytes_yet_has_no_name_that_a_child_could_store() {
    let site = site();
    let engine = start(&site);
    let held = site.hooks.hold(Point::Compare);
    let parent = first_pause(&engine, 200);
    let child = child(&engine, &parent, run(50, 20), 2);
    site.hooks.let_through(Point::Compare, child.0.id());
    assert!(site.hooks.wait_standing(Point::Compare, parent.0.id(), PATIENCE));
    assert!(parent.0.manifest_now().is_none());
    assert!(child.0.wait_manifest(Duration::from_millis(50)).is_err(), "its parent has no names yet");
    assert_eq!(site.faults.calls(Operation::Put, ""), 0);
    check(&engine, &child);
    drop(held);
    wait_published(&parent.0);
    wait_published(&child.0);
    check_elsewhere(&site, &child);
}

#[test]
fn case_06_a_late_replacement_of_a_view_changes_nothing() {
    let reaper = Reaper::start().expect("a thread");
    let lease = Budget::new(4096).lease(4096, Duration::ZERO).expect("room");
    let memfd = Memfd::create("test", 4096, PageKind::Small).expect("memory");
    let pages = CapturedPages { kept: PageSet::new(1), zero: PageSet::full(1) };
    let capture =
        std::sync::Arc::new(Capture::adopt(memfd, pages, lease, reaper.handle()).expect("one page"));
    let live = LiveView::new(View::captured(std::sync::Arc::clone(&capture), None));
    let first = live.load();
    let packed = || View::packed(PackedPages { layer: None, zero: PageSet::full(1) }, None);
    assert!(live.improve(&first, packed()));
    let better = live.load();
    assert!(!live.improve(&first, packed()), "it was planned on a view that is not there any more");
    assert!(!live.improve(&better, packed()), "it is no step forward");
    assert!(!live.improve(&better, View::captured(capture, None)), "it is a step back");
    assert!(std::sync::Arc::ptr_eq(&live.load(), &better));
}

#[test]
fn case_07_a_reader_between_planning_and_reading_never_falls_through_to_the_store() {
    let site = site();
    let engine = start(&site);
    let first = first_pause(&engine, 300);
    let second = child(&engine, &first, run(10, 100), 2);
    let plan = ReadPlan::new(second.0.memory(), run(0, 300));
    wait_published(&first.0);
    wait_published(&second.0);
    // Publishing asked whether the objects are there.
    let asked = site.faults.calls(Operation::Get, "layers/");
    engine.delete(&first.0).expect("nothing to write");
    engine.delete(&second.0).expect("nothing to write");
    let _outage = site.faults.outage();
    let mut found = vec![0; 300 * 4096];
    plan.read(engine.fetcher(), &mut found).expect("the plan owns its sources");
    second.1.check(run(0, 300), &found).expect("the model's pages");
    assert_eq!(site.faults.calls(Operation::Get, "layers/"), asked);
}

#[test]
fn case_11_no_single_failing_read_of_the_parent_loses_or_changes_a_snapshot() {
    let site = site();
    let engine = start(&site);
    let grandparent = first_pause(&engine, 120);
    let parent = child(&engine, &grandparent, run(30, 20), 2);
    wait_published(&parent.0);
    site.hooks.fail_parent_reads(Failing::None);
    let resumed = |failing| {
        let mut guest = Guest::resume(&parent.0, parent.1.clone());
        guest.verify(&engine).expect("the parent can be read");
        guest.write_random(&engine, run(45, 10), &mut Random::new(3)).expect("pages that are there");
        site.hooks.fail_parent_reads(failing);
        let paused = guest.pause(&engine, Tracking::Resident).expect("nothing stands against it").end_vmm();
        wait_published(&paused.0);
        paused
    };
    let whole = resumed(Failing::None);
    let reads = site.hooks.parent_reads();
    assert!(reads >= 3, "the parent is read in {reads} pieces");
    assert_eq!(whole.0.status().classes.expect("compared").unread, 0);
    for nth in 0..reads {
        let paused = resumed(Failing::Nth(nth));
        assert!(paused.0.status().classes.expect("compared").unread > 0, "read {nth} fails");
        check(&engine, &paused);
        check_elsewhere(&site, &paused);
    }
    let paused = resumed(Failing::OneOf(1));
    assert_eq!(paused.0.status().classes.expect("compared").kept, 120);
    check_elsewhere(&site, &paused);
}

#[test]
fn case_14_a_pause_that_is_given_up_leaves_nothing_behind() {
    let site = site();
    let engine = start(&site);
    let (snapshot, _) = first_pause(&engine, 8);
    wait_published(&snapshot);
    let permit = engine.permit_pause(Some(&snapshot), 1 << 20).expect("room");
    assert!(engine.capture_bytes_held() >= 1 << 20);
    let volume = PausedVolume {
        name: VolumeName::memory(),
        page_kind: PageKind::Small,
        memfd: Memfd::create("guest", 9 * 4096, PageKind::Small).expect("memory"),
        pages: CapturedPages { kept: PageSet::new(9), zero: PageSet::new(9) },
    };
    let guest = PausedGuest {
        id: SnapshotId::new(),
        volumes: vec![volume],
        blobs: BTreeMap::new(),
        alongside: Vec::new(),
    };
    let refused = engine.commit_pause(permit, guest);
    assert!(matches!(refused, Err(CommitError::Volumes { .. })));
    drop(engine.permit_pause(Some(&snapshot), 1 << 20).expect("room"));
    assert_eq!(site.faults.calls(Operation::Put, "manifests/"), 1, "nothing came of it");
}

#[test]
fn case_48_changes_made_after_the_second_resume_are_kept() {
    let site = site();
    let engine = start(&site);
    let mut last = first_pause(&engine, 90);
    for round in 0..5 {
        last = child(&engine, &last, run(round * 15, 17), u64::from(round) + 2);
        check(&engine, &last);
    }
    wait_published(&last.0);
    check_elsewhere(&site, &last);
}

#[test]
fn case_49_a_snapshot_is_resumed_as_often_as_one_likes_and_stays_what_it_was() {
    let site = site();
    let engine = start(&site);
    let snapshot = first_pause(&engine, 60);
    for seed in 0..6 {
        let forked = child(&engine, &snapshot, run(0, 60), seed + 10);
        check(&engine, &forked);
        check(&engine, &snapshot);
    }
    wait_published(&snapshot.0);
    check_elsewhere(&site, &snapshot);
}

#[test]
fn case_55_a_sealed_parents_memory_returns_although_its_child_is_not_sealed() {
    let site = site();
    let bytes = bytes_of_pages(64);
    let options = EngineOptions { capture_bytes_max: 2 * bytes, pause_wait: PATIENCE, ..site.options() };
    let engine = Engine::start(options).expect("threads for an engine");
    let held = site.hooks.hold(Point::Compare);
    let parent = first_pause(&engine, 64);
    let mut guest = Guest::resume(&parent.0, parent.1.clone());
    guest.write_random(&engine, run(0, 64), &mut Random::new(2)).expect("the parent can be read");
    let child = pause(&engine, guest);
    assert_eq!(engine.capture_bytes_held(), 2 * bytes);
    site.hooks.let_through(Point::Compare, parent.0.id());
    wait_sealed(&parent.0);
    drop(engine.permit_pause(None, bytes).expect("the parent's memory is free while the child is unsealed"));
    assert_eq!(child.0.state(), SnapshotState::Captured);
    check(&engine, &child);
    drop(held);
    wait_published(&child.0);
}

#[test]
fn case_56_the_last_owner_of_a_capture_does_not_free_it_on_its_own_thread() {
    struct Busy(Receiver<()>);
    impl Drop for Busy {
        fn drop(&mut self) {
            self.0.recv().ok();
        }
    }
    let reaper = Reaper::start().expect("a thread");
    let (release, released) = channel();
    reaper.handle().discard(Busy(released));
    let budget = Budget::new(4096);
    let lease = budget.lease(4096, Duration::ZERO).expect("room");
    let memfd = Memfd::create("test", 4096, PageKind::Small).expect("memory");
    let pages = CapturedPages { kept: PageSet::full(1), zero: PageSet::new(1) };
    drop(Capture::adopt(memfd, pages, lease, reaper.handle()).expect("one page"));
    assert_eq!(
        budget.bytes_held(),
        4096,
        "only the reaper frees, and it is busy; the bytes count until then"
    );
    release.send(()).expect("the reaper waits for it");
    drop(budget.lease(4096, PATIENCE).expect("the reaper frees it in its turn"));
}
