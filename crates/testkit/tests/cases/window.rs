//! Cases while a pause is being saved: comparing is held and never ends.

use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::manifest::Publication;
use rekindle_engine::view::ViewPhase;
use rekindle_testkit::guest::{Guest, Tracking};
use rekindle_testkit::hooks::Point;
use rekindle_testkit::random::Random;
use rekindle_testkit::site::PATIENCE;

use crate::{
    check, check_elsewhere, child, first_pause, pause, run, site, start, wait_published, wait_sealed,
};

#[test]
fn case_12_nothing_waits_for_a_compare_that_never_ends() {
    let site = site();
    let engine = start(&site);
    let _held = site.hooks.hold(Point::Compare);
    let first = first_pause(&engine, 500);
    assert!(site.hooks.wait_standing(Point::Compare, first.0.id(), PATIENCE));
    let mut overlapping = Guest::resume(&first.0, first.1.clone());
    overlapping.verify(&engine).expect("every page is the model's");
    overlapping.write_random(&engine, run(100, 50), &mut Random::new(2)).expect("a guest that runs");
    let second = pause(&engine, overlapping);
    let mut forks = [3, 4].map(|seed| child(&engine, &second, run(120, 40), seed));
    for fork in &mut forks {
        let mut guest = Guest::resume(&fork.0, fork.1.clone());
        guest.verify(&engine).expect("every page is the model's");
        guest.remove(run(0, 100));
        guest.verify(&engine).expect("every page is the model's");
    }
    for snapshot in [&first, &second, &forks[0], &forks[1]] {
        check(&engine, snapshot);
        assert_eq!(snapshot.0.state(), SnapshotState::Captured);
        assert_eq!(snapshot.0.memory().load().phase(), ViewPhase::Captured);
        assert!(snapshot.0.manifest_now().is_none(), "asking for it does not wait");
    }
}

#[test]
fn case_13_three_pauses_deep_with_the_parent_deleted_meanwhile() {
    let site = site();
    let engine = start(&site);
    let held = site.hooks.hold(Point::Compare);
    let first = first_pause(&engine, 300);
    let second = child(&engine, &first, run(20, 200), 2);
    let third = child(&engine, &second, run(100, 150), 3);
    engine.delete(&first.0).expect("nothing to write");
    engine.delete(&second.0).expect("nothing to write");
    let fork = child(&engine, &second, run(0, 10), 4);
    for snapshot in [&first, &second, &third, &fork] {
        check(&engine, snapshot);
    }
    drop(held);
    wait_published(&third.0);
    wait_published(&fork.0);
    check(&engine, &third);
    check_elsewhere(&site, &third);
    check_elsewhere(&site, &fork);
    for deleted in [&first.0, &second.0] {
        assert_eq!(deleted.state(), SnapshotState::Discarded);
        assert!(engine.open(deleted.id()).is_err(), "a deleted snapshot is in no store");
    }
}

#[test]
fn a_page_given_back_in_the_window_is_zero_in_every_generation_after_it() {
    let site = site();
    let engine = start(&site);
    let held = site.hooks.hold(Point::Compare);
    let first = first_pause(&engine, 100);
    let mut guest = Guest::resume(&first.0, first.1.clone());
    guest.remove(run(10, 30));
    guest.read(&engine, run(0, 20)).expect("every page is the model's");
    let second = pause(&engine, guest);
    let third = child(&engine, &second, run(30, 5), 3);
    check(&engine, &third);
    drop(held);
    wait_published(&third.0);
    check(&engine, &third);
    check_elsewhere(&site, &third);
}

#[test]
fn a_child_packs_before_its_parent_has_a_name() {
    let site = site();
    let engine = start(&site);
    let held = site.hooks.hold(Point::Manifest);
    let first = first_pause(&engine, 100);
    let second = child(&engine, &first, run(10, 30), 2);
    for (snapshot, _) in [&first, &second] {
        assert!(site.hooks.wait_standing(Point::Manifest, snapshot.id(), PATIENCE));
        assert_eq!(snapshot.memory().load().phase(), ViewPhase::Packed);
    }
    check(&engine, &second);
    drop(held);
    wait_published(&second.0);
    check_elsewhere(&site, &second);
}

#[test]
fn nothing_is_compared_before_the_vmm_has_let_go_of_the_memory() {
    let site = site();
    let engine = start(&site);
    let mut guest = Guest::fresh(50);
    guest.write_random(&engine, run(0, 50), &mut Random::new(1)).expect("its own pages");
    let paused = guest.pause(&engine, Tracking::Resident).expect("nothing stands against it");
    let held = site.hooks.hold(Point::Compare);
    assert!(
        !site.hooks.wait_standing(
            Point::Compare,
            paused.snapshot.id(),
            std::time::Duration::from_millis(100)
        ),
        "its memory can still be written"
    );
    let child_of_unfrozen = child(&engine, &(paused.snapshot.clone(), paused.memory.clone()), run(0, 5), 2);
    check(&engine, &child_of_unfrozen);
    drop(held);
    let ended = paused.end_vmm();
    wait_sealed(&ended.0);
    wait_published(&child_of_unfrozen.0);
    check_elsewhere(&site, &child_of_unfrozen);
}

#[test]
fn case_15_and_17_odd_maps_are_sealed_stored_and_read_back() {
    let site = site();
    let engine = start(&site);
    // One page, and sizes that are not a multiple of a frame or of 2 MiB.
    for pages in [1, 63, 65, 511, 513, 1025] {
        let nothing = pause(&engine, Guest::fresh(pages));
        let mut guest = Guest::resume(&nothing.0, nothing.1.clone());
        for page in (0..pages).step_by(2) {
            guest.write_random(&engine, run(page, 1), &mut Random::new(u64::from(page))).expect("its pages");
        }
        let alternating = pause(&engine, guest);
        // The gaps are in a second layer, so neighbours in the guest are not neighbours in any layer.
        let mut guest = Guest::resume(&alternating.0, alternating.1.clone());
        for page in (1..pages).step_by(2) {
            guest.write_random(&engine, run(page, 1), &mut Random::new(u64::from(page))).expect("its pages");
        }
        let filled = pause(&engine, guest);
        let unchanged = pause(&engine, Guest::resume(&filled.0, filled.1.clone()));
        for snapshot in [&nothing, &alternating, &filled, &unchanged] {
            wait_published(&snapshot.0);
            check(&engine, snapshot);
            check_elsewhere(&site, snapshot);
        }
        let manifest = unchanged.0.manifest_now().expect("it is published");
        assert!(manifest.layers().len() <= 2, "what holds no page is not named");
    }
}

#[test]
fn case_16_whatever_is_published_is_read_back_by_the_same_rules() {
    let site = site();
    let engine = start(&site);
    let first = first_pause(&engine, 700);
    let second = child(&engine, &first, run(64, 3), 2);
    wait_published(&second.0);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers");
    let path = object_store::path::Path::from(format!("manifests/{}/1", second.0.id()));
    let bytes = runtime.block_on(async {
        let answer = object_store::ObjectStoreExt::get(&*site.objects, &path).await.expect("it is published");
        answer.bytes().await.expect("from memory")
    });
    let keys = KeyRing::of_name("default");
    let publication = Publication::decode(&bytes, &keys).expect("we wrote it");
    assert_eq!(publication.encode(keys.own()), bytes);
}

#[test]
fn a_parent_whose_memory_may_still_be_written_is_not_compared_with() {
    let site = site();
    let engine = start(&site);
    let mut guest = Guest::fresh(40);
    guest.write_random(&engine, run(0, 40), &mut Random::new(1)).expect("its own pages");
    let parent = guest.pause(&engine, Tracking::Exact).expect("nothing stands against it");
    let mut guest = Guest::resume(&parent.snapshot, parent.memory.clone());
    // The same bytes again: equal, as long as the parent's VMM does not change its own.
    for page in run(3, 5).iter() {
        let same = guest.expected().page(page).to_vec();
        guest.write(&engine, page, 0, &same).expect("a guest that runs");
    }
    let held = site.hooks.hold(Point::Manifest);
    let child = pause(&engine, guest);
    assert!(site.hooks.wait_standing(Point::Manifest, child.0.id(), PATIENCE));
    let classes = child.0.status().classes.expect("compared");
    assert_eq!((classes.equal, classes.kept, classes.unread), (0, 5, 5));
    drop(held);
    let parent = parent.end_vmm();
    for snapshot in [&parent, &child] {
        wait_published(&snapshot.0);
        check(&engine, snapshot);
        check_elsewhere(&site, snapshot);
    }
}
