//! The pauses of the workload on a real engine, into a store in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::TryStreamExt as _;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path;
use rekindle_engine::capture::CapturedPages;
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::geometry::{GuestPage, GuestPages, bytes_of_pages, usize_of};
use rekindle_engine::identity::{SnapshotId, VolumeName};
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::page_set::PageSet;
use rekindle_engine::pause::{PausedGuest, PausedVolume};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::store::Store;
use rekindle_engine::working_set::{Touch, WorkingSet};
use rekindle_kernel::{Memfd, PAGE_BYTES, PageKind};
use rekindle_testkit::random::Random;

use super::workload::{BLOCK_PAGES, Cycle, Workload};

/// Longest time from a pause until its snapshot is in the store.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(300);

/// Snapshots of the workload in a store.
pub(crate) struct Stored {
    /// The store's objects.
    pub(crate) objects: Arc<dyn ObjectStore>,
    /// The last snapshot.
    pub(crate) last: SnapshotId,
    /// The bytes of each page at the last pause.
    pub(crate) content: Content,
    /// Bytes of the objects of layers, without the first snapshot's.
    pub(crate) layers_bytes: u64,
    /// Bytes of all other objects, without the first snapshot's and the working set.
    pub(crate) other_bytes: u64,
    /// Bytes of the last snapshot's working set.
    pub(crate) packed_bytes: u64,
}

/// Bytes of each page of a guest, by the seed that they follow from; none for a zero page.
#[derive(Clone)]
pub(crate) struct Content(Vec<Option<u64>>);

impl Content {
    fn of_first(workload: &Workload) -> Self {
        let mut content = Self((0..u64::from(workload.pages)).map(Some).collect());
        content.set(&workload.first_zero, |_| None);
        content
    }

    fn write(&mut self, number: u64, cycle: &Cycle) {
        self.set(&cycle.new, |page| Some(number << 32 | u64::from(page.number())));
        self.set(&cycle.zero, |_| None);
    }

    fn set(&mut self, runs: &[GuestPages], seed: impl Fn(GuestPage) -> Option<u64>) {
        for page in runs.iter().flat_map(|run| run.iter()) {
            self.0[page.index()] = seed(page);
        }
    }

    /// Fills `into` with the bytes of a page.
    pub(crate) fn read(&self, page: GuestPage, into: &mut [u8; PAGE_BYTES]) {
        match self.0[page.index()] {
            Some(seed) => Random::new(seed).fill(into),
            None => into.fill(0),
        }
    }
}

/// Pauses the workload's guest after each of its cycles, and waits until all snapshots are in the store.
pub(crate) fn pause(workload: &Workload) -> anyhow::Result<Stored> {
    let directory = tempfile::tempdir().context("a directory for a node")?;
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let store = Store::new(Arc::clone(&objects));
    let engine = Engine::start(EngineOptions::new(directory.path().join("cache"), store, keys()))?;
    let mut content = Content::of_first(workload);
    let all = PageSet::full(workload.pages);
    let mut last = paused(&engine, None, &content, all)?;
    let of_first = (bytes_under(&objects, "layers")?, bytes_under(&objects, "")?);
    for (number, cycle) in (1..).zip(&workload.cycles) {
        content.write(number, cycle);
        last = paused(&engine, Some(&last), &content, blocks_of(cycle, workload.pages))?;
    }
    let layers_bytes = bytes_under(&objects, "layers")? - of_first.0;
    let other_bytes = bytes_under(&objects, "")? - of_first.1 - layers_bytes;
    engine.keep_working_set(&last, set_of(&last, &workload.wanted));
    let packed_bytes = bytes_under(&objects, "working-sets")?;
    Ok(Stored { last: last.id(), objects, content, layers_bytes, other_bytes, packed_bytes })
}

/// A working set that has the wanted pages.
fn set_of(snapshot: &Snapshot, wanted: &[GuestPages]) -> WorkingSet {
    let touches = wanted.iter().map(|run| Touch::Beside(*run));
    WorkingSet::new(snapshot.id(), snapshot.memory().pages(), touches)
}

/// The published snapshot of a guest whose pages of the set `kept` were written.
fn paused(
    engine: &Engine,
    parent: Option<&Arc<Snapshot>>,
    content: &Content,
    kept: PageSet,
) -> anyhow::Result<Arc<Snapshot>> {
    let bytes = bytes_of_pages(kept.pages());
    let permit = engine.permit_pause(parent, bytes)?;
    let memfd = Memfd::create("guest", bytes, PageKind::Small)?;
    let mut page_bytes = [0; PAGE_BYTES];
    for page in kept.iter().filter(|page| content.0[page.index()].is_some()) {
        content.read(page, &mut page_bytes);
        memfd.write_at(&page_bytes, page.offset_bytes())?;
    }
    let pages = CapturedPages { zero: PageSet::new(kept.pages()), kept };
    let volume = PausedVolume { name: VolumeName::memory(), page_kind: PageKind::Small, memfd, pages };
    let guest = PausedGuest {
        id: SnapshotId::new(),
        volumes: vec![volume],
        blobs: BTreeMap::new(),
        alongside: Vec::new(),
    };
    let snapshot = engine.commit_pause(permit, guest)?;
    let published = snapshot.wait_state(SnapshotState::Published, PUBLISHED_WITHIN);
    ensure!(published, "{} was not published: {:?}", snapshot.id(), snapshot.status().failure);
    Ok(snapshot)
}

/// All pages of the blocks that a cycle wrote to.
fn blocks_of(cycle: &Cycle, pages: u32) -> PageSet {
    let mut written = PageSet::new(pages);
    for run in [&cycle.new, &cycle.zero, &cycle.same].into_iter().flatten() {
        let first = run.start().number() / BLOCK_PAGES * BLOCK_PAGES;
        let end = run.end().number().next_multiple_of(BLOCK_PAGES).min(pages);
        written.insert_run(GuestPages::between(GuestPage::new(first), GuestPage::new(end)));
    }
    written
}

/// Bytes of the objects whose keys begin with `prefix`.
pub(crate) fn bytes_under(objects: &Arc<dyn ObjectStore>, prefix: &str) -> anyhow::Result<u64> {
    let prefix = Path::from(prefix);
    let sum = objects.list(Some(&prefix)).try_fold(0, |sum, object| async move { Ok(sum + object.size) });
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    Ok(runtime.block_on(sum)?)
}

/// The keys of the workload's domain.
pub(crate) fn keys() -> KeyRing {
    KeyRing::of_name("default")
}

/// Checks that `read` has the content of `pages`.
pub(crate) fn check(content: &Content, pages: GuestPages, read: &[u8]) -> anyhow::Result<()> {
    ensure!(read.len() == usize_of(pages.count()) * PAGE_BYTES, "every page was read");
    let mut expected = [0; PAGE_BYTES];
    for (page, found) in pages.iter().zip(read.chunks(PAGE_BYTES)) {
        content.read(page, &mut expected);
        ensure!(found == expected, "page {page} has other bytes after the resume");
    }
    Ok(())
}
