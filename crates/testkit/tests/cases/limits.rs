//! Limits: a pause waits for room before the guest is frozen, and a refusal gives the reason.

use std::collections::BTreeMap;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rekindle_engine::budget::BudgetError;
use rekindle_engine::capture::CapturedPages;
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::geometry::{GuestPages, bytes_of_pages};
use rekindle_engine::identity::{LayerId, SnapshotId, VolumeName};
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::manifest::VolumeManifest;
use rekindle_engine::page_set::PageSet;
use rekindle_engine::pause::{Base, PauseError, PausedGuest, PausedVolume};
use rekindle_engine::snapshot::Snapshot;
use rekindle_kernel::{Memfd, PageKind};
use rekindle_testkit::guest::{Guest, Tracking};
use rekindle_testkit::hooks::Point;
use rekindle_testkit::random::Random;
use rekindle_testkit::site::PATIENCE;

use crate::{
    check, child, first_pause, pause, run, sealed_in_an_outage, site, start, wait_published, wait_sealed,
};

#[test]
fn a_pause_over_too_many_unsealed_snapshots_is_refused_and_its_guest_runs_on() {
    let site = site();
    let options = EngineOptions { unsealed_max: 2, pause_wait: Duration::ZERO, ..site.options() };
    let engine = Engine::start(options).expect("threads for an engine");
    let held = site.hooks.hold(Point::Compare);
    let first = first_pause(&engine, 40);
    let second = child(&engine, &first, run(5, 10), 2);
    let mut guest = Guest::resume(&second.0, second.1.clone());
    guest.verify(&engine).expect("every page is the model's");
    let refused = guest.pause(&engine, Tracking::Exact).expect_err("two are unsealed");
    let PauseError::Unsealed { unsealed: 2, unsealed_max: 2, oldest } = refused.error else {
        panic!("{}", refused.error)
    };
    assert_eq!(oldest, first.0.id());
    let mut guest = refused.guest;
    guest.write_random(&engine, run(0, 40), &mut Random::new(3)).expect("it was not frozen");
    drop(held);
    wait_sealed(&first.0);
    wait_sealed(&second.0);
    let third = pause(&engine, *guest);
    wait_published(&third.0);
    check(&engine, &third);
}

#[test]
fn a_pause_beyond_the_bytes_that_may_be_only_here_is_refused_before_the_freeze_until_the_store_has_them() {
    let site = site();
    let options = EngineOptions { unpublished_bytes_max: Some(100 * 4096), ..site.options() };
    let engine = Engine::start(options).expect("threads for an engine");
    let (outage, first) = sealed_in_an_outage(&site, &engine, 100);
    let Err(refused) = Guest::resume(&first.0, first.1.clone()).pause(&engine, Tracking::Exact) else {
        unreachable!("a hundred pages are only here already")
    };
    assert!(matches!(refused.error, PauseError::Unpublished { bytes_max: 409_600, .. }), "{refused:?}");
    let mut guest = refused.guest;
    guest.verify(&engine).expect("it runs on");
    drop(outage);
    wait_published(&first.0);
    let second = guest.pause(&engine, Tracking::Exact).expect("the store has the first").end_vmm();
    wait_published(&second.0);
}

#[test]
fn a_pause_over_too_many_unsealed_snapshots_goes_on_when_the_oldest_is_sealed() {
    let site = site();
    let options = EngineOptions { unsealed_max: 1, pause_wait: PATIENCE, ..site.options() };
    let engine = Engine::start(options).expect("threads for an engine");
    let held = site.hooks.hold(Point::Compare);
    let first = first_pause(&engine, 40);
    assert!(site.hooks.wait_standing(Point::Compare, first.0.id(), PATIENCE));
    std::thread::scope(|scope| {
        let permit = scope.spawn(|| engine.permit_pause(Some(&first.0), 4096));
        drop(held);
        drop(permit.join().expect("no panic").expect("the wait ends with the seal"));
    });
    assert!(first.0.manifest_now().is_some());
}

#[test]
fn a_pause_that_nobody_wants_any_more_waits_neither_for_room_nor_for_ancestors() {
    let site = site();
    let bytes = bytes_of_pages(40);
    let options = EngineOptions {
        unsealed_max: 1,
        capture_bytes_max: bytes,
        pause_wait: Duration::MAX,
        ..site.options()
    };
    let engine = Engine::start(options).expect("threads for an engine");
    let held = site.hooks.hold(Point::Compare);
    let first = first_pause(&engine, 40);
    let own = engine.domain(None).expect("its own key is in the ring");
    for base in [Base::Domain(&own), Base::Snapshot(&first.0)] {
        let questions = AtomicUsize::new(0);
        let is_wanted = || questions.fetch_add(1, Ordering::Relaxed) < 2;
        let refused = engine.permit_pause_while(base, 4096, &is_wanted).expect_err("it cannot be had");
        assert!(matches!(refused, PauseError::Unwanted), "{refused}");
        assert_eq!(questions.load(Ordering::Relaxed), 3, "it waited two turns");
    }
    drop(held);
    wait_published(&first.0);
    drop(engine.permit_pause(Some(&first.0), bytes).expect("nothing is held for those"));
}

#[test]
fn memory_beyond_the_budget_is_refused_before_the_freeze_and_found_when_it_returns() {
    let site = site();
    let bytes = bytes_of_pages(30);
    let options = EngineOptions { capture_bytes_max: bytes, pause_wait: Duration::ZERO, ..site.options() };
    let engine = Engine::start(options).expect("threads for an engine");
    let never = engine.permit_pause(None, bytes + 1).expect_err("more than there is");
    assert!(matches!(never, PauseError::Budget(BudgetError::NeverFits { .. })), "{never}");
    let held = site.hooks.hold(Point::Compare);
    let first = first_pause(&engine, 30);
    let full = engine.permit_pause(None, 4096).expect_err("all of it is held");
    let PauseError::Budget(BudgetError::Exhausted { asked: 4096, bytes_held, .. }) = full else {
        panic!("{full}")
    };
    assert_eq!(bytes_held, bytes);
    drop(held);
    wait_published(&first.0);
    assert_eq!(first.0.state(), SnapshotState::Published);
}

#[test]
fn a_line_of_any_length_names_a_bounded_number_of_layers() {
    let site = site();
    let engine = site.engine().expect("threads for an engine");
    let mut last = first_pause(&engine, 200);
    for seed in 0..70_u32 {
        last = child(&engine, &last, run(seed * 2, 3), u64::from(seed) + 2);
        wait_sealed(&last.0);
    }
    check(&engine, &last);
    wait_published(&last.0);
    let layers = last.0.manifest_now().expect("it is published").layers().len();
    assert!(layers <= rekindle_engine::limits::MERGE_AT_LAYERS + 1, "{layers} layers");
    crate::check_elsewhere(&site, &last);
}

#[test]
fn a_pause_without_a_limit_of_time_and_with_none_unsealed_waits_for_its_parent() {
    let site = site();
    let options = EngineOptions { unsealed_max: 0, pause_wait: Duration::MAX, ..site.options() };
    let engine = Engine::start(options).expect("threads for an engine");
    let held = site.hooks.hold(Point::Compare);
    let first = first_pause(&engine, 40);
    assert!(site.hooks.wait_standing(Point::Compare, first.0.id(), PATIENCE));
    std::thread::scope(|scope| {
        let second = scope.spawn(|| child(&engine, &first, run(3, 4), 2));
        drop(held);
        check(&engine, &second.join().expect("no panic"));
    });
    assert!(first.0.manifest_now().is_some());
}

/// Pauses a machine with these volumes; in each, `written` pages from page `from` on have new bytes.
fn pause_volumes(
    engine: &Engine,
    parent: Option<&Arc<Snapshot>>,
    volumes: &[(&str, u32, GuestPages)],
    random: &mut Random,
) -> Arc<Snapshot> {
    let volumes = volumes.iter().map(|(name, pages, written)| {
        let memfd = Memfd::create("volume", bytes_of_pages(*pages), PageKind::Small).expect("memory");
        let mut bytes = vec![0; 4096];
        for page in written.iter() {
            random.fill(&mut bytes);
            memfd.write_at(&bytes, bytes_of_pages(page.number())).expect("memory");
        }
        let mut kept = PageSet::new(*pages);
        kept.insert_run(*written);
        let pages = CapturedPages { kept, zero: PageSet::new(*pages) };
        let name = VolumeName::from_str(name).expect("a name");
        PausedVolume { name, page_kind: PageKind::Small, memfd, pages }
    });
    let volumes = volumes.collect();
    let permit = engine.permit_pause(parent, bytes_of_pages(400)).expect("room");
    let guest = PausedGuest { id: SnapshotId::new(), volumes, blobs: BTreeMap::new(), alongside: Vec::new() };
    let snapshot = engine.commit_pause(permit, guest).expect("the volumes of its parent");
    wait_sealed(&snapshot);
    snapshot
}

/// The layers that each volume's pages are in.
fn layers_of(snapshot: &Snapshot) -> Vec<Vec<LayerId>> {
    let manifest = snapshot.manifest_now().expect("it is sealed");
    let layers = |volume: &VolumeManifest| {
        volume.map.live_slots().map(|slot| manifest.layers()[slot.index()].id).collect()
    };
    manifest.volumes().iter().map(layers).collect()
}

#[test]
fn a_long_line_of_memory_merges_no_layer_of_disks_that_give_no_room() {
    let site = site();
    let engine = start(&site);
    let mut random = Random::new(7);
    let volumes =
        |memory, changed| [("memory", 200, memory), ("image", 90, run(0, 0)), ("data", 90, changed)];
    let images = [("memory", 200, run(0, 200)), ("image", 90, run(0, 90)), ("data", 90, run(0, 90))];
    let first = pause_volumes(&engine, None, &images, &mut random);
    let mut last = pause_volumes(&engine, Some(&first), &volumes(run(0, 1), run(0, 2)), &mut random);
    let disks = layers_of(&last)[1..].to_vec();
    assert_eq!(disks.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2]);
    let mut longest = 0;
    for pause in 1..70 {
        last = pause_volumes(&engine, Some(&last), &volumes(run(2 * pause, 1), run(0, 0)), &mut random);
        let layers = layers_of(&last);
        assert_eq!(layers[1..], disks, "pause {pause}: a disk that nobody wrote has other layers");
        longest = longest.max(layers[0].len());
    }
    assert!((20..33).contains(&longest), "memory had {longest} layers");
    wait_published(&last);
}
