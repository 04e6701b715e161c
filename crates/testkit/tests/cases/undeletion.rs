//! Cases of deletions that can be undone.

use std::sync::Arc;
use std::time::Duration;

use rekindle_engine::engine::{Engine, UndeleteError};
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::open::OpenError;
use rekindle_engine::snapshot::Snapshot;
use rekindle_testkit::site::Site;

use crate::collection::collect;
use crate::roots::{begin, begin_unreliable, begun_with, names, put, wait_no_roots};
use crate::run_roots::wait_for;
use crate::{check_elsewhere, child, first_pause, run, site, wait_published};

const HOUR: Duration = Duration::from_secs(3600);
/// It has passed soon, by the store's clock.
const MOMENT: Duration = Duration::from_secs(1);

fn signs(site: &Site, id: SnapshotId, kind: &str) -> Vec<String> {
    let under = names(site, &format!("manifests/{id}"));
    under
        .iter()
        .filter_map(|path| path.filename())
        .filter(|name| name.starts_with(kind))
        .map(str::to_owned)
        .collect()
}

/// Deletes a snapshot so that it can be brought back, and waits until that is in the store.
fn delete(site: &Site, engine: &Engine, snapshot: Arc<Snapshot>, window: Duration) {
    let (id, before) = (snapshot.id(), signs(site, snapshot.id(), "withdrawn-").len());
    assert!(engine.delete_undoably(&snapshot, window).expect("a disk"), "it is published");
    drop(snapshot);
    wait_for("it is deleted in the store", || signs(site, id, "withdrawn-").len() > before);
}

fn is_gone(engine: &Engine, id: SnapshotId) -> bool {
    matches!(engine.undelete(id), Err(UndeleteError::Gone(_)))
}

#[test]
fn a_deleted_snapshot_is_kept_for_its_window_and_any_node_brings_it_back() {
    let (site, engine, first) = begun_with(8);
    let id = first.0.id();
    let (snapshot, model) = first;
    delete(&site, &engine, snapshot, HOUR);
    collect(&engine);
    assert_eq!(names(&site, "layers").len(), 1, "its window has not passed");
    assert_eq!(engine.stored_snapshots().expect("the store is there"), []);
    let withdrawn = engine.withdrawn_snapshots().expect("the store is there");
    assert_eq!(withdrawn.iter().map(|one| one.id).collect::<Vec<_>>(), [id]);
    assert_eq!(withdrawn[0].until_unix_ms - withdrawn[0].deleted_unix_ms, 3_600_000);
    let elsewhere = site.elsewhere().expect("a directory");
    let other = begin(&elsewhere);
    let told = other.open(id).expect_err("it is deleted");
    assert!(matches!(&told, OpenError::Deleted { by, .. } if by.by().is_some()), "{told}");
    assert!(told.to_string().ends_with("`rekindle undelete` brings it back"), "{told}");
    other.undelete(id).expect("its window has not passed");
    other.undelete(id).expect("it is back already");
    drop(other);
    collect(&engine);
    let snapshot = engine.open(id).expect("it is back here too");
    check_elsewhere(&site, &(Arc::clone(&snapshot), model));
    assert_eq!(engine.withdrawn_snapshots().expect("the store is there"), []);
    // It can be deleted again, and brought back again.
    delete(&site, &engine, snapshot, HOUR);
    assert!(matches!(engine.open(id), Err(OpenError::Deleted { .. })));
    engine.undelete(id).expect("its window has not passed");
    engine.open(id).expect("it is back");
}

#[test]
fn a_collector_makes_a_deletion_final_once_its_window_has_passed() {
    let site = site();
    let engine = begin(&site);
    let first = first_pause(&engine, 8);
    let second = child(&engine, &first, run(2, 2), 2);
    wait_published(&first.0);
    wait_published(&second.0);
    wait_no_roots(&site);
    let id = first.0.id();
    delete(&site, &engine, first.0, MOMENT);
    wait_for("its window has passed", || {
        collect(&engine);
        names(&site, "deleted").iter().any(|path| path.as_ref() == format!("deleted/{id}"))
    });
    assert_eq!(names(&site, &format!("manifests/{id}")), [], "its signs went with its manifest");
    assert!(is_gone(&engine, id));
    check_elsewhere(&site, &second);
    // A sign that lands late brings nothing back, and goes.
    put(&site, &format!("manifests/{id}/undone-{}", uuid::Uuid::from_u128(7)), Vec::new());
    put(&site, &format!("manifests/{id}/withdrawn-{}-60", uuid::Uuid::from_u128(8)), Vec::new());
    assert!(is_gone(&engine, id));
    collect(&engine);
    assert_eq!(names(&site, &format!("manifests/{id}")), []);
}

#[test]
fn a_deletion_that_reaches_the_store_after_a_restart_has_its_window_still() {
    let site = site();
    let (engine, faults) = begin_unreliable(&site);
    let (snapshot, model) = first_pause(&engine, 8);
    wait_published(&snapshot);
    wait_no_roots(&site);
    let (id, outage) = (snapshot.id(), faults.outage());
    assert!(engine.delete_undoably(&snapshot, HOUR).expect("a disk"));
    drop((snapshot, engine, outage));
    let engine = begin(&site);
    engine.end_replay();
    wait_for("it is deleted in the store", || !signs(&site, id, "withdrawn-").is_empty());
    collect(&engine);
    engine.undelete(id).expect("its window has not passed");
    check_elsewhere(&site, &(engine.open(id).expect("it is back"), model));
}

#[test]
fn a_deletion_that_is_begun_again_after_it_was_undone_is_undone() {
    let (site, engine, first) = begun_with(8);
    let id = first.0.id();
    delete(&site, &engine, first.0, HOUR);
    let [sign] = &signs(&site, id, "withdrawn-")[..] else { panic!("one deletion") };
    engine.undelete(id).expect("its window has not passed");
    // The store repeats a put of the sign.
    put(&site, &format!("manifests/{id}/{sign}"), b"{}".to_vec());
    engine.open(id).expect("it is back for good");
}

#[test]
fn a_snapshot_that_is_not_in_the_store_yet_is_deleted_at_once() {
    let site = site();
    let (engine, faults) = begin_unreliable(&site);
    let outage = faults.outage();
    let first = first_pause(&engine, 8);
    let id = first.0.id();
    wait_for("it is sealed", || first.0.manifest_now().is_some());
    assert!(!engine.delete_undoably(&first.0, HOUR).expect("a disk"));
    drop((first, outage));
    wait_for("it has a tombstone", || !names(&site, "deleted").is_empty());
    wait_for("nothing reads it", || is_gone(&engine, id));
    let never = SnapshotId::new();
    assert!(matches!(engine.undelete(never), Err(UndeleteError::NotDeleted)));
}
