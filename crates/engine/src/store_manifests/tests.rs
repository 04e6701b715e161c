use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt as _};
use tokio::runtime::{Builder, Runtime};

use super::*;
use crate::manifest::{Manifest, SnapshotFacts};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().build().expect("a runtime")
}

fn keys() -> KeyRing {
    KeyRing::of_name("tenant-1")
}

fn edition(number: u64) -> Edition {
    Edition::of(number).expect("it is one")
}

/// An edition of a snapshot without volumes.
fn encoded(snapshot: SnapshotId, number: u64) -> Bytes {
    let facts = SnapshotFacts { snapshot, created_unix_ms: 0, blobs: BTreeMap::new() };
    let manifest = Manifest::first(facts, Vec::new(), &[]).expect("it is within limits");
    Publication::new(edition(number), manifest, Vec::new()).encode(keys().own()).into()
}

/// The number of the edition that is read, and whether its name says one.
fn read(store: &Store, snapshot: SnapshotId) -> Result<(u64, bool), String> {
    let stored = runtime().block_on(store.get_manifest(snapshot)).map_err(|error| error.to_string())?;
    let (publication, _) = stored.publication(snapshot, None, &keys()).map_err(|error| error.to_string())?;
    Ok((publication.edition().number(), stored.edition.is_some()))
}

fn put(store: &Store, snapshot: SnapshotId, number: u64) {
    let put = store.put_manifest(snapshot, edition(number), encoded(snapshot, number));
    runtime().block_on(put).expect("there is room");
}

/// Two kinds of stores: objects by name, and files in folders.
fn stores(directory: &Path) -> [Store; 2] {
    [Store::new(Arc::new(InMemory::new())), Store::directory(directory).expect("a directory")]
}

#[test]
fn the_newest_edition_of_a_manifest_is_read_and_a_deleted_snapshot_leaves_none() {
    let directory = tempfile::tempdir().expect("a directory");
    for store in stores(directory.path()) {
        let snapshot = SnapshotId::new();
        for number in [2, 10, 9] {
            put(&store, snapshot, number);
        }
        assert_eq!(read(&store, snapshot), Ok((10, true)));
        let see = |seen| runtime().block_on(store.see_manifest(snapshot, Some(edition(seen))));
        assert!(see(10).is_ok() && matches!(see(11), Err(StoreError::NotFound(_))));
        runtime().block_on(store.delete_manifest(snapshot, None)).expect("they are there");
        let gone = format!("manifests/{snapshot} is not in the store");
        assert_eq!(read(&store, snapshot), Err(gone));
        runtime().block_on(store.delete_manifest(snapshot, Some(edition(10)))).expect("none is a success");
    }
    assert_eq!(directory.path().read_dir().expect("a directory").count(), 0, "no empty folder is left");
}

#[test]
fn a_manifest_that_an_older_program_put_is_read_replaced_and_deleted() {
    let directory = tempfile::tempdir().expect("a directory");
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let folders = Store::directory(directory.path()).expect("a directory");
    for (store, has_names_only) in [(Store::new(Arc::clone(&objects)), true), (folders, false)] {
        let snapshot = SnapshotId::new();
        let older = older_path(snapshot);
        runtime().block_on(store.put(&older, encoded(snapshot, 1).into())).expect("there is room");
        assert_eq!(read(&store, snapshot), Ok((1, false)));
        assert!(runtime().block_on(store.see_manifest(snapshot, Some(Edition::FIRST))).is_ok());
        // In a directory it is a file where a folder has to be.
        put(&store, snapshot, 2);
        assert_eq!(read(&store, snapshot), Ok((2, has_names_only)));
        runtime().block_on(store.delete_manifest(snapshot, Some(edition(2)))).expect("they are there");
        assert!(read(&store, snapshot).is_err(), "none of the two comes back");
    }
    assert_eq!(directory.path().read_dir().expect("a directory").count(), 0);
}

#[test]
fn an_edition_that_is_not_the_one_of_its_name_or_is_older_than_one_seen_is_refused() {
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (store, snapshot) = (Store::new(Arc::clone(&objects)), SnapshotId::new());
    put(&store, snapshot, 3);
    let stored = runtime().block_on(store.get_manifest(snapshot)).expect("it is there");
    let with =
        |seen| stored.publication(snapshot, Some(edition(seen)), &keys()).map(|(read, _)| read.edition());
    assert_eq!(with(3), Ok(edition(3)));
    assert_eq!(with(4), Err(StoredManifestError::Older { found: edition(3), seen: edition(4) }));
    // Somebody without the key copies an edition to a newer name.
    let newer = path_of(snapshot, edition(5));
    runtime().block_on(objects.put(&newer, encoded(snapshot, 3).into())).expect("RAM");
    assert_eq!(read(&store, snapshot), Err("it is edition 3, and lies in the store as edition 5".to_owned()));
    let other = SnapshotId::new();
    let of_other = path_of(other, Edition::FIRST);
    runtime().block_on(objects.put(&of_other, encoded(snapshot, 1).into())).expect("RAM");
    assert_eq!(read(&store, other), Err(format!("it is that of {snapshot}")));
}
