//! The daemon: sandboxes and snapshots as things with names, over the engine, the catalog and the keeper.
//!
//! Every acknowledged change is in the catalog before its answer, and every descriptor that a guest lives by is at the
//! keeper, so this process may be killed at any instant and another one takes over by [`Daemon::start`].

mod about;
mod beginning;
mod births;
mod boot_directory;
mod boot_files;
mod captures;
mod channel;
mod checkpoints;
mod claims;
mod clock;
mod collection;
mod console;
mod control;
mod creation;
mod disk_room;
mod drain;
mod endings;
mod entry;
mod epochs;
mod events;
mod exclusive;
mod fault_socket;
mod fault_sockets;
mod forks;
mod freeing;
mod guest_files;
mod guest_owners;
mod guest_watch;
mod guests;
mod hindrance;
mod host;
mod host_qemu;
mod how_ended;
mod huge_pages;
mod idempotency;
mod images;
mod index;
mod keeping;
mod keys;
mod known;
mod layer_disk;
mod listed_snapshots;
mod live;
mod machines;
mod memory_mode;
mod moment;
mod moving;
mod names;
mod network;
mod notes;
mod observe;
mod origins;
mod orphans;
mod over;
mod paging;
mod pausing;
mod peers;
mod periodic;
mod periodic_line;
mod placement;
mod placement_file;
mod placement_watch;
mod problems;
mod record;
mod recovery;
mod references;
mod registry;
mod removal;
mod resuming;
mod retention;
mod room;
mod room_promises;
mod sandbox_recovery;
mod sandbox_watch;
mod sandboxes;
mod served;
mod snapshot_news;
mod snapshots;
mod socket_record;
mod spec;
mod spreading;
mod store_engine;
mod store_place;
mod stored;
mod telling;
mod undecided;
mod unfinished_puts;
mod unnamed;
mod usage;
mod watch;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rekindle_engine::catalog::{Catalog, CatalogError};
use rekindle_engine::engine::{CollectSchedule, Engine, EngineOptions};
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::private::make_directory;
use rekindle_engine::store::{Store, Traffic};
use rekindle_engine::store_gate::OtherStore;
use rekindle_metrics::Metrics;
use rekindle_peer::PeerClients;
use rekindle_settings::Settings;
use uuid::Uuid;

use crate::key_ring;

use captures::Captures;
use disk_room::no_room;
use events::EventLog;
use fault_sockets::FaultSockets;
use guest_owners::GuestOwners;
use host::Host;
use keeping::Keeping;
use layer_disk::{cache_limits, on_disk};
use listed_snapshots::ListedSnapshots;
use origins::origin_of;
use peers::{PeerListener, peers_of};
use periodic::PeriodicCheckpointing;
use placement::Placements;
use placement_file::PlacementFile;
use placement_watch::PlacementWatch;
use registry::Registry;
use room::Room;
use sandboxes::Sandboxes;
pub use served::Served;
use snapshot_news::SnapshotNews;
use snapshots::Snapshots;
pub(crate) use store_engine::engine_on_store;
use store_place::store_of;
use undecided::Deciding;
pub(crate) use unnamed::aside_at;
use watch::Lookout;

/// A node's sandboxes and snapshots, and what is done with them.
#[derive(Debug)]
pub struct Daemon {
    started_unix_ms: u64,
    host: Arc<Host>,
    events: Arc<EventLog>,
    snapshots: Arc<Snapshots>,
    guests: Arc<GuestOwners>,
    placements: Arc<Placements>,
    captures: Captures,
    lookout: Mutex<Option<Lookout>>,
    deciding: Mutex<Option<Deciding>>,
    checkpointing: Mutex<Option<PeriodicCheckpointing>>,
    peers: Mutex<Option<PeerListener>>,
    placing: Mutex<Option<PlacementWatch>>,
}

/// Opens the catalog at a path.
pub type OpenCatalog = Box<dyn FnOnce(&Path) -> Result<Catalog, CatalogError>>;

/// The means by which a daemon starts.
pub struct StartOptions {
    /// Decides if another store may take the place of the one that is remembered.
    pub other_store: OtherStore,
    /// The program that guests and the keeper are run by.
    pub program: PathBuf,
    /// The way to its catalog; a test has its hand on what comes of it.
    pub open_catalog: OpenCatalog,
}

impl StartOptions {
    /// The usual ones: no other store, and this very program.
    pub fn new() -> anyhow::Result<Self> {
        let program = std::env::current_exe()
            .context("finding this program, which guests and the keeper are run by")?;
        Ok(Self { other_store: OtherStore::Refused, program, open_catalog: Box::new(Catalog::open) })
    }
}

impl Daemon {
    /// Starts on what an earlier daemon left, if one did.
    pub fn start(settings: &Settings) -> anyhow::Result<Arc<Self>> {
        Self::start_with(settings, StartOptions::new()?)
    }

    /// The same, with other than the usual means.
    pub fn start_with(settings: &Settings, options: StartOptions) -> anyhow::Result<Arc<Self>> {
        let started = Instant::now();
        let StartOptions { other_store, program, open_catalog } = options;
        make_directory(&settings.state_directory)?;
        make_directory(&settings.run_directory)?;
        let catalog_path = settings.state_directory.join("catalog.redb");
        let begins = beginning::check_files(&settings.state_directory, &catalog_path)?;
        let find_keeper = || Keeping::find(settings.keeper_socket(), program.clone());
        let early = begins.map(|begins| begins.check_keeper(find_keeper()?)).transpose()?;
        let full = no_room(&settings.state_directory);
        let catalog = open_catalog(&catalog_path).map_err(|error| match &full {
            Some(full) if matches!(error, CatalogError::Disk { .. }) => {
                anyhow::Error::from(error).context(full.clone())
            }
            Some(_) | None => error.into(),
        })?;
        // Before anything speaks of what comes of it.
        full.into_iter().for_each(|full| tracing::error!("{full}"));
        let (keeping, found) = early.map_or_else(find_keeper, Ok)?;
        let keeping = Arc::new(keeping);
        unnamed::meet(&catalog, &keeping, &settings.state_directory)?;
        let events = Arc::new(EventLog::open(&catalog, settings.events_kept)?);
        let metrics = Arc::new(Metrics::new());
        let keys = key_ring::open(settings, &catalog)?;
        let store = store_of(settings, &catalog, other_store, &keys)?;
        let listed = Arc::new(ListedSnapshots::default());
        let news = SnapshotNews::new(Arc::clone(&events), Arc::clone(&metrics), Arc::clone(&listed));
        let peers = peers_of(settings);
        let mut options = engine_options(settings, store, keys, &catalog, &keeping, Arc::new(news))?;
        if let Some(peers) = &peers {
            options.peers = Arc::<PeerClients>::clone(peers);
        }
        let engine = Engine::start(options)?;
        engine.snapshots().iter().for_each(|snapshot| drop(listed.changed(snapshot)));
        let host = Arc::new(Host::new(settings, (keeping, metrics), (engine, peers))?);
        let snapshots = Arc::new(Snapshots::new(listed, Arc::clone(&host), Arc::clone(&events)));
        let guests = Arc::new(guest_owners(catalog, &host, &snapshots, &events)?);
        let fault_sockets = Arc::clone(&guests.fault_sockets);
        let placements = placements(settings, (&snapshots, &guests, &events))?;
        let daemon = Arc::new(Self {
            started_unix_ms: clock::unix_ms(),
            captures: Captures::new(Arc::clone(&host), Arc::clone(&snapshots), fault_sockets),
            host,
            events,
            snapshots,
            guests,
            placements,
            lookout: Mutex::default(),
            deciding: Mutex::default(),
            checkpointing: Mutex::default(),
            peers: Mutex::default(),
            placing: Mutex::default(),
        });
        boot_files::remove_unfinished(&boot_directory::boot_directory(&daemon.host));
        daemon.guests.recover(found, started)?;
        daemon.host.qemu.ask_ahead()?;
        let peers = PeerListener::start(settings, &daemon.guests)?;
        *daemon.peers.lock().unwrap_or_else(PoisonError::into_inner) = peers;
        let lookout = Lookout::start(&daemon.guests)?;
        *daemon.lookout.lock().unwrap_or_else(PoisonError::into_inner) = Some(lookout);
        daemon.guests.sandboxes.begin_freeing()?;
        let deciding = Deciding::start(&daemon.guests)?;
        *daemon.deciding.lock().unwrap_or_else(PoisonError::into_inner) = Some(deciding);
        let checkpointing = PeriodicCheckpointing::start(&daemon.guests.sandboxes)?;
        *daemon.checkpointing.lock().unwrap_or_else(PoisonError::into_inner) = Some(checkpointing);
        let file = settings.placement_file.as_deref().map(PlacementFile::at);
        let placing = PlacementWatch::start(&daemon.placements, &daemon.events, file)?;
        *daemon.placing.lock().unwrap_or_else(PoisonError::into_inner) = Some(placing);
        Ok(daemon)
    }

    /// Counts of the bytes moved to and from the store.
    pub(crate) fn traffic(&self) -> Traffic {
        self.host.engine.traffic()
    }

    /// Waits until the store has the deletion of a snapshot. False if it has not within `limit`.
    pub(crate) fn wait_deleted(&self, id: Uuid, limit: Duration) -> Result<bool, CatalogError> {
        self.host.engine.wait_deleted(SnapshotId::from(id), limit)
    }

    /// Ends the keeper, which holds nothing any more.
    pub(crate) fn end_keeper(&self) -> anyhow::Result<()> {
        Ok(self.host.keeping.client().shutdown(false)?)
    }
}

impl Served for Daemon {
    fn reload(&self, settings: &Settings) {
        self.host.reload(settings);
    }

    fn end(&self) {
        if let Some(placing) = self.placing.lock().unwrap_or_else(PoisonError::into_inner).take() {
            placing.finish();
        }
        if let Some(peers) = self.peers.lock().unwrap_or_else(PoisonError::into_inner).take() {
            peers.finish();
        }
        if let Some(lookout) = self.lookout.lock().unwrap_or_else(PoisonError::into_inner).take() {
            lookout.finish();
        }
        self.guests.sandboxes.end_freeing();
        self.guests.fault_sockets.finish();
        self.host.qemu.finish();
        drop(self.deciding.lock().unwrap_or_else(PoisonError::into_inner).take());
        drop(self.checkpointing.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.host.endings.finish();
        self.host.engine.stop();
    }
}

/// The owners of sandboxes and fault sockets, which have none yet.
fn guest_owners(
    catalog: Catalog,
    host: &Arc<Host>,
    snapshots: &Arc<Snapshots>,
    events: &Arc<EventLog>,
) -> anyhow::Result<GuestOwners> {
    let registry = Arc::<Registry>::default();
    let room = Arc::new(Room::new(Arc::clone(host), Arc::clone(&registry)));
    let fault_sockets =
        FaultSockets::new(catalog.clone(), Arc::clone(snapshots), Arc::clone(&room), Arc::clone(host));
    let (events, host) = (Arc::clone(events), Arc::clone(host));
    let sandboxes = Sandboxes::new(registry, catalog, Arc::clone(snapshots), room, events, host)?;
    Ok(GuestOwners { sandboxes: Arc::new(sandboxes), fault_sockets: Arc::new(fault_sockets) })
}

fn placements(
    settings: &Settings,
    (snapshots, guests, events): (&Arc<Snapshots>, &Arc<GuestOwners>, &Arc<EventLog>),
) -> io::Result<Arc<Placements>> {
    let layer_bytes_max = cache_limits(settings)?.bytes_max;
    let (snapshots, guests, events) = (Arc::clone(snapshots), Arc::clone(guests), Arc::clone(events));
    Ok(Arc::new(Placements::new(snapshots, guests, events, layer_bytes_max)))
}

fn engine_options(
    settings: &Settings,
    store: Store,
    keys: KeyRing,
    catalog: &Catalog,
    keeping: &Arc<Keeping>,
    watcher: Arc<SnapshotNews>,
) -> io::Result<EngineOptions> {
    let mut options = EngineOptions::new(settings.state_directory.join("layers"), store, keys);
    options.cache_limits = cache_limits(settings)?;
    options.capture_bytes_max = settings.capture_bytes_max;
    options.unpublished_bytes_max = on_disk(settings, settings.unpublished_bytes_max)?;
    options.unsealed_max = settings.unsealed_ancestors_max;
    options.pause_wait = settings.pause_wait;
    options.compare_workers = settings.compare_workers.unwrap_or(options.compare_workers);
    options.working_set_share = settings.working_set_share;
    options.catalog = Some(catalog.clone());
    options.manifest_memory = Some(settings.state_directory.join("manifests.memory"));
    options.keeper = keeping.clone();
    options.watcher = watcher;
    options.origin = origin_of(settings);
    let every = (!settings.collect_every.is_zero()).then_some(settings.collect_every);
    options.node_abandoned_after = settings.node_abandoned_after;
    options.collect = Some(CollectSchedule { every, probation: settings.collect_probation });
    Ok(options)
}
