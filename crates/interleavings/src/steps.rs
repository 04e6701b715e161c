//! A snapshot's life in single steps, which tests under Shuttle take on threads of their own.

use std::sync::Arc;

use crate::budget::{Budget, Lease};
use crate::byte_budget::ByteBudget;
use crate::cache::Cache;
use crate::capture::Capture;
use crate::fetch::Fetcher;
use crate::follow::{Follower, compare};
use crate::frame::FrameNumber;
use crate::geometry::GuestPages;
use crate::hooks::NoHooks;
use crate::image::Images;
use crate::life::{Background, Life, Work};
use crate::lifecycle::{SnapshotEvent, SnapshotWork};
use crate::limits;
use crate::pause::{Base, PauseError, PausePermit, PauseRules, PausedGuest};
use crate::peer::Peer;
use crate::pool::PoolHandle;
use crate::precedence::Precedence;
use crate::publish::Publisher;
use crate::reaper::ReaperHandle;
use crate::remote_pages::{Memory, NamedPages, RemotePages, RemoteVolume};
use crate::roots::Roots;
use crate::seal::{Sealer, Sealing};
use crate::snapshot::Snapshot;
use crate::stop::Stop;
use crate::store::Store;
use crate::sync::block_on;
use crate::watch::NoWatcher;
use crate::working_sets::WorkingSets;

/// The steps of an engine's work on snapshots, without its tasks and without a store behind it.
#[derive(Debug)]
pub struct Steps {
    rules: PauseRules,
    background: Arc<Background>,
}

/// The parts that steps use.
#[derive(Debug)]
pub struct Tools {
    /// The cache of layer files.
    pub cache: Arc<Cache>,
    /// Fetches frames for reads.
    pub fetcher: Fetcher,
    /// RAM for captures.
    pub budget: Budget,
    /// Frees captures.
    pub reaper: ReaperHandle,
    /// A store that no step uses.
    pub store: Store,
    /// The pool on which snapshots are compared, packed, named and recorded.
    pub pool: PoolHandle,
    /// Snapshots in one line that may be unsealed at once.
    pub unsealed_max: usize,
}

impl Steps {
    /// Steps with these tools, each comparison on two threads.
    pub fn new(tools: Tools) -> Self {
        let keys = tools.cache.keys().clone();
        let Tools { cache, fetcher, budget, reaper, store, pool, unsealed_max } = tools;
        let sealing = Sealing { workers: 2, merge_at_layers: limits::MERGE_AT_LAYERS };
        let uploads = ByteBudget::new(limits::UPLOAD_BYTES_MAX);
        let sets = WorkingSets {
            fetcher: fetcher.clone(),
            encoding: pool.clone(),
            budget: uploads.clone(),
            share: 0,
        };
        let follower = Follower { fetcher: fetcher.clone(), cache: Arc::clone(&cache) };
        let sealer = Sealer::new(cache, fetcher, sealing, Precedence::default(), Arc::new(NoHooks));
        let sealing = pool.clone();
        let publisher = Publisher {
            store,
            encoding: pool.clone(),
            pool,
            budget: uploads,
            keys: keys.clone(),
            stop: Stop::default(),
            uploads: None,
            part_bytes: limits::UPLOAD_PART_BYTES,
            roots: Roots::default(),
        };
        let watcher = Arc::new(NoWatcher);
        let background = Arc::new(Background {
            sealer,
            sealing,
            publisher,
            reaper: reaper.clone(),
            records: None,
            watcher,
            run_roots: Arc::default(),
            sets: Arc::new(sets),
            origin: None,
            follower,
        });
        let wait = limits::PAUSE_WAIT_DEFAULT;
        let (only_here, unpublished_bytes_max) = (Arc::default(), None);
        let images = Images::new(budget.clone(), reaper.clone());
        let rules =
            PauseRules { keys, budget, unsealed_max, wait, reaper, only_here, images, unpublished_bytes_max };
        Self { rules, background }
    }

    /// The wait before a pause.
    pub fn permit(
        &self,
        parent: Option<&Arc<Snapshot>>,
        memory_bytes: u64,
    ) -> Result<PausePermit, PauseError> {
        let own = Base::Domain(self.rules.keys.own().domain().name());
        self.rules.permit(parent.map_or(own, Base::Snapshot), memory_bytes, &|| true)
    }

    /// The pause.
    pub fn commit(&self, permit: PausePermit, guest: PausedGuest) -> (Arc<Snapshot>, Vec<Arc<Capture>>) {
        permit.commit(guest, None).expect("the test's guest can be taken over")
    }

    /// The whole seal, with the work it leaves.
    pub fn seal(&self, snapshot: &Arc<Snapshot>, captures: Vec<Arc<Capture>>) -> SnapshotWork {
        let life = Life { snapshot: Arc::clone(snapshot), background: Arc::clone(&self.background) };
        let mut work = Work::seal(captures);
        while let Work::Seal(_) = work {
            let done = block_on(life.attempt(&work)).expect("no step is told to stop");
            work = done.expect("neither disk nor memory fails");
        }
        match work {
            Work::Nothing | Work::Seal(_) | Work::Follow => SnapshotWork::None,
            Work::Publish(_) => SnapshotWork::Publish,
            Work::RemoveFromStore => SnapshotWork::RemoveFromStore,
        }
    }

    /// Records an event of the owner or the store.
    pub fn record(&self, snapshot: &Snapshot, event: SnapshotEvent) -> SnapshotWork {
        snapshot.record(event)
    }
}

/// The pages of a volume that another node has, which come and are compared in single steps.
#[derive(Debug)]
pub struct RemoteSteps(Arc<RemotePages>);

impl RemoteSteps {
    /// So many pages, of which none has come.
    pub fn new(
        of: RemoteVolume,
        pages: u32,
        peer: Arc<dyn Peer>,
        lease: Lease,
        reaper: ReaperHandle,
    ) -> Self {
        let memory = Memory::new(pages, lease).expect("there is memory");
        let pages = RemotePages::new(of, pages, peer, memory, reaper);
        Self(Arc::new(pages.expect("there is memory")))
    }

    /// The pages.
    pub fn pages(&self) -> &RemotePages {
        &self.0
    }

    /// The other node's answer comes: as it is, or the frame by name if it has one by now.
    pub fn come(&self, frame: FrameNumber, bytes: &[u8]) {
        if let Some(named) = self.0.take_in(frame, bytes).expect("there is memory") {
            self.0.read_named(frame, &*named).expect("there is memory");
        }
    }

    /// Compares the frames that came with the named ones, and lets later ones come by name; the first page that differs.
    pub fn compare<Named: NamedPages + 'static>(&self, named: &Arc<Named>) -> Option<GuestPages> {
        compare(&self.0, named).expect("named pages can be read")
    }
}
