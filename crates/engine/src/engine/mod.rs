//! The engine: all operations of a node on snapshots. It checks and records; the modules before it do the work.

mod collecting;
mod counts;
mod deleting;
mod forgetting;
mod images;
mod learned;
mod lending;
mod options;
mod remote;
mod restore;
mod transfer;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};

use crate::aside::AsideDirectory;
use crate::budget::Budget;
use crate::byte_budget::ByteBudget;
use crate::cache::Cache;
use crate::cache_limits::BoundedCache;
use crate::collect::{CollectTimes, Collector};
use crate::deleted::Deleted;
use crate::fetch::Fetcher;
use crate::follow::Follower;
use crate::geometry::GuestPages;
use crate::identity::{DomainName, SnapshotId};
use crate::image::Images;
use crate::key_ring::NoKeyOfDomain;
use crate::life::{Background, Life, Work};
use crate::limits;
use crate::lives::Lives;
use crate::open::{OpenError, Openings, known_and_there, open};
use crate::pause::{Base, CommitError, PausePermit, PauseRules, PausedGuest, Permitted};
use crate::peer::{EngineId, Peers};
use crate::pool::Pool;
use crate::precedence::Precedence;
use crate::publish::Publisher;
use crate::read_plan::{ReadError, ReadPlan};
use crate::reaper::Reaper;
use crate::records::Records;
use crate::replay::{Replay, ReplayError, Replayed};
use crate::republish::{LookedFor, RepublishError, look_for_published};
use crate::roots::Roots;
use crate::run_roots::{RunRoots, SnapshotsThere};
use crate::seal::{Sealer, Sealing};
use crate::snapshot::Snapshot;
use crate::sources::{Class, SourceError, Sources};
use crate::stop::Stop;
use crate::store_list::StoredSnapshot;
use crate::sync::{Mutex, lock};
use crate::threads::StoreRuntime;
use crate::tombstones::Deletion;
use crate::upload_record::UploadRecords;
use crate::verify::{Verification, verify};
use crate::view::LiveView;
use crate::working_sets::WorkingSets;

pub use deleting::UndeleteError;
pub use forgetting::ForgetError;
pub use options::{CollectSchedule, EngineOptions};
pub use transfer::{ExportError, ImportError, Transferred};

use restore::replay;

/// A node's snapshots. Dropping it ends all background work and leaves every file that a snapshot needs.
#[derive(Debug)]
pub struct Engine {
    id: EngineId,
    background: Arc<Background>,
    cache: Arc<Cache>,
    bounded: Arc<BoundedCache>,
    collector: Arc<Collector>,
    fetcher: Fetcher,
    rules: PauseRules,
    precedence: Precedence,
    there: SnapshotsThere,
    openings: Openings,
    /// Snapshots that this engine deleted, as long as their lives, sandboxes or children hold them.
    deleting: Mutex<HashMap<SnapshotId, Weak<Snapshot>>>,
    replay: Replay,
    peers: Arc<dyn Peers>,
    lives: Option<Lives>,
    /// The pools of background work; they end first.
    _pools: [Pool; 3],
    _reaper: Reaper,
    runtime: StoreRuntime,
}

/// Reason that an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The system or the local disk refused something.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The catalog's snapshots could not be restored.
    #[error(transparent)]
    Replay(#[from] ReplayError),
}

impl Engine {
    /// Starts an engine. With a catalog, its snapshots are restored when this returns, and their seals and uploads go
    /// on.
    pub fn start(options: EngineOptions) -> Result<Self, StartError> {
        let runtime = StoreRuntime::start()?;
        let EngineOptions {
            cache_directory, store, keys, compare_workers, merge_at_layers, part_bytes, ..
        } = options;
        let (hooks, watcher) = (options.hooks, options.watcher);
        let reaper = Reaper::start()?;
        let files_open_max = options.cache_limits.files_open_max;
        let cache = Arc::new(Cache::open_with(&cache_directory, keys, files_open_max)?);
        let bounded = BoundedCache::new(Arc::clone(&cache), options.cache_limits, store.clone());
        let stop = Stop::default();
        let id = EngineId::new();
        let sources = Sources::new(store.clone(), cache.keys().clone());
        let sources = sources.with_peers(Arc::clone(&options.peers), id);
        let fetcher = Fetcher::new(runtime.handle().clone(), sources, stop.clone());
        runtime.spawn(store.clone().keep_looking());
        let lives = Lives::new(runtime.handle().clone());
        let sealing_pool = Pool::start("seal", limits::SEALS_AT_ONCE)?;
        let saving_pool = Pool::start("save", limits::SAVING_THREADS)?;
        let encoding_pool = Pool::start("encode", options.encode_workers)?;
        let (precedence, shared) = (Precedence::default(), Arc::clone(&cache));
        let sealing = Sealing { workers: compare_workers, merge_at_layers };
        let sealer =
            Sealer::new(shared, fetcher.of_class(Class::Background), sealing, precedence.clone(), hooks);
        let (pool, uploads) = (saving_pool.handle(), ByteBudget::new(limits::UPLOAD_BYTES_MAX));
        let keys = cache.keys().clone();
        let (keeper, shared) = (options.keeper, Arc::clone(&cache));
        let EngineOptions { second_look_after, node_abandoned_after, manifest_memory, .. } = options;
        let times = CollectTimes { second_look_after, node_abandoned_after };
        let collector = Collector::new(store.clone(), options.catalog.clone(), manifest_memory, times);
        let collector = Arc::new(collector);
        let records = options.catalog.map(|catalog| Records::new(catalog, keeper, shared, reaper.handle()));
        let records_of_uploads = records.as_ref().map(|records| UploadRecords::of(records.catalog().clone()));
        let sets = WorkingSets {
            fetcher: fetcher.of_class(Class::Background),
            encoding: encoding_pool.handle(),
            budget: uploads.clone(),
            share: options.working_set_share,
        };
        let publisher = Publisher {
            store,
            pool,
            encoding: encoding_pool.handle(),
            budget: uploads,
            keys: keys.clone(),
            stop,
            uploads: records_of_uploads,
            part_bytes,
            roots: Roots::default(),
        };
        let budget = Budget::new(options.capture_bytes_max);
        let replayed = match &records {
            Some(records) => replay(records, &cache, &budget, (reaper.handle(), &*options.peers))?,
            None => Replayed::default(),
        };
        let Replayed { known, deleted, work, taken_back: _, replay } = replayed;
        let origins_may_be_asked = !(known.is_empty() && deleted.is_empty());
        let there = SnapshotsThere {
            known: Arc::new(Mutex::new(known.into_iter().map(|known| (known.id(), known)).collect())),
            deleted: Arc::new(Deleted::new(deleted, origins_may_be_asked)),
        };
        let sealing = sealing_pool.handle();
        let background = Arc::new(Background {
            sealer,
            sealing,
            publisher,
            reaper: reaper.handle(),
            records,
            watcher,
            run_roots: Arc::new(RunRoots::new(there.clone())),
            sets: Arc::new(sets),
            origin: options.origin,
            follower: Follower { fetcher: fetcher.of_class(Class::Background), cache: Arc::clone(&cache) },
        });
        let rules = PauseRules {
            keys,
            images: Images::new(budget.clone(), reaper.handle()),
            budget,
            unsealed_max: options.unsealed_max,
            wait: options.pause_wait,
            reaper: reaper.handle(),
            only_here: Arc::clone(cache.files().only_here()),
            unpublished_bytes_max: options.unpublished_bytes_max,
        };
        let engine = Self {
            id,
            background,
            cache,
            bounded: Arc::new(bounded),
            collector,
            fetcher,
            rules,
            precedence,
            there,
            openings: Openings::default(),
            deleting: Mutex::default(),
            replay,
            peers: options.peers,
            lives: Some(lives),
            _pools: [sealing_pool, encoding_pool, saving_pool],
            _reaper: reaper,
            runtime,
        };
        engine.go_on_with(work);
        engine.give_up_lost_uploads();
        engine.watch_disk();
        engine.keep_roots();
        if let Some(schedule) = options.collect {
            engine.collect_by(schedule);
        }
        Ok(engine)
    }

    /// The layer files that a start set aside, as its catalog did not name them.
    pub fn aside(&self) -> &AsideDirectory {
        self.cache.aside()
    }

    fn go_on_with(&self, work: Vec<(Arc<Snapshot>, Work)>) {
        for (snapshot, work) in work {
            self.begin_life(&snapshot, work);
        }
    }

    /// Waits, while the guest still runs, for room for `memory_bytes`, and for ancestors to be sealed if too many are
    /// not; the wait itself is limited by the options. A guest without a parent is of the node's own domain.
    pub fn permit_pause(&self, parent: Option<&Arc<Snapshot>>, memory_bytes: u64) -> Permitted {
        let own = Base::Domain(self.cache.keys().own().domain().name());
        self.permit_pause_while(parent.map_or(own, Base::Snapshot), memory_bytes, &|| true)
    }

    /// The same; it gives up soon after `is_wanted` returns false.
    pub fn permit_pause_while(
        &self,
        base: Base<'_>,
        memory_bytes: u64,
        is_wanted: &dyn Fn() -> bool,
    ) -> Permitted {
        let _span = tracing::info_span!("permit pause", memory_bytes).entered();
        self.rules.permit(base, memory_bytes, is_wanted)
    }

    /// The domain that a request means: the node's own one unless it names another, of which the node must have a key.
    pub fn domain(&self, named: Option<&DomainName>) -> Result<DomainName, NoKeyOfDomain> {
        let keys = self.cache.keys();
        let key = named.map_or(Ok(keys.own()), |domain| keys.of_domain(domain))?;
        Ok(key.domain().name().clone())
    }

    /// Takes a frozen guest over as a snapshot, which can be used at once. Its seal begins once the guest's memory can
    /// no longer be written: the caller ends the VMM after this. With a catalog, the snapshot survives this process
    /// once this has returned, as long as the keeper lives.
    pub fn commit_pause(
        &self,
        permit: PausePermit,
        guest: PausedGuest,
    ) -> Result<Arc<Snapshot>, CommitError> {
        let _span = tracing::info_span!("commit pause", snapshot = %guest.id).entered();
        let records = self.background.records.as_ref();
        let is_recorded = records.map_or(Ok(false), |records| records.knows(guest.id))?;
        if is_recorded || self.snapshot(guest.id).is_some() || self.is_being_deleted(guest.id) {
            return Err(CommitError::IdUsed { snapshot: guest.id });
        }
        let (snapshot, captures) = permit.commit(guest, records)?;
        lock(&self.there.known).insert(snapshot.id(), Arc::clone(&snapshot));
        self.background.watcher.changed(&snapshot);
        self.begin_life(&snapshot, Work::seal(captures));
        Ok(snapshot)
    }

    /// Opens a snapshot by its id: a known one, or else from the store. A snapshot that is being deleted, or was
    /// deleted while it was being opened, does not come back.
    pub fn open(&self, id: SnapshotId) -> Result<Arc<Snapshot>, OpenError> {
        if let Some(known) = self.snapshot(id) {
            return known_and_there(known);
        }
        let Background { records, sealer, .. } = &*self.background;
        let _span = tracing::info_span!("open", snapshot = %id).entered();
        let opening = self.openings.begin(id, || sealer.hooks().before_open_waits(id));
        // Another call may have opened and deleted it meanwhile; from here on only this call can open it.
        if let Some(known) = self.snapshot(id) {
            return known_and_there(known);
        }
        if self.is_being_deleted(id) {
            return Err(OpenError::Deleted { snapshot: id, by: Deletion::default() });
        }
        let by = (records.as_ref(), sealer.hooks());
        let opened = open(id, self.fetcher.sources(), &self.cache, by);
        let snapshot = Arc::new(self.runtime.block_on(opened)?);
        lock(&self.there.known).insert(id, Arc::clone(&snapshot));
        drop(opening);
        self.look_at_peers(&snapshot, None);
        Ok(snapshot)
    }

    /// A known snapshot.
    pub fn snapshot(&self, id: SnapshotId) -> Option<Arc<Snapshot>> {
        lock(&self.there.known).get(&id).cloned()
    }

    /// All known snapshots, lost ones included, the oldest first.
    pub fn snapshots(&self) -> Vec<Arc<Snapshot>> {
        let mut known: Vec<_> = lock(&self.there.known).values().cloned().collect();
        known.sort_by_key(|snapshot| snapshot.id());
        known
    }

    /// The snapshots that the start found in the catalog.
    pub fn replayed(&self) -> &Replay {
        &self.replay
    }

    /// The snapshot that a sandbox of the previous process runs from: a known one, or a deleted one, which is held
    /// until [`Self::end_replay`].
    pub fn origin(&self, id: SnapshotId) -> Option<Arc<Snapshot>> {
        self.snapshot(id).or_else(|| self.there.deleted.find(id))
    }

    /// Notes that every sandbox has its origin: deleted snapshots from which none runs are released, once no snapshot
    /// is undecided.
    pub fn end_replay(&self) {
        self.there.deleted.origins_are_had();
        self.there.deleted.let_go(&self.snapshots());
    }

    /// Publishes again the snapshots that the store lacks, if it was accepted in place of the store that had them.
    pub fn publish_what_is_missing(&self) -> Result<LookedFor, RepublishError> {
        let begin = |snapshot: &Arc<Snapshot>, asked| {
            self.begin_life(snapshot, Work::asked(asked, snapshot, Work::Nothing));
        };
        self.runtime.block_on(look_for_published(&self.snapshots(), &self.background, begin))
    }

    /// Reads every page of a snapshot again and checks it; none if `is_wanted` returns false before the end.
    pub fn verify(&self, snapshot: &Snapshot, is_wanted: &dyn Fn() -> bool) -> Option<Verification> {
        verify(snapshot, &self.fetcher.of_class(Class::Background), is_wanted)
    }

    /// Tells background work to end. From here on no drop removes anything from the disk or the catalog, since
    /// sandboxes that survive this process need it. Dropping the engine does the same.
    pub fn stop(&self) {
        // First, since a life that is cut short may drop the last handle of a deleted snapshot.
        self.cache.keep_files();
        self.background.stop().say();
    }

    /// Evicts now what the bounds on layer files ask for, as the engine does by itself when they grow.
    pub fn hold_cache_limits(&self) {
        self.bounded.look();
    }

    /// Reads guest pages, fetching missing frames. `into` has their length.
    pub fn read(&self, view: &LiveView, pages: GuestPages, into: &mut [u8]) -> Result<(), ReadError> {
        ReadPlan::new(view, pages).read(&self.fetcher, into)
    }

    /// Makes seals give way to resuming guests.
    pub fn precedence(&self) -> &Precedence {
        &self.precedence
    }

    /// Fetches frames for fault servers.
    pub fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }

    /// Every snapshot in the store, whichever node published it; oldest first.
    pub fn stored_snapshots(&self) -> Result<Vec<StoredSnapshot>, SourceError> {
        self.runtime.block_on(self.fetcher.sources().snapshots())
    }

    fn begin_life(&self, snapshot: &Arc<Snapshot>, work: Work) {
        let life = Life { snapshot: Arc::clone(snapshot), background: Arc::clone(&self.background) };
        self.lives.as_ref().expect("only drop takes them").begin(life, work);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
        drop(self.lives.take());
    }
}
