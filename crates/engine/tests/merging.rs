//! Lines that have grown to many layers: some are merged into one, and every page keeps its content.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _, ready};
use rekindle_engine::capture::CapturedPages;
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::geometry::{GuestPage, GuestPages, bytes_of_pages};
use rekindle_engine::hooks::{Hooks, NoHooks};
use rekindle_engine::identity::{SnapshotId, VolumeName};
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::limits;
use rekindle_engine::page_set::PageSet;
use rekindle_engine::pause::{PausedGuest, PausedVolume};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::store::Store;
use rekindle_kernel::{Memfd, PageKind};

const PAGES: u32 = 200;
const LIMIT: Duration = Duration::from_secs(60);

/// Content of each page of a line's newest snapshot.
#[derive(Clone)]
struct Model(BTreeMap<u32, u8>);

/// A line of pauses of one guest.
struct Line {
    engine: Engine,
    last: Option<Arc<Snapshot>>,
    model: Model,
    _directory: tempfile::TempDir,
}

impl Line {
    fn merging_at(merge_at_layers: usize) -> Self {
        Self::with_hooks(merge_at_layers, Arc::new(NoHooks), directory())
    }

    fn with_hooks(merge_at_layers: usize, hooks: Arc<dyn Hooks>, directory: tempfile::TempDir) -> Self {
        let store = Store::directory(&directory.path().join("store")).expect("a directory of ours");
        let options = EngineOptions::new(directory.path().join("layers"), store, KeyRing::of_name("default"));
        let engine =
            Engine::start(EngineOptions { merge_at_layers, hooks, ..options }).expect("an engine starts");
        Self { engine, last: None, model: Model(BTreeMap::new()), _directory: directory }
    }

    /// Pauses the guest after it has filled these pages, and waits until the pause is sealed.
    fn pause(&mut self, written: impl IntoIterator<Item = u32>, fill: u8) -> Arc<Snapshot> {
        let bytes = bytes_of_pages(PAGES);
        let permit = self.engine.permit_pause(self.last.as_ref(), bytes).expect("there is room");
        let memfd = Memfd::create("guest", bytes, PageKind::Small).expect("memory for a guest");
        let mut kept = PageSet::new(PAGES);
        for page in written {
            memfd.write_at(&[fill; 4096], u64::from(page) * 4096).expect("its own memory");
            kept.insert(GuestPage::new(page));
            self.model.0.insert(page, fill);
        }
        let pages = CapturedPages { kept, zero: PageSet::new(PAGES) };
        let volume = PausedVolume { name: VolumeName::memory(), page_kind: PageKind::Small, memfd, pages };
        let (id, blobs) = (SnapshotId::new(), BTreeMap::new());
        let guest = PausedGuest { id, volumes: vec![volume], blobs, alongside: Vec::new() };
        let snapshot = self.engine.commit_pause(permit, guest).expect("a guest of its parent's shape");
        snapshot.wait_manifest(LIMIT).expect("it is sealed in time");
        self.last = Some(Arc::clone(&snapshot));
        snapshot
    }

    fn check(&self, snapshot: &Snapshot, model: &Model) {
        let all = GuestPages::new(GuestPage::FIRST, PAGES);
        let mut found = vec![0; usize::try_from(all.bytes()).expect("64 bits")];
        self.engine.read(snapshot.memory(), all, &mut found).expect("it is all here");
        for (page, found) in (0..PAGES).zip(found.chunks(4096)) {
            let expected = model.0.get(&page).copied().unwrap_or(0);
            assert!(
                found.iter().all(|byte| *byte == expected),
                "page {page}: {expected} and not {}",
                found[0]
            );
        }
    }
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory can be made")
}

/// Removes the directory of layer files once a snapshot is packed, if a test wants that.
#[derive(Debug)]
struct TakesDirectory {
    from: PathBuf,
    to: PathBuf,
    is_wanted: AtomicBool,
}

impl Hooks for TakesDirectory {
    fn before_manifest(&self, _: SnapshotId) -> BoxFuture<'_, ()> {
        if self.is_wanted.swap(false, Ordering::SeqCst) {
            std::fs::rename(&self.from, &self.to).expect("it is there");
        }
        ready(()).boxed()
    }
}

fn layers(snapshot: &Snapshot) -> usize {
    snapshot.manifest_now().expect("it is sealed").layers().len()
}

#[test]
fn a_page_written_again_at_the_pause_that_merges_its_layer_has_its_new_content() {
    let mut line = Line::merging_at(6);
    line.pause(0..PAGES, 1);
    // Small layers of one page each: pages 2, 4, 6, 8, 10.
    for fill in 2..7 {
        line.pause([u32::from(fill - 1) * 2], fill);
    }
    let (before, model) = (line.last.clone().expect("just paused"), line.model.clone());
    assert_eq!(layers(&before), 6);
    let merged = line.pause([2, 6, 10], 100);
    // The large layer, one of the pages left of the small ones, and its own.
    assert!(layers(&merged) <= 3, "{} layers: nothing was merged", layers(&merged));
    line.check(&merged, &line.model);
    line.check(&before, &model);
}

#[test]
fn layers_are_left_alone_until_a_manifest_names_as_many_as_it_is_told() {
    let mut line = Line::merging_at(6);
    line.pause(0..PAGES, 1);
    for fill in 2..7 {
        let snapshot = line.pause([u32::from(fill - 1) * 2], fill);
        assert_eq!(layers(&snapshot), usize::from(fill));
    }
    line.check(line.last.as_ref().expect("just paused"), &line.model);
}

#[test]
fn a_line_of_many_more_layers_than_a_merge_leaves_is_read_and_then_merged_down() {
    // As many as a token of 7 bits for the slot has no room for.
    let many: u8 = 130;
    let mut line = Line::merging_at(many.into());
    line.pause(0..PAGES, 1);
    for fill in 2..=many {
        let snapshot = line.pause([u32::from(fill)], fill);
        assert_eq!(layers(&snapshot), usize::from(fill));
    }
    line.check(line.last.as_ref().expect("just paused"), &line.model);
    let merged = line.pause([3], 200);
    assert!(layers(&merged) <= limits::MERGED_LAYERS_MAX, "{} layers", layers(&merged));
    line.check(&merged, &line.model);
}

#[test]
fn a_disk_that_takes_no_more_files_leaves_merging_to_a_later_pause() {
    let directory = directory();
    let (from, to) = (directory.path().join("layers"), directory.path().join("away"));
    let hooks = Arc::new(TakesDirectory { from, to, is_wanted: AtomicBool::new(false) });
    let mut line = Line::with_hooks(6, hooks.clone(), directory);
    line.pause(0..PAGES, 1);
    for fill in 2..7 {
        line.pause([u32::from(fill - 1) * 2], fill);
    }
    hooks.is_wanted.store(true, Ordering::SeqCst);
    let unmerged = line.pause([12], 100);
    assert_eq!(layers(&unmerged), 7, "its own layer was packed before");
    line.check(&unmerged, &line.model);
    std::fs::rename(&hooks.to, &hooks.from).expect("it was taken away");
    let merged = line.pause([14], 101);
    assert!(layers(&merged) < 7, "{} layers: nothing was merged", layers(&merged));
    line.check(&merged, &line.model);
}
