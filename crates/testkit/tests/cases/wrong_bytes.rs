//! The store hands out bytes that are well formed and not the ones that were asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use rekindle_engine::engine::Engine;
use rekindle_engine::frame::{FRAME_PAGES, FrameNumber};
use rekindle_engine::identity::{LayerId, SnapshotId, VolumeName};
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::layer::Layer;
use rekindle_engine::manifest::{
    Edition, Manifest, Publication, SnapshotFacts, StoredLayer, VolumeChange, VolumeShape,
};
use rekindle_engine::object::{ObjectTable, StoredFrame};
use rekindle_engine::page_set::PageSet;
use rekindle_engine::snapshot::Snapshot;
use rekindle_kernel::{PAGE_BYTES, PageKind};
use rekindle_testkit::guest::{Guest, GuestError, judge};
use rekindle_testkit::model::ModelMemory;
use rekindle_testkit::random::Random;
use rekindle_testkit::site::Site;

use crate::{open_elsewhere, pause, published, run, site, start, wait_published};

/// A test's work on the objects behind a site's store.
fn with_objects<T>(site: &Site, work: impl AsyncFnOnce(&dyn ObjectStore) -> object_store::Result<T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers");
    runtime.block_on(work(&*site.objects)).expect("it is in memory")
}

fn object(site: &Site, path: &Path) -> Vec<u8> {
    with_objects(site, async |objects| Ok(objects.get(path).await?.bytes().await?.to_vec()))
}

fn put(site: &Site, path: &Path, bytes: Vec<u8>) {
    with_objects(site, async |objects| objects.put(path, bytes.into()).await.map(|_| ()));
}

fn only_layer(snapshot: &Snapshot) -> Arc<Layer> {
    Arc::clone(&snapshot.memory().load().layers()[0])
}

fn path_of(layer: LayerId, stored: &StoredLayer) -> Path {
    Path::from(format!("layers/{layer}/{}", stored.object))
}

/// The table at the end of a layer's object.
fn table_of(object: &[u8], stored: &StoredLayer) -> ObjectTable {
    let frames_bytes = stored.object_bytes - stored.table_bytes;
    let start = usize::try_from(frames_bytes).expect("64 bits");
    ObjectTable::decode(&object[start..], frames_bytes).expect("it was stored so")
}

fn manifest_path(snapshot: SnapshotId) -> Path {
    Path::from(format!("manifests/{snapshot}/1"))
}

/// The stored manifest of a snapshot.
fn publication_of(site: &Site, snapshot: SnapshotId) -> Publication {
    let stored = object(site, &manifest_path(snapshot));
    Publication::decode(&stored, &KeyRing::of_name("default")).expect("it was stored so")
}

/// Puts a manifest where a node that has nothing finds it.
fn put_manifest(site: &Site, publication: &Publication) {
    let id = publication.manifest().snapshot();
    put(site, &manifest_path(id), publication.encode(KeyRing::of_name("default").own()));
}

/// Error of a node that has nothing on reading a snapshot, which must fail.
fn refusal(engine: &Engine, snapshot: &Snapshot, memory: &ModelMemory) -> String {
    match judge(engine, snapshot, memory).expect_err("what is stored is not the snapshot's") {
        GuestError::Stalled(error) => error.to_string(),
        GuestError::Wrong(page) => unreachable!("wrong bytes were read: {page}"),
    }
}

#[test]
fn frames_that_changed_places_in_the_store_are_not_read_until_they_are_back() {
    let (site, _engine, (snapshot, memory)) = published(4 * FRAME_PAGES);
    let layer = only_layer(&snapshot);
    let stored = layer.stored_at().expect("it is published");
    let path = path_of(layer.id(), &stored);
    let right = object(&site, &path);
    let table = table_of(&right, &stored);
    let place = |number| {
        let range = table.places().frame_range(FrameNumber::new(number));
        usize::try_from(range.start).expect("64 bits")..usize::try_from(range.end).expect("64 bits")
    };
    let (first, second) = (place(1), place(2));
    assert_eq!(first.len(), second.len(), "bytes that do not compress are stored as they are");
    let mut wrong = right.clone();
    wrong[first.clone()].copy_from_slice(&right[second.clone()]);
    wrong[second].copy_from_slice(&right[first]);
    put(&site, &path, wrong);
    let cold = open_elsewhere(&site, &snapshot);
    let refused = refusal(&cold.engine, &cold.snapshot, &memory);
    assert!(refused.contains("does not match its digest"), "{refused}");
    put(&site, &path, right);
    judge(&cold.engine, &cold.snapshot, &memory).expect("every page is the model's");
}

#[test]
fn a_frame_of_another_layer_is_not_read_as_this_layers() {
    let (site, engine, (snapshot, memory)) = published(4 * FRAME_PAGES);
    let mut other = Guest::fresh(4 * FRAME_PAGES);
    other.write_random(&engine, run(0, 4 * FRAME_PAGES), &mut Random::new(2)).expect("its own pages");
    let other = pause(&engine, other);
    wait_published(&other.0);
    let [(path, right), (_, others)] = [&snapshot, &other.0].map(|snapshot| {
        let layer = only_layer(snapshot);
        let path = path_of(layer.id(), &layer.stored_at().expect("it is published"));
        (path.clone(), object(&site, &path))
    });
    // Both are stored raw, so that a frame has the same place in either.
    let frame = usize::try_from(FRAME_PAGES).expect("64 bits") * PAGE_BYTES;
    let mut wrong = right;
    wrong[frame..2 * frame].copy_from_slice(&others[frame..2 * frame]);
    put(&site, &path, wrong);
    let cold = open_elsewhere(&site, &snapshot);
    let refused = refusal(&cold.engine, &cold.snapshot, &memory);
    assert!(refused.contains("does not match its digest"), "{refused}");
}

/// Writes the pages of a frame; `filled` bytes of each do not compress.
fn write_frame(engine: &Engine, guest: &mut Guest, frame: u32, filled: usize) {
    let pages = run(frame * FRAME_PAGES, FRAME_PAGES);
    let mut random = Random::new(u64::from(frame));
    for page in pages.iter() {
        let mut bytes = vec![7; PAGE_BYTES];
        random.fill(&mut bytes[..filled]);
        guest.write(engine, page, 0, &bytes).expect("its own page");
    }
}

#[test]
fn a_table_that_has_the_layers_index_and_is_not_the_one_that_was_stored_is_refused() {
    let site = site();
    let engine = start(&site);
    let mut guest = Guest::fresh(2 * FRAME_PAGES);
    write_frame(&engine, &mut guest, 0, 0);
    write_frame(&engine, &mut guest, 1, PAGE_BYTES / 2);
    let (snapshot, memory) = pause(&engine, guest);
    wait_published(&snapshot);
    let layer = only_layer(&snapshot);
    let stored = layer.stored_at().expect("it is published");
    let path = path_of(layer.id(), &stored);
    let right = object(&site, &path);
    let table = table_of(&right, &stored);
    let [first, second] = [0, 1].map(FrameNumber::new).map(|frame| {
        let range = table.places().frame_range(frame);
        StoredFrame { codec: table.places().codec(frame), bytes: range.end - range.start }
    });
    assert_ne!(first.bytes, second.bytes);
    let other = ObjectTable::new(table.index().clone(), &[second, first]).encode();
    let frames = right.len() - other.len();
    put(&site, &path, [&right[..frames], &other].concat());
    // As older programs put it: the table has to be asked for.
    let (manifest, stored) = publication_of(&site, snapshot.id()).into_parts();
    put_manifest(&site, &Publication::new(Edition::FIRST, manifest, stored));
    let cold = open_elsewhere(&site, &snapshot);
    let refused = refusal(&cold.engine, &cold.snapshot, &memory);
    assert!(refused.contains("its digest differs"), "{refused}");
}

#[test]
fn the_table_of_another_layer_is_refused_though_a_manifest_has_its_digest() {
    let (site, engine, (snapshot, memory)) = published(100);
    let mut other = Guest::fresh(100);
    other.write_random(&engine, run(0, 100), &mut Random::new(2)).expect("its own pages");
    let other = pause(&engine, other);
    wait_published(&other.0);
    let (layer, wrong) = (only_layer(&snapshot), only_layer(&other.0));
    let stored = wrong.stored_at().expect("it is published");
    put(&site, &path_of(layer.id(), &stored), object(&site, &path_of(wrong.id(), &stored)));
    // A manifest that names the one layer and has the place of the other.
    let facts = SnapshotFacts { snapshot: SnapshotId::new(), created_unix_ms: 0, blobs: BTreeMap::new() };
    let shape = VolumeShape { name: VolumeName::memory(), page_kind: PageKind::Small, pages: 100 };
    let pages = PageSet::full(100);
    let change = VolumeChange {
        volume: shape.name.clone(),
        layer: Some((layer.name().clone(), &pages)),
        zero: &PageSet::new(100),
    };
    let manifest = Manifest::first(facts, vec![shape], &[change]).expect("within limits");
    let id = manifest.snapshot();
    let table = publication_of(&site, other.0.id()).tables()[0].clone();
    let publication = Publication::new(Edition::FIRST, manifest, vec![stored]);
    put_manifest(&site, &publication);
    let elsewhere = site.elsewhere().expect("a temporary directory");
    let cold = start(&elsewhere);
    let opened = cold.open(id).expect("it is published");
    let refused = refusal(&cold, &opened, &memory);
    assert!(refused.contains("it is another layer's"), "{refused}");
    // With that table in it, the manifest itself is refused.
    put_manifest(&site, &publication.with_tables(vec![table]));
    let elsewhere = site.elsewhere().expect("a temporary directory");
    let refused = start(&elsewhere).open(id).expect_err("the table is another layer's").to_string();
    let named = [format!("the manifest of snapshot {id}"), format!("the table of layer {}", layer.id())];
    assert!(named.iter().all(|name| refused.contains(name)), "{refused}");
}

#[test]
fn a_snapshot_is_read_where_its_manifest_has_the_tables_and_the_store_lost_them() {
    let (site, engine, (snapshot, memory)) = published(700);
    let layer = only_layer(&snapshot);
    let stored = layer.stored_at().expect("it is published");
    let path = path_of(layer.id(), &stored);
    let mut damaged = object(&site, &path);
    let table = damaged.len() - usize::try_from(stored.table_bytes).expect("64 bits");
    damaged[table..].fill(0);
    put(&site, &path, damaged);
    let cold = open_elsewhere(&site, &snapshot);
    judge(&cold.engine, &cold.snapshot, &memory).expect("every page is the model's");
    drop(engine);
}
