//! The engine: what a node does with snapshots, behind one door. The work itself is in the modules below.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::budget::Budget;
use crate::cache::Cache;
use crate::fetch::Fetcher;
use crate::geometry::GuestPages;
use crate::hooks::{Hooks, NoHooks};
use crate::identity::{Domain, SnapshotId};
use crate::life::{Background, Life};
use crate::lifecycle::SnapshotEvent;
use crate::limits;
use crate::open::{OpenError, open};
use crate::pause::{CommitError, PauseError, PausePermit, PauseRules, PausedGuest};
use crate::publish::Requests;
use crate::read_plan::{ReadError, ReadPlan};
use crate::reaper::Reaper;
use crate::seal::Sealer;
use crate::snapshot::Snapshot;
use crate::stop::Stop;
use crate::store::{Store, Traffic};
use crate::sync::{Mutex, lock};
use crate::view::LiveView;

/// What an engine is told at its start.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Where layer files lie on this node.
    pub cache_directory: PathBuf,
    /// The object store.
    pub store: Store,
    /// Whose snapshots these are.
    pub domain: Domain,
    /// Bytes that all captures together may hold in RAM.
    pub capture_bytes_max: u64,
    /// Snapshots in one line that may be unsealed at once.
    pub unsealed_max: usize,
    /// How long a pause waits for room before the guest is frozen.
    pub pause_wait: Duration,
    /// Threads that compare one snapshot.
    pub compare_workers: usize,
    /// Where tests stand in the way.
    pub hooks: Arc<dyn Hooks>,
}

impl EngineOptions {
    /// The defaults over a cache directory and a store.
    pub fn new(cache_directory: PathBuf, store: Store) -> Self {
        Self {
            cache_directory,
            store,
            domain: Domain::named("default").expect("a legal name"),
            capture_bytes_max: limits::CAPTURE_BYTES_DEFAULT,
            unsealed_max: limits::UNSEALED_DEFAULT,
            pause_wait: limits::PAUSE_WAIT_DEFAULT,
            compare_workers: compare_workers(),
            hooks: Arc::new(NoHooks),
        }
    }
}

/// So many that all seals at once take half of the cores: idle priority leaves guests their time, but not their share of
/// the memory's bandwidth.
fn compare_workers() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / (2 * limits::SEALS_AT_ONCE)).max(1)
}

/// A node's snapshots. Dropping it ends all background work and leaves every file that a snapshot needs.
#[derive(Debug)]
pub struct Engine {
    background: Arc<Background>,
    cache: Arc<Cache>,
    fetcher: Fetcher,
    domain: Domain,
    rules: PauseRules,
    known: Mutex<HashMap<SnapshotId, Arc<Snapshot>>>,
    lives: Mutex<Vec<JoinHandle<()>>>,
    _reaper: Reaper,
    runtime: Runtime,
}

impl Engine {
    /// Starts an engine.
    pub fn start(options: EngineOptions) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(limits::RUNTIME_THREADS)
            .thread_name("store")
            .enable_all()
            .build()?;
        let EngineOptions { cache_directory, store, domain, compare_workers, hooks, .. } = options;
        let reaper = Reaper::start()?;
        let cache = Arc::new(Cache::open(&cache_directory)?);
        let fetcher = Fetcher::new(runtime.handle().clone(), store.clone());
        let sealer = Sealer::new(Arc::clone(&cache), fetcher.clone(), domain.clone(), compare_workers, hooks);
        let requests = Requests { store, runtime: runtime.handle().clone(), stop: Stop::default() };
        let background = Background { sealer, requests };
        let rules = PauseRules {
            budget: Budget::new(options.capture_bytes_max),
            unsealed_max: options.unsealed_max,
            wait: options.pause_wait,
            reaper: reaper.handle(),
        };
        Ok(Self {
            background: Arc::new(background),
            cache,
            fetcher,
            domain,
            rules,
            known: Mutex::default(),
            lives: Mutex::default(),
            _reaper: reaper,
            runtime,
        })
    }

    /// Waits, while the guest still runs, for room for `memory_bytes` and for snapshots under `parent` to be sealed,
    /// as far as limits ask for it; the wait itself is limited by the options.
    pub fn permit_pause(
        &self,
        parent: Option<&Arc<Snapshot>>,
        memory_bytes: u64,
    ) -> Result<PausePermit, PauseError> {
        self.rules.permit(parent, memory_bytes)
    }

    /// Takes a frozen guest over as a snapshot, which can be used at once. Its seal begins as soon as nobody can write
    /// the guest's memory any more: the caller ends the VMM after this.
    pub fn commit_pause(
        &self,
        permit: PausePermit,
        guest: PausedGuest,
    ) -> Result<Arc<Snapshot>, CommitError> {
        let (snapshot, captures) = permit.commit(guest)?;
        lock(&self.known).insert(snapshot.id(), Arc::clone(&snapshot));
        self.spawn_life(&snapshot, move |life| life.run(captures));
        Ok(snapshot)
    }

    /// Opens a snapshot by its name: one this engine knows, else from the store.
    pub fn open(&self, id: SnapshotId) -> Result<Arc<Snapshot>, OpenError> {
        if let Some(known) = self.snapshot(id) {
            return Ok(known);
        }
        let opened = open(id, &self.background.requests.store, &self.cache, &self.domain);
        let snapshot = Arc::new(self.runtime.block_on(opened)?);
        Ok(Arc::clone(lock(&self.known).entry(id).or_insert(snapshot)))
    }

    /// A snapshot this engine knows.
    pub fn snapshot(&self, id: SnapshotId) -> Option<Arc<Snapshot>> {
        lock(&self.known).get(&id).cloned()
    }

    /// Deletes a snapshot. Sandboxes that run from it go on, and children keep what they stand on.
    pub fn delete(&self, snapshot: &Arc<Snapshot>) {
        lock(&self.known).remove(&snapshot.id());
        let work = snapshot.record(SnapshotEvent::Deleted);
        self.spawn_life(snapshot, move |life| {
            life.carry_on(work).ok();
        });
    }

    /// Reads guest pages, fetching what is not here. `into` is as long as they are.
    pub fn read(&self, view: &LiveView, pages: GuestPages, into: &mut [u8]) -> Result<(), ReadError> {
        ReadPlan::new(view, pages).read(&self.fetcher, into)
    }

    /// What fault servers fetch by.
    pub fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }

    /// Bytes of RAM that captures hold now, those the reaper has not freed yet included.
    pub fn capture_bytes_held(&self) -> u64 {
        self.rules.budget.bytes_held()
    }

    /// What was moved to and from the store.
    pub fn traffic(&self) -> Traffic {
        self.background.requests.store.traffic()
    }

    fn spawn_life(&self, snapshot: &Arc<Snapshot>, work: impl FnOnce(&Life) + Send + 'static) {
        let life = Life { snapshot: Arc::clone(snapshot), background: Arc::clone(&self.background) };
        let thread = std::thread::Builder::new()
            .name("snapshot-life".into())
            .spawn(move || work(&life))
            .expect("the system has a thread for each unpublished snapshot");
        let mut lives = lock(&self.lives);
        lives.retain(|life| !life.is_finished());
        lives.push(thread);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.background.requests.stop.say();
        self.cache.keep_files();
        for life in std::mem::take(&mut *lock(&self.lives)) {
            life.join().expect("background work does not panic");
        }
    }
}
