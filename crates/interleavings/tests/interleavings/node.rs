//! A node with small snapshots that any thread can seal, and the byte-array model that they are compared with.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use engine_under_shuttle::budget::Budget;
use engine_under_shuttle::cache::Cache;
use engine_under_shuttle::capture::{Capture, CapturedPages};
use engine_under_shuttle::fetch::Fetcher;
use engine_under_shuttle::geometry::{GuestPage, GuestPages};
use engine_under_shuttle::identity::{SnapshotId, VolumeName};
use engine_under_shuttle::key_ring::KeyRing;
use engine_under_shuttle::limits::SEALS_AT_ONCE;
use engine_under_shuttle::page_set::PageSet;
use engine_under_shuttle::pause::{PausedGuest, PausedVolume};
use engine_under_shuttle::pool::Pool;
use engine_under_shuttle::read_plan::ReadPlan;
use engine_under_shuttle::reaper::Reaper;
use engine_under_shuttle::snapshot::Snapshot;
use engine_under_shuttle::sources::Sources;
use engine_under_shuttle::steps::{Steps, Tools};
use engine_under_shuttle::stop::Stop;
use engine_under_shuttle::store::Store;
use engine_under_shuttle::view::LiveView;
use object_store::memory::InMemory;
use rekindle_kernel::{Memfd, PAGE_BYTES, PageKind};
use tempfile::TempDir;

/// Pages of every guest.
pub(crate) const PAGES: u32 = 4;

/// Bytes of every guest.
pub(crate) const GUEST_BYTES: u64 = 4 * 4096;

/// Content of a guest's pages: each page is filled with one byte.
pub(crate) type Model = [u8; 4];

/// The model of a guest that has never run.
pub(crate) const BLANK: Model = [0; 4];

/// A runtime that nothing runs on: no read here needs the store.
static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime without threads starts")
});

/// A node. Its reaper ends last.
pub(crate) struct Node {
    pub(crate) steps: Steps,
    pub(crate) fetcher: Fetcher,
    pub(crate) budget: Budget,
    pool: Pool,
    reaper: Reaper,
}

/// A pause: the snapshot, the captures of its seal, and its expected content.
pub(crate) struct Paused {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) captures: Vec<Arc<Capture>>,
    pub(crate) model: Model,
}

/// A directory in memory if possible, as files are written thousands of times.
pub(crate) fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a directory can be made")
}

impl Node {
    pub(crate) fn new(directory: &Path, budget: u64) -> Self {
        Self::with_line(directory, budget, 8)
    }

    pub(crate) fn with_line(directory: &Path, budget: u64, unsealed_max: usize) -> Self {
        let reaper = Reaper::start().expect("a thread of Shuttle's starts");
        let cache =
            Arc::new(Cache::open(directory, KeyRing::of_name("default")).expect("the directory is there"));
        let store = Store::new(Arc::new(InMemory::new()));
        let fetcher = Fetcher::new(
            RUNTIME.handle().clone(),
            Sources::new(store.clone(), KeyRing::of_name("default")),
            Stop::default(),
        );
        let pool = Pool::start("save", SEALS_AT_ONCE).expect("a thread of Shuttle's starts");
        let budget = Budget::new(budget);
        let tools = Tools {
            cache,
            fetcher: fetcher.clone(),
            budget: budget.clone(),
            reaper: reaper.handle(),
            store,
            pool: pool.handle(),
            unsealed_max,
        };
        Self { steps: Steps::new(tools), fetcher, budget, pool, reaper }
    }

    /// Pauses a guest that ran on `parent` and wrote `writes`; a written zero is known to be one without its bytes.
    pub(crate) fn pause(&self, parent: Option<&Paused>, writes: &[(u32, u8)]) -> Paused {
        let base = parent.map(|parent| &parent.snapshot);
        let permit = self.steps.permit(base, GUEST_BYTES).expect("there is room in time");
        let mut model = parent.map_or(BLANK, |parent| parent.model);
        let memfd = Memfd::create("guest", GUEST_BYTES, PageKind::Small).expect("a small memfd is granted");
        let mut pages = CapturedPages { kept: PageSet::new(PAGES), zero: PageSet::new(PAGES) };
        for &(number, byte) in writes {
            let page = GuestPage::new(number);
            model[page.index()] = byte;
            if byte == 0 {
                pages.zero.insert(page);
            } else {
                memfd.write_at(&[byte; PAGE_BYTES], page.offset_bytes()).expect("the page is in the memfd");
                pages.kept.insert(page);
            }
        }
        let name = VolumeName::memory();
        let volumes = vec![PausedVolume { name, page_kind: PageKind::Small, memfd, pages }];
        let guest =
            PausedGuest { id: SnapshotId::new(), volumes, blobs: BTreeMap::new(), alongside: Vec::new() };
        let (snapshot, captures) = self.steps.commit(permit, guest);
        Paused { snapshot, captures, model }
    }

    /// Plans a read of the whole guest.
    pub(crate) fn plan(view: &LiveView) -> ReadPlan {
        ReadPlan::new(view, GuestPages::new(GuestPage::FIRST, PAGES))
    }

    /// Reads a plan and compares the bytes with `model`.
    pub(crate) fn check_plan(&self, plan: ReadPlan, model: &Model) {
        let mut bytes = vec![0xee; usize::try_from(GUEST_BYTES).expect("a small guest")];
        plan.read(&self.fetcher, &mut bytes).expect("everything is on this node");
        let read: Vec<u8> = bytes.chunks(PAGE_BYTES).map(|page| page[0]).collect();
        assert_eq!(read, model, "first bytes of the pages");
        assert!(bytes.chunks(PAGE_BYTES).all(|page| page.iter().all(|byte| *byte == page[0])));
    }

    /// Reads the whole guest and compares it with `model`.
    pub(crate) fn check(&self, view: &LiveView, model: &Model) {
        self.check_plan(Self::plan(view), model);
    }

    /// Ends the reaper: then every capture without a holder is freed, and nothing else.
    pub(crate) fn end(self, captured_bytes: u64) {
        let Self { pool, reaper, budget, .. } = self;
        drop(pool);
        drop(reaper);
        assert_eq!(budget.bytes_held(), captured_bytes, "bytes that captures hold");
    }
}
