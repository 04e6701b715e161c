//! A node starts on a catalog or files that are not all there: it sets aside, lists as undecided, and removes nothing.

use rekindle_engine::catalog::{Catalog, Change, Kind};
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_testkit::hooks::Point;

use crate::restart::{check_and_publish, check_and_publish_all, end, find, start, states};
use crate::{check, child, first_pause, run, site, wait_sealed};

#[test]
fn case_35_a_start_sets_aside_what_nobody_names_and_nothing_else() {
    let site = site();
    let engine = start(&site);
    let outage = site.faults.outage();
    let first = first_pause(&engine, 150);
    wait_sealed(&first.0);
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
    let outage = site.faults.outage();
    let first = first_pause(&engine, 150);
    wait_sealed(&first.0);
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
    let outage = site.faults.outage();
    let first = first_pause(&engine, 150);
    wait_sealed(&first.0);
    let held = site.hooks.hold(Point::Compare);
    let child = child(&engine, &first, run(20, 60), 2);
    let other = first_pause(&engine, 40);
    let layer = first.0.manifest_now().expect("it is sealed").layers()[0].id;
    engine.stop();
    drop(held);
    let [first, child, other] = end(engine, [first, child, other]);
    let (file, away) =
        (site.cache_directory().join(format!("{layer}.raw")), site.cache_directory().join("away"));
    std::fs::rename(&file, &away).expect("a disk");
    std::fs::create_dir(&file).expect("a disk");
    let engine = start(&site);
    assert_eq!((engine.replayed().undecided, engine.replayed().lost.len()), (2, 0));
    let known = find(&engine, [first, child, other]);
    for undecided in &known[..2] {
        let status = undecided.0.status();
        assert!(status.is_undecided && status.failure.is_some(), "{status:?}");
    }
    check(&engine, &known[2]);
    assert_eq!(engine.decide().expect("the catalog can be read"), 2, "nothing has changed");
    std::fs::remove_dir(&file).expect("a disk");
    std::fs::rename(&away, &file).expect("a disk");
    assert_eq!(engine.decide().expect("the catalog can be read"), 0);
    drop(outage);
    check_and_publish(&site, &engine, &known);
}

#[test]
fn a_record_that_cannot_be_read_stops_nothing_else_and_costs_nothing_of_its_snapshot() {
    let site = site();
    let engine = start(&site);
    let outage = site.faults.outage();
    let (first, other) = (first_pause(&engine, 150), first_pause(&engine, 40));
    wait_sealed(&first.0);
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
