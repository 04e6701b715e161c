//! One node in this process: an engine with a store of its own, and process guests on it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rekindle_engine::capture::CapturedPages;
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::identity::{SnapshotId, VolumeName};
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::pause::{PausedGuest, PausedVolume};
use rekindle_engine::peer::{NoPeers, Peers};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::store::Store;
use rekindle_guest::process::history::{Rewrite, Share};
use rekindle_kernel::{Memfd, PageKind};
use rekindle_testkit::hooks::{Held, Point, TestHooks};
use rekindle_testkit::sandbox::{Paused, Sandbox};
use rekindle_vmm::process::GuestShape;
use tempfile::TempDir;

/// Longest time for anything in the background.
const BACKGROUND_LIMIT: Duration = Duration::from_secs(300);
/// Pages a guest touches in its first step.
pub(crate) const STEP_PAGES: u32 = 64;

/// An engine, and where it and its store keep their files.
pub(crate) struct Node {
    pub(crate) engine: Engine,
    hooks: Arc<TestHooks>,
    pub(crate) store_directory: PathBuf,
    _directory: TempDir,
}

impl Node {
    /// A node that knows nothing.
    pub(crate) fn new() -> anyhow::Result<Self> {
        Self::in_directory(tempfile::tempdir().context("a directory for a node")?)
    }

    /// The same in a directory of the caller's choice.
    pub(crate) fn in_directory(directory: TempDir) -> anyhow::Result<Self> {
        let store_directory = directory.path().join("store");
        Self::with(directory, store_directory, Arc::new(NoPeers))
    }

    /// A node that publishes into the store of another one, and may read from others.
    pub(crate) fn beside(other: &Self, peers: Arc<dyn Peers>) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().context("a directory for a node")?;
        Self::with(directory, other.store_directory.clone(), peers)
    }

    fn with(directory: TempDir, store_directory: PathBuf, peers: Arc<dyn Peers>) -> anyhow::Result<Self> {
        let hooks = Arc::<TestHooks>::default();
        let store = Store::directory(&store_directory)?;
        let keys = KeyRing::of_name("default");
        let mut options = EngineOptions::new(directory.path().join("cache"), store, keys);
        options.hooks = hooks.clone();
        options.peers = peers;
        Ok(Self { engine: Engine::start(options)?, hooks, store_directory, _directory: directory })
    }

    /// The published snapshot of a guest of `memory_bytes`, all of it filled.
    pub(crate) fn filled(&self, memory_bytes: u64) -> anyhow::Result<Arc<Snapshot>> {
        let mut sandbox = Sandbox::start(shape(memory_bytes)?)?;
        sandbox.guest.control.fill(1)?;
        let Paused { snapshot, ending, .. } = sandbox.pause(&self.engine)?;
        drop(ending);
        wait_published(&snapshot)?;
        Ok(snapshot)
    }

    /// Resumes `parent`, lets the guest write `share` of its pages, and pauses it.
    pub(crate) fn changed(&self, parent: &Arc<Snapshot>, share: Share) -> anyhow::Result<Paused> {
        let memory_bytes = u64::from(parent.memory().pages()) * 4096;
        let mut sandbox = Sandbox::resume(&self.engine, parent, shape(memory_bytes)?)?;
        sandbox.guest.control.rewrite(Rewrite { share, zero_percent: 10, same_percent: 10 })?;
        sandbox.pause(&self.engine)
    }

    /// Seconds from asking for a resume of `snapshot` to the end of its guest's first step.
    pub(crate) fn first_step(&self, snapshot: &Arc<Snapshot>) -> anyhow::Result<f64> {
        self.first_step_of(snapshot, STEP_PAGES)
    }

    /// The same of a step that touches so many pages.
    pub(crate) fn first_step_of(&self, snapshot: &Arc<Snapshot>, pages: u32) -> anyhow::Result<f64> {
        let memory_bytes = u64::from(snapshot.memory().pages()) * 4096;
        let shape = shape(memory_bytes)?;
        let asked = Instant::now();
        let mut sandbox = Sandbox::resume(&self.engine, snapshot, shape)?;
        let ticked = sandbox.guest.control.tick(pages)?;
        let seconds = asked.elapsed().as_secs_f64();
        ensure!(ticked.verified.mismatches == 0, "the guest found wrong pages in its first step");
        Ok(seconds)
    }

    /// Holds every seal just before it compares.
    pub(crate) fn hold_seals(&self) -> Held {
        self.hooks.hold(Point::Compare)
    }

    /// Holds every seal just before it takes names: nothing is published.
    pub(crate) fn hold_names(&self) -> Held {
        self.hooks.hold(Point::Manifest)
    }

    /// Waits until the seal of `snapshot` stands where it is held.
    pub(crate) fn wait_held(&self, snapshot: &Snapshot) -> anyhow::Result<()> {
        let held = self.hooks.wait_standing(Point::Compare, snapshot.id(), BACKGROUND_LIMIT);
        ensure!(held, "the seal of {} did not begin", snapshot.id());
        Ok(())
    }

    /// Waits until nothing is done for `snapshot` any more, then forgets it, and the objects it uploaded: rows that
    /// save gigabytes again and again would fill the disk.
    pub(crate) fn forget(&self, snapshot: &Arc<Snapshot>) -> anyhow::Result<()> {
        wait_published(snapshot)?;
        self.engine.delete(snapshot)?;
        let uploads = snapshot.id().to_string();
        for layer in std::fs::read_dir(self.store_directory.join("layers"))? {
            for object in std::fs::read_dir(layer?.path())? {
                let object = object?;
                if object.file_name().to_string_lossy().starts_with(&uploads) {
                    std::fs::remove_file(object.path())?;
                }
            }
        }
        Ok(())
    }
}

/// Waits until `snapshot` is in the store.
pub(crate) fn wait_published(snapshot: &Snapshot) -> anyhow::Result<()> {
    let published = snapshot.wait_state(SnapshotState::Published, BACKGROUND_LIMIT);
    let status = snapshot.status();
    ensure!(published, "{} was not published: {}", snapshot.id(), status.failure.unwrap_or_default());
    Ok(())
}

/// A process guest that this very program is.
pub(crate) fn shape(memory_bytes: u64) -> anyhow::Result<GuestShape> {
    Ok(GuestShape::new(
        std::env::current_exe().context("this very program, to be run as a guest")?,
        memory_bytes,
    ))
}

/// A frozen guest of one volume, its memory.
pub(crate) fn paused_guest(memfd: Memfd, pages: CapturedPages) -> PausedGuest {
    let volume = PausedVolume { name: VolumeName::memory(), page_kind: PageKind::Small, memfd, pages };
    let (id, blobs) = (SnapshotId::new(), BTreeMap::new());
    PausedGuest { id, volumes: vec![volume], blobs, alongside: Vec::new() }
}
