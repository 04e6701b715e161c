//! Cases of a node that starts on an incomplete catalog or incomplete files: it sets aside, lists as undecided, and
//! removes nothing.

use rekindle_engine::catalog::{Catalog, Change, Kind};
use rekindle_engine::identity::LayerId;
use rekindle_engine::keep::Keeper as _;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_testkit::guest::Guest;
use rekindle_testkit::hooks::Point;
use rekindle_testkit::random::Random;
use rekindle_testkit::site::{PATIENCE, Site};

use crate::restart::{Known, check_and_publish, check_and_publish_all, end, find, start, states};
use crate::{check, child, first_pause, pause, run, sealed_in_an_outage, site, wait_published, wait_sealed};

#[test]
fn case_35_a_start_sets_aside_what_nobody_names_and_nothing_else() {
    let site = site();
    let engine = start(&site);
    let (outage, first) = sealed_in_an_outage(&site, &engine, 150);
    let layer = first.0.manifest_now().expect("it is sealed").layers()[0].id;
    let left = end(engine, [first]);
    let stray = site.cache_directory().join(format!("{}.raw", "ab".repeat(32)));
    let foreign = site.cache_directory().join("holiday.raw");
    std::fs::write(&stray, b"left by a seal that was cut short").expect("a disk");
    std::fs::write(&foreign, b"not ours").expect("a disk");
    let engine = start(&site);
    assert_eq!(engine.replayed().files_set_aside, 1);
    assert!(!stray.exists() && foreign.exists());
    assert_eq!(engine.aside().count().expect("a disk").files, 1);
    assert!(site.cache_directory().join(format!("{layer}.raw")).exists(), "it is the only copy");
    assert_eq!(states(&engine), [SnapshotState::Sealed]);
    let known = find(&engine, left);
    check(&engine, &known[0]);
    drop(outage);
    check_and_publish(&site, &engine, &known);
}

#[test]
fn case_35_layers_that_an_older_catalog_does_not_name_are_found_again_by_the_newer_one() {
    let site = site();
    drop(start(&site));
    let (older, newer) = (site.cache_directory().join("older"), site.cache_directory().join("newer"));
    std::fs::copy(site.catalog_path(), &older).expect("a disk");
    let engine = start(&site);
    let (outage, first) = sealed_in_an_outage(&site, &engine, 150);
    let left = end(engine, [first]);
    std::fs::rename(site.catalog_path(), &newer).expect("a disk");
    std::fs::rename(&older, site.catalog_path()).expect("a disk");
    let engine = start(&site);
    assert!(engine.snapshots().is_empty());
    assert_eq!(engine.replayed().files_set_aside, 1, "its only copy is kept");
    drop(engine);
    std::fs::rename(&newer, site.catalog_path()).expect("a disk");
    let engine = start(&site);
    assert_eq!(engine.aside().count().expect("a disk").files, 0, "it is in its place again");
    let known = find(&engine, left);
    check(&engine, &known[0]);
    drop(outage);
    check_and_publish(&site, &engine, &known);
}

#[test]
fn a_layer_file_that_cannot_be_read_stops_nothing_else_and_is_tried_again() {
    let site = site();
    let engine = start(&site);
    let (outage, first) = sealed_in_an_outage(&site, &engine, 150);
    let held = site.hooks.hold(Point::Compare);
    let child = child(&engine, &first, run(20, 60), 2);
    let other = first_pause(&engine, 40);
    let layer = first_layer(&first);
    engine.stop();
    drop(held);
    let [first, child, other] = end(engine, [first, child, other]);
    let put_back = unreadable(&site, layer);
    let engine = start(&site);
    assert_eq!((engine.replayed().undecided, engine.replayed().lost.len()), (2, 0));
    let known = find(&engine, [first, child, other]);
    for undecided in &known[..2] {
        let status = undecided.0.status();
        assert!(status.is_undecided && status.failure.is_some(), "{status:?}");
    }
    check(&engine, &known[2]);
    assert_eq!(engine.decide().expect("the catalog can be read"), 2, "nothing has changed");
    put_back();
    assert_eq!(engine.decide().expect("the catalog can be read"), 0);
    drop(outage);
    check_and_publish(&site, &engine, &known);
}

/// Replaces the file of a layer by a directory; the result puts the file back.
fn unreadable(site: &Site, layer: LayerId) -> impl FnOnce() {
    let file = site.cache_directory().join(format!("{layer}.raw"));
    let away = site.cache_directory().join("away");
    std::fs::rename(&file, &away).expect("a disk");
    std::fs::create_dir(&file).expect("a disk");
    move || {
        std::fs::remove_dir(&file).expect("a disk");
        std::fs::rename(&away, &file).expect("a disk");
    }
}

fn first_layer(known: &Known) -> LayerId {
    known.0.manifest_now().expect("it is sealed").layers()[0].id
}

#[test]
fn a_deleted_snapshot_stays_while_what_stands_on_it_or_it_itself_is_undecided() {
    for withheld in 0..2 {
        let site = site();
        let engine = start(&site);
        let held = site.hooks.hold(Point::Compare);
        let first = first_pause(&engine, 150);
        let child = child(&engine, &first, run(20, 60), 2);
        engine.delete(&first.0).expect("the disk has room");
        engine.stop();
        drop(held);
        let [first, child] = end(engine, [first, child]);
        site.keeper.withhold([first.0, child.0][withheld], 1);
        let engine = start(&site);
        engine.end_replay();
        assert_eq!((engine.replayed().undecided, engine.replayed().deleted), (1, 1));
        assert_eq!(engine.decide().expect("the catalog can be read"), 0);
        check_and_publish(&site, &engine, &find(&engine, [child]));
        assert!(engine.snapshot(first.0).is_none(), "it was deleted");
    }
}

#[test]
fn a_deleted_snapshot_whose_layer_cannot_be_read_stays_for_the_child_that_stands_on_it() {
    let site = site();
    let engine = start(&site);
    let (outage, first) = sealed_in_an_outage(&site, &engine, 150);
    let held = site.hooks.hold(Point::Compare);
    let child = child(&engine, &first, run(20, 60), 2);
    let layer = first_layer(&first);
    engine.delete(&first.0).expect("the disk has room");
    engine.stop();
    drop(held);
    let [_, child] = end(engine, [first, child]);
    let put_back = unreadable(&site, layer);
    drop(outage);
    let engine = start(&site);
    engine.end_replay();
    assert_eq!((engine.replayed().undecided, engine.replayed().lost.len()), (1, 0));
    assert_eq!(engine.decide().expect("the catalog can be read"), 2, "nothing has changed");
    put_back();
    assert_eq!(engine.decide().expect("the catalog can be read"), 0);
    check_and_publish(&site, &engine, &find(&engine, [child]));
}

#[test]
fn an_undecided_snapshot_that_is_deleted_stays_for_the_child_that_stands_on_it() {
    let site = site();
    let engine = start(&site);
    let held = site.hooks.hold(Point::Compare);
    let first = first_pause(&engine, 150);
    let child = child(&engine, &first, run(20, 60), 2);
    engine.stop();
    drop(held);
    let left = end(engine, [first, child]);
    site.keeper.withhold(left[0].0, 2);
    let engine = start(&site);
    engine.end_replay();
    let [first, child] = find(&engine, left);
    engine.delete(&first.0).expect("the disk has room");
    drop(first);
    assert_eq!(engine.decide().expect("the catalog can be read"), 2, "nothing has changed");
    assert_eq!(engine.decide().expect("the catalog can be read"), 0);
    check_and_publish(&site, &engine, &[child]);
}

#[test]
fn an_undecided_snapshot_that_was_deleted_goes_once_nothing_undecided_may_stand_on_it() {
    let site = site();
    let engine = start(&site);
    let held = site.hooks.hold(Point::Compare);
    let first = first_pause(&engine, 10);
    engine.stop();
    drop(held);
    let left = end(engine, [first]);
    site.keeper.withhold(left[0].0, usize::MAX);
    let engine = start(&site);
    engine.end_replay();
    let [first] = find(&engine, left);
    engine.delete(&first.0).expect("the disk has room");
    drop(first);
    // The first time, the removal from the store may still hold it.
    while engine.decide().expect("the catalog can be read") > 0 {
        std::thread::yield_now();
    }
    assert!(site.keeper.wait_empty(PATIENCE), "nobody needs its memory");
}

#[test]
fn a_snapshot_that_is_deleted_before_all_sandboxes_have_their_origins_is_the_origin_of_one_of_them() {
    let site = site();
    let engine = start(&site);
    let first = first_pause(&engine, 10);
    wait_published(&first.0);
    let left = end(engine, [first]);
    let engine = start(&site);
    let [first] = find(&engine, left);
    engine.delete(&first.0).expect("the disk has room");
    let id = first.0.id();
    drop(first);
    let forgets = site.keeper.forgets(id);
    let origin = engine.origin(id).expect("a sandbox may run from it");
    engine.end_replay();
    assert!(engine.origin(id).is_none(), "those that run from it have it");
    drop(origin);
    site.keeper.wait_forgets(id, forgets + 1);
}

#[test]
fn a_layer_that_an_undecided_snapshot_shares_stays_when_the_other_one_is_deleted() {
    let site = site();
    let engine = start(&site);
    let outage = site.faults.outage();
    let first = first_pause(&engine, 150);
    let shared = child(&engine, &first, run(20, 60), 2);
    let mut guest = Guest::resume(&shared.0, shared.1.clone());
    for rest in [run(0, 20), run(80, 70)] {
        guest.write_random(&engine, rest, &mut Random::new(3)).expect("the parent can be read");
    }
    let other = pause(&engine, guest);
    wait_sealed(&other.0);
    let (layer, of_both) = (first_layer(&first), first_layer(&other));
    assert_ne!(layer, of_both);
    let left = end(engine, [first, shared, other]);
    let put_back = unreadable(&site, layer);
    drop(outage);
    let engine = start(&site);
    engine.end_replay();
    assert_eq!(engine.replayed().undecided, 2);
    let [first, shared, other] = find(&engine, left);
    check(&engine, &other);
    wait_published(&other.0);
    engine.delete(&other.0).expect("the disk has room");
    drop(other);
    put_back();
    assert_eq!(engine.decide().expect("the catalog can be read"), 0);
    check_and_publish(&site, &engine, &[first, shared]);
}

#[test]
fn a_pause_that_was_taken_back_is_listed_no_longer_once_that_is_known() {
    let site = site();
    let engine = start(&site);
    let held = site.hooks.hold(Point::Compare);
    let first = first_pause(&engine, 10);
    engine.stop();
    drop(held);
    let [(id, _)] = end(engine, [first]);
    site.keeper.take_back(id).expect("it keeps what it is told");
    site.keeper.withhold(id, 1);
    let engine = start(&site);
    engine.end_replay();
    assert_eq!(engine.replayed().undecided, 1);
    assert_eq!(engine.decide().expect("the catalog can be read"), 0);
    assert!(engine.snapshots().is_empty());
    assert!(site.keeper.wait_empty(PATIENCE), "the keeper's word on it is not needed any more");
    drop(engine);
    assert!(start(&site).snapshots().is_empty());
}

#[test]
fn a_record_that_cannot_be_read_stops_nothing_else_and_costs_nothing_of_its_snapshot() {
    let site = site();
    let engine = start(&site);
    let (outage, first) = sealed_in_an_outage(&site, &engine, 150);
    let other = first_pause(&engine, 40);
    wait_sealed(&other.0);
    let left = end(engine, [first, other]);
    let key = left[0].0.as_bytes().to_vec();
    let damage = |value: Vec<u8>| {
        let catalog = Catalog::open(&site.catalog_path()).expect("nobody else has it");
        catalog.write(&[Change::Put { kind: Kind::Snapshot, key: key.clone(), value }]).expect("a disk");
    };
    let catalog = Catalog::open(&site.catalog_path()).expect("nobody else has it");
    let good = catalog.get(Kind::Snapshot, &key).expect("a disk").expect("it is recorded");
    drop(catalog);
    damage(b"nonsense".to_vec());
    let engine = start(&site);
    let undecided = engine.snapshot(left[0].0).expect("it is listed").status();
    assert!(undecided.is_undecided, "{undecided:?}");
    let other = engine.snapshot(left[1].0).expect("it was acknowledged");
    check(&engine, &(other, left[1].1.clone()));
    drop(engine);
    damage(good);
    let engine = start(&site);
    drop(outage);
    check_and_publish_all(&site, &engine, left);
}
