//! Shared parts of the serving tests: a guest in this process, and an engine with a snapshot for it.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "only tests use this")]

mod guest;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rekindle_engine::cache_limits::CacheLimits;
use rekindle_engine::capture::CapturedPages;
use rekindle_engine::catalog::Catalog;
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::geometry::{GuestPage, GuestPages};
use rekindle_engine::identity::{SnapshotId, VolumeName};
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::layer::Layer;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::page_set::PageSet;
use rekindle_engine::pause::{PausedGuest, PausedVolume};
use rekindle_engine::serve::{FaultServer, Neighbours, Placement, ServeOptions, ServeStats, ServeStatus};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::store::Store;
use rekindle_engine::tracking::Tracking;
use rekindle_kernel::{Features, Memfd, PageKind};

pub(crate) use guest::{Guest, Kind, content};

pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A node with its store, in a directory of its own.
pub(crate) struct Node {
    pub(crate) engine: Engine,
    pub(crate) directory: tempfile::TempDir,
    catalog: Option<Catalog>,
}

impl Node {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { engine: engine(&directory, "first"), directory, catalog: None }
    }

    /// A node whose working sets may take this percentage of its snapshots' bytes.
    pub(crate) fn with_share(share: u8) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = EngineOptions { working_set_share: share, ..options_of(&directory, "first") };
        Self { engine: Engine::start(options).unwrap(), directory, catalog: None }
    }

    /// A node with RAM for captures of this many bytes.
    pub(crate) fn with_captures(capture_bytes_max: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = EngineOptions { capture_bytes_max, ..options_of(&directory, "first") };
        Self { engine: Engine::start(options).unwrap(), directory, catalog: None }
    }

    /// The same, with room for this many bytes of layer files.
    pub(crate) fn with_room(share: u8, bytes_max: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let cache_limits = CacheLimits { bytes_max: Some(bytes_max), ..CacheLimits::default() };
        let options =
            EngineOptions { working_set_share: share, cache_limits, ..options_of(&directory, "first") };
        Self { engine: Engine::start(options).unwrap(), directory, catalog: None }
    }

    /// A node that has a catalog, and no keeper.
    pub(crate) fn recording() -> Self {
        Self::recording_in(tempfile::tempdir().unwrap())
    }

    /// The same node after its process was restarted.
    pub(crate) fn restarted(self) -> Self {
        let Self { engine, directory, catalog } = self;
        drop((engine, catalog));
        Self::recording_in(directory)
    }

    fn recording_in(directory: tempfile::TempDir) -> Self {
        let catalog = Catalog::open(&directory.path().join("catalog.redb")).unwrap();
        let store = Store::directory(&directory.path().join("store")).unwrap();
        let options = EngineOptions {
            catalog: Some(catalog.clone()),
            ..EngineOptions::new(directory.path().join("first"), store, KeyRing::of_name("default"))
        };
        Self { engine: Engine::start(options).unwrap(), directory, catalog: Some(catalog) }
    }

    /// The node's catalog.
    pub(crate) fn catalog(&self) -> &Catalog {
        self.catalog.as_ref().unwrap()
    }

    /// Another engine over the same store that has nothing local.
    pub(crate) fn elsewhere(&self) -> Engine {
        engine(&self.directory, "second")
    }

    /// A snapshot whose page `p` has the content of `word(p)`; pages without a word are zero.
    pub(crate) fn snapshot(&self, pages: usize, word: impl Fn(usize) -> Option<u64>) -> Arc<Snapshot> {
        self.snapshot_of(None, pages, word)
    }

    /// The same of a child, whose pages without a word are its parent's.
    pub(crate) fn snapshot_of(
        &self,
        parent: Option<&Arc<Snapshot>>,
        pages: usize,
        word: impl Fn(usize) -> Option<u64>,
    ) -> Arc<Snapshot> {
        let bytes = u64::try_from(pages * 4096).unwrap();
        let permit = self.engine.permit_pause(parent, bytes).unwrap();
        let memfd = Memfd::create("guest", bytes, PageKind::Small).unwrap();
        let count = u32::try_from(pages).unwrap();
        let mut kept = PageSet::new(count);
        for page in 0..pages {
            if let Some(word) = word(page) {
                memfd.write_at(&content(word), u64::try_from(page * 4096).unwrap()).unwrap();
                kept.insert(GuestPage::new(u32::try_from(page).unwrap()));
            }
        }
        let pages = CapturedPages { kept, zero: PageSet::new(count) };
        let volume = PausedVolume { name: VolumeName::memory(), page_kind: PageKind::Small, memfd, pages };
        let guest = PausedGuest {
            id: SnapshotId::new(),
            volumes: vec![volume],
            blobs: BTreeMap::new(),
            alongside: Vec::new(),
        };
        self.engine.commit_pause(permit, guest).unwrap()
    }

    /// The same snapshot, known only from the store, on an engine that has nothing of it yet.
    pub(crate) fn cold(&self, snapshot: &Arc<Snapshot>) -> (Engine, Arc<Snapshot>) {
        assert!(snapshot.wait_state(SnapshotState::Published, LIMIT), "published in time");
        let engine = self.elsewhere();
        let cold = engine.open(snapshot.id()).unwrap();
        (engine, cold)
    }

    /// Moves every stored layer away, or back.
    pub(crate) fn store_layers_there(&self, there: bool) {
        let (here, away) = (self.directory.path().join("store/layers"), self.directory.path().join("away"));
        let (from, to) = if there { (away, here) } else { (here, away) };
        std::fs::rename(from, to).unwrap();
    }

    /// Makes the system drop the layer files of a sealed snapshot from its cache; false, after printing a line, if it
    /// does not.
    pub(crate) fn evict_layers(&self, test: &str, snapshot: &Snapshot) -> bool {
        for entry in std::fs::read_dir(self.directory.path().join("first")).unwrap() {
            let file = std::fs::File::open(entry.unwrap().path()).unwrap();
            file.sync_all().unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
        let view = snapshot.memory().load();
        let in_memory = |layer: &Arc<Layer>| {
            let local = layer.local();
            local.mapping().resident_prefix_bytes(0, local.mapping().bytes()) > 0
        };
        let evicted = !view.layers().is_empty() && !view.layers().iter().any(in_memory);
        if !evicted {
            guest::skipped(test, &"the layer files stay in memory, as on tmpfs");
        }
        evicted
    }
}

fn engine(directory: &tempfile::TempDir, name: &str) -> Engine {
    Engine::start(options_of(directory, name)).unwrap()
}

fn options_of(directory: &tempfile::TempDir, name: &str) -> EngineOptions {
    let store = Store::directory(&directory.path().join("store")).unwrap();
    let cache: PathBuf = directory.path().join(name);
    EngineOptions::new(cache, store, KeyRing::of_name("default"))
}

/// A guest of `snapshot`'s size that runs from it.
pub(crate) fn serve(
    test: &str,
    kind: Kind,
    tracking: Tracking,
    engine: &Engine,
    snapshot: &Snapshot,
) -> Option<(Guest, FaultServer)> {
    serve_with(test, kind, options(tracking), engine, snapshot)
}

pub(crate) fn options(tracking: Tracking) -> ServeOptions {
    ServeOptions { tracking, placement: Placement::Anywhere, neighbours: Neighbours::Adaptive }
}

/// The features that a guest's userfaultfd needs for this tracking.
pub(crate) fn features(tracking: Tracking) -> Features {
    match tracking {
        Tracking::Scan => Features::WP_ASYNC | Features::WP_HUGETLBFS_SHMEM,
        Tracking::Events => Features::PAGEFAULT_FLAG_WP | Features::WP_HUGETLBFS_SHMEM,
        Tracking::Resident => Features::NONE,
        Tracking::Diverged => Features::MISSING_SHMEM | Features::MINOR_SHMEM,
    }
}

pub(crate) fn serve_with(
    test: &str,
    kind: Kind,
    options: ServeOptions,
    engine: &Engine,
    snapshot: &Snapshot,
) -> Option<(Guest, FaultServer)> {
    let view = Arc::clone(snapshot.memory());
    let pages = usize::try_from(view.pages()).unwrap();
    let (guest, handover) = Guest::start(test, kind, pages, features(options.tracking))?;
    let server = FaultServer::start(view, handover, engine.fetcher().clone(), options).unwrap();
    Some((guest, server))
}

/// Waits until the guest stalls; returns the reason.
pub(crate) fn stalled(server: &FaultServer) -> String {
    match server.wait_status(LIMIT, |status| matches!(status, ServeStatus::Stalled { .. })) {
        ServeStatus::Stalled { reason, .. } => reason,
        other @ (ServeStatus::Running | ServeStatus::Ended { .. }) => {
            panic!("stalled in time, not {other:?}")
        }
    }
}

/// Waits until the counts are as `wanted`: a guest runs on before its install is counted.
pub(crate) fn counted(server: &FaultServer, wanted: impl Fn(&ServeStats) -> bool) -> ServeStats {
    let deadline = Instant::now() + LIMIT;
    loop {
        let stats = server.stats();
        if wanted(&stats) {
            return stats;
        }
        assert!(Instant::now() < deadline, "counted in time: {stats:?}");
        std::thread::yield_now();
    }
}

pub(crate) fn pages_of(runs: &[(u32, u32)], pages: u32) -> PageSet {
    let mut set = PageSet::new(pages);
    for &(start, count) in runs {
        set.insert_run(GuestPages::new(GuestPage::new(start), count));
    }
    set
}
