//! A layer's local file: bytes go in and out of it only if they are those that the layer's name commits to.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rekindle_engine::cache::{Cache, OnlyCopyError};
use rekindle_engine::frame::{FRAME_PAGES, FrameNumber};
use rekindle_engine::geometry::{GuestPage, LayerPage};
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::layer::Layer;
use rekindle_engine::local_file::LayerError;
use rekindle_engine::manifest::{ObjectName, StoredLayer};
use rekindle_engine::pack::pack_pages;
use rekindle_engine::page_map::{LayerSlot, PageMap};
use rekindle_engine::page_set::PageSet;
use rekindle_engine::view::{LiveView, View};
use tempfile::TempDir;

/// Three frames, the last of them short.
const PAGES: u32 = 2 * FRAME_PAGES + 5;

fn keys() -> KeyRing {
    KeyRing::of_name("shared")
}

/// A layer just packed, page `p` of which is filled with `p + first`.
fn packed(directory: &TempDir, first: u32) -> Arc<Layer> {
    packed_in(&Cache::open(directory.path(), keys()).expect("a directory of ours"), first)
}

/// The same in an open cache.
fn packed_in(cache: &Cache, first: u32) -> Arc<Layer> {
    let mut next = first;
    let fill = |_, into: &mut [u8]| {
        for page in into.chunks_mut(4096) {
            page.fill(u8::try_from(next % 251).expect("small"));
            next += 1;
        }
        Ok(())
    };
    let packed = pack_pages(&PageSet::full(PAGES), cache, keys().own(), fill);
    packed.expect("a disk").expect("it has pages")
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory can be made")
}

fn frame(number: usize) -> FrameNumber {
    FrameNumber::new(number)
}

fn local_file(directory: &TempDir, layer: &Layer) -> std::fs::File {
    let path = directory.path().join(format!("{}.raw", layer.id()));
    OpenOptions::new().write(true).open(path).expect("the layer's file")
}

#[test]
fn a_frame_of_other_bytes_is_not_taken_in_however_well_formed_they_are() {
    let (here, there) = (directory(), directory());
    let (layer, other) = (packed(&here, 0), packed(&there, 1));
    let bytes = |layer: &Layer, number| layer.local().read_frame(frame(number)).expect("it is whole");
    for wrong in [bytes(&layer, 0), bytes(&other, 1)] {
        let refused = layer.local().accept_frame(frame(1), &wrong);
        assert!(matches!(refused, Err(LayerError::Digest { .. })), "{refused:?}");
    }
    layer.local().accept_frame(frame(1), &bytes(&layer, 1)).expect("its own bytes");
    assert_eq!(bytes(&layer, 1)[0], 64);
}

#[test]
fn a_frame_that_rotted_on_the_disk_is_not_read_for_others() {
    let here = directory();
    let layer = packed(&here, 0);
    let first_page = layer.local().read_frame(frame(0)).expect("it is whole")[..4096].to_vec();
    local_file(&here, &layer).write_all_at(&first_page, 4096 * 70).expect("a disk");
    let refused = layer.local().read_frame(frame(1));
    assert!(matches!(refused, Err(LayerError::Digest { .. })), "{refused:?}");
    layer.local().read_frame(frame(0)).expect("this one did not rot");
}

#[test]
fn a_frame_taken_into_a_file_that_was_cut_short_brings_back_no_other_as_zeroes() {
    let here = directory();
    let layer = packed(&here, 0);
    let last = layer.local().read_frame(frame(2)).expect("it is whole");
    let (file, planned) = (local_file(&here, &layer), layer.local());
    file.set_len(4096).expect("a disk");
    planned.accept_frame(frame(2), &last).expect("its own bytes");
    assert!(layer.local().is_verified(frame(2)));
    for lost in [frame(0), frame(1)] {
        for file in [&planned, &layer.local()] {
            assert!(!file.is_verified(lost), "frame {lost} is lost");
            assert!(!matches!(file.load_local(lost), Ok(true)), "frame {lost} is lost");
        }
    }
    assert_eq!(
        file.metadata().expect("it is there").len(),
        4096,
        "a file that was cut is not made long again"
    );
}

#[test]
fn an_only_copy_that_a_disk_did_not_give_once_is_read_again_and_used() {
    let here = directory();
    let layer = packed(&here, 0);
    let whole: Vec<_> =
        (0..3).flat_map(|number| layer.local().read_frame(frame(number)).expect("it is whole")).collect();
    let file = local_file(&here, &layer);
    layer.local().forget_all_verified();
    file.set_len(0).expect("a disk");
    let failed = layer.local().load_local(frame(1));
    assert!(matches!(failed, Err(LayerError::Io { .. })), "{failed:?}");
    file.set_len(whole.len().try_into().expect("64 bits")).expect("a disk");
    assert!(matches!(layer.local().load_local(frame(1)), Ok(false)), "it reads as zeroes");
    file.write_all_at(&whole, 0).expect("a disk");
    assert!(matches!(layer.local().load_local(frame(1)), Ok(true)), "the disk gives it again");
    assert!(layer.local().is_verified(frame(1)));
}

#[test]
fn an_object_that_is_gone_gives_way_to_another_one_of_the_layer_and_the_last_one_stays() {
    let here = directory();
    let layer = packed(&here, 0);
    let places: Vec<_> = (0..2).map(|_| place()).collect();
    for stored in &places {
        layer.facts().add_stored(stored);
        layer.facts().add_stored(stored);
    }
    for (gone, read) in [(1, 0), (0, 0)] {
        layer.facts().note_gone(places[gone].object);
        assert_eq!(layer.stored_at().as_ref(), Some(&places[read]));
    }
    layer.facts().add_stored(&places[1]);
    layer.facts().note_gone(places[0].object);
    assert_eq!(layer.stored_at().as_ref(), Some(&places[1]));
}

#[test]
fn a_read_keeps_the_file_it_was_planned_on_when_its_layer_gets_another_one() {
    let (here, there) = (directory(), directory());
    let original = packed(&there, 0);
    let first_frame = original.local().read_frame(frame(0)).expect("it is whole");
    let cache = Cache::open(here.path(), keys()).expect("a directory of ours");
    let layer = cache.open_stored(original.name(), &place()).expect("a disk");
    layer.facts().set_index(original.index().expect("it was packed").clone());
    let replaced = layer.local();
    replaced.accept_frame(frame(0), &first_frame).expect("its own bytes");
    let map = PageMap::zero(PAGES).overlay(&PageSet::full(PAGES), LayerSlot::new(0), &PageSet::new(PAGES));
    let view = LiveView::new(View::flat(map, Arc::from([Arc::clone(&layer)])));
    let planned = view.piece_at(GuestPage::FIRST, FRAME_PAGES);
    assert!(Arc::ptr_eq(&packed_in(&cache, 0), &layer), "one handle of equal bytes");
    assert_eq!(layer.local().verified_run(LayerPage::FIRST, PAGES), PAGES);
    assert_eq!(replaced.verified_run(LayerPage::FIRST, PAGES), FRAME_PAGES, "it is another file");
    // Whatever happens to the layer's present file, and when nobody names the layer any more.
    local_file(&here, &layer).set_len(0).expect("a disk");
    drop((layer, view));
    let mut read = vec![0; first_frame.len()];
    planned.copy_to(&mut read).expect("its bytes are still there");
    assert!(read == first_frame);
}

#[test]
fn a_layer_that_was_only_stored_survives_a_restart_by_itself_once_it_is_packed_again() {
    let (here, there) = (directory(), directory());
    let original = packed(&there, 0);
    let cache = Cache::open(here.path(), keys()).expect("a directory of ours");
    let layer = cache.open_stored(original.name(), &place()).expect("a disk");
    assert!(Arc::ptr_eq(&packed_in(&cache, 0), &layer), "one handle of equal bytes");
    cache.keep_files();
    drop((layer, cache));
    let cache = Cache::open(here.path(), keys()).expect("a directory of ours");
    let layer = cache.open_only_copy(original.name()).expect("it is whole, with its index");
    assert!(layer.facts().is_only_copy());
    assert!(matches!(layer.local().load_local(frame(2)), Ok(true)));
}

#[test]
fn only_a_layer_that_a_published_snapshot_names_and_that_is_not_being_uploaded_can_be_evicted() {
    let here = directory();
    let cache = Cache::open(here.path(), keys()).expect("a directory of ours");
    let layer = packed_in(&cache, 0);
    assert!(layer.evictable().is_none(), "it is the only copy");
    assert_eq!(cache.files().only_here().bytes(), u64::from(PAGES) * 4096);
    let stored = place();
    layer.facts().add_stored(&stored);
    assert_eq!(cache.files().only_here().bytes(), 0);
    assert!(layer.evictable().is_none(), "its manifest is not in the store yet");
    let confirmed = [layer.confirm(), layer.confirm()];
    drop(layer.evictable().expect("now it is"));
    let uploading = futures_executor::block_on(layer.upload_turn());
    assert!(layer.evictable().is_none(), "its bytes are being read for the store");
    drop(uploading);
    layer.facts().note_gone(stored.object);
    assert!(layer.evictable().is_none(), "the store has lost it");
    layer.facts().add_stored(&place());
    let [first, second] = confirmed;
    drop(first);
    drop(layer.evictable().expect("another snapshot still names it"));
    drop(second);
    assert!(layer.evictable().is_none(), "no published snapshot names it any more");
}

#[test]
fn a_layer_packed_again_after_it_was_evicted_is_whole_and_has_its_name() {
    let here = directory();
    let cache = Cache::open(here.path(), keys()).expect("a directory of ours");
    let layer = packed_in(&cache, 0);
    layer.facts().add_stored(&place());
    let _confirmed = layer.confirm();
    let before = layer.local();
    let bytes = layer.evictable().expect("it is elsewhere").evict().expect("a disk");
    assert!(bytes >= u64::from(PAGES) * 4096);
    let path = here.path().join(format!("{}.raw", layer.id()));
    assert!(!path.exists() && !layer.local().is_open());
    assert_eq!(before.verified_run(LayerPage::FIRST, PAGES), PAGES, "who has it keeps it");
    assert_eq!(cache.files().bytes().bytes(), bytes, "its bytes are not free before that");
    drop(before);
    assert_eq!(cache.files().bytes().bytes(), 0);
    assert!(Arc::ptr_eq(&packed_in(&cache, 0), &layer), "one handle of equal bytes");
    assert_eq!(layer.local().verified_run(LayerPage::FIRST, PAGES), PAGES);
    assert!(path.exists());
}

#[test]
fn what_is_not_a_file_is_not_set_aside_and_does_not_come_back_as_one() {
    let (here, there) = (directory(), directory());
    let layer = packed(&there, 0);
    let path = here.path().join(format!("{}.raw", layer.id()));
    std::fs::create_dir(&path).expect("a directory of ours");
    let cache = Cache::open(here.path(), keys()).expect("a directory of ours");
    assert_eq!(cache.look_through(&HashSet::new()).expect("it can be listed"), 0);
    std::fs::remove_dir(&path).expect("it stayed where it was");
    let absent = cache.open_only_copy(layer.facts().name());
    assert!(matches!(absent, Err(OnlyCopyError::Absent { .. })), "{absent:?}");
}

/// A possible place of a layer's object.
fn place() -> StoredLayer {
    let object = ObjectName::new(SnapshotId::new());
    StoredLayer { object, table_digest: [0; 32], table_bytes: 1, object_bytes: 2 }
}
