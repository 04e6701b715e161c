use std::time::SystemTime;

use object_store::path::Path;
use uuid::Uuid;

use super::*;
use crate::identity::LayerId;
use crate::manifest::{Edition, ObjectName};
use crate::manifest_memory::WrittenManifest;

fn snapshot(byte: u8) -> SnapshotId {
    SnapshotId::from_bytes([byte; 16])
}

fn copy(byte: u8) -> LayerCopy {
    let object = ObjectName { publisher: snapshot(9), upload: Uuid::from_bytes([byte; 16]) };
    LayerCopy { layer: LayerId::from_bytes([byte; 32]), object }
}

/// A memory of what two manifests name.
fn memory(of_one: &[LayerCopy], of_two: &[LayerCopy]) -> ManifestMemory {
    let written = WrittenManifest { edition: Edition::FIRST, bytes: 1, unix_ms: 0 };
    let mut memory = ManifestMemory::default();
    memory.remember(snapshot(1), written, of_one);
    memory.remember(snapshot(2), written, of_two);
    memory
}

fn object(name: &str, size: u64) -> ObjectMeta {
    let last_modified = SystemTime::UNIX_EPOCH.into();
    ObjectMeta { location: Path::from(name), last_modified, size, e_tag: None, version: None }
}

fn objects(count: u64, bytes: u64) -> Objects {
    Objects { count, bytes }
}

#[test]
fn every_object_of_a_list_counts_once_and_the_parts_add_up_to_it() {
    let (one, two, deleted, foreign) = (snapshot(1), snapshot(2), snapshot(3), snapshot(4));
    let second = Edition::FIRST.next();
    let listed = [
        (Collectable::Manifest(one, Some(Edition::FIRST)).to_string(), 1),
        (Collectable::Manifest(one, Some(second)).to_string(), 2),
        (Collectable::WorkingSet(one, Uuid::from_bytes([1; 16])).to_string(), 4),
        (Collectable::Manifest(two, None).to_string(), 8),
        (Collectable::Manifest(deleted, Some(Edition::FIRST)).to_string(), 16),
        (Collectable::Manifest(foreign, Some(Edition::FIRST)).to_string(), 32),
        (copy(1).to_string(), 64),
        (copy(2).to_string(), 128),
        (copy(3).to_string(), 256),
        (format!("deleted/{deleted}"), 512),
        ("store".to_owned(), 1024),
    ]
    .map(|(name, bytes)| object(&name, bytes));
    let found = ListedObjects::of(&listed);
    let manifests = found.manifests.iter().map(|listed| (listed.snapshot, listed.edition()));
    let first = Some(Edition::FIRST);
    assert_eq!(
        manifests.collect::<Vec<_>>(),
        [(one, first), (one, Some(second)), (two, None), (foreign, first)]
    );
    assert_eq!(found.deleted, HashSet::from([deleted]));
    let usage = found.usage(&memory(&[copy(1), copy(2)], &[copy(2)]));
    let of_one = SnapshotUsage { own: objects(3, 7), unique: objects(1, 64), shared: objects(1, 128) };
    assert_eq!(usage.snapshots.get(&one), Some(&of_one));
    assert_eq!(of_one.freed_bytes(), 71);
    assert_eq!(usage.snapshots.get(&two).map(SnapshotUsage::freed_bytes), Some(8));
    assert_eq!((usage.shared, usage.unnamed), (objects(1, 128), objects(2, 16 + 256)));
    assert_eq!(usage.bookkeeping, objects(2, 512 + 1024));
    assert_eq!(usage.unread, BTreeSet::from([foreign]));
    let all: u64 = listed.iter().map(|object| object.size).sum();
    assert_eq!(usage.total(), objects(u64::try_from(listed.len()).unwrap(), all));
}

#[test]
fn a_collector_counts_what_one_snapshot_names_what_several_do_and_what_none_does() {
    let (one, two, gone) = (snapshot(1), snapshot(2), snapshot(3));
    let memory = memory(&[copy(1), copy(2)], &[copy(2)]);
    let objects = BTreeMap::from([
        (Collectable::Manifest(one, Some(Edition::FIRST)), 1),
        (Collectable::WorkingSet(two, Uuid::from_bytes([1; 16])), 2),
        (Collectable::Manifest(gone, Some(Edition::FIRST)), 4),
        (Collectable::Layer(copy(1)), 8),
        (Collectable::Layer(copy(2)), 16),
        (Collectable::Layer(copy(3)), 32),
    ]);
    let bytes = StoredBytes { own: 3, unique: 8, shared: 16, unnamed: 36 };
    assert_eq!(StoredBytes::of(&objects, &memory), bytes);
}
