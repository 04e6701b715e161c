//! Options of an engine, and their defaults.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::cache_limits::CacheLimits;
use crate::catalog::Catalog;
use crate::hooks::{Hooks, NoHooks};
use crate::keep::{Keeper, NoKeeper};
use crate::key_ring::KeyRing;
use crate::limits;
use crate::origin::Origin;
use crate::peer::{NoPeers, Peers};
use crate::store::Store;
use crate::watch::{NoWatcher, Watcher};

/// Times at which a node collects in the store by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollectSchedule {
    /// Time between two passes, of which the first one is made at any time within it. Without it, what others asked for is
    /// finished.
    pub every: Option<Duration>,
    /// Time from the second look of a pass to its deletions.
    pub probation: Duration,
}

/// Options of an engine.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Directory of this node's layer files.
    pub cache_directory: PathBuf,
    /// The object store.
    pub store: Store,
    /// Keys of domains; all snapshots are of the own one's domain.
    pub keys: KeyRing,
    /// Bounds on the layer files.
    pub cache_limits: CacheLimits,
    /// Bytes that all captures together may hold in RAM.
    pub capture_bytes_max: u64,
    /// Bytes of captures, and of layers that are not in the store, from which on a pause is refused; no bound without.
    pub unpublished_bytes_max: Option<u64>,
    /// Snapshots in one line that may be unsealed at once.
    pub unsealed_max: usize,
    /// Longest time a pause waits for room before the guest is frozen.
    pub pause_wait: Duration,
    /// Threads that compare one snapshot.
    pub compare_workers: usize,
    /// Threads that compress what is uploaded, at idle priority.
    pub encode_workers: usize,
    /// Layers that a manifest names before the next seal of its line merges some of them.
    pub merge_at_layers: usize,
    /// Bytes of a part of an upload: services take parts of 5 MiB and more.
    pub part_bytes: usize,
    /// Hundredths of a snapshot's bytes in the store that the pages of its working set may take there beside it; with 0 none
    /// are put.
    pub working_set_share: u8,
    /// Catalog that records snapshots for the next engine on the same directories; without one, only published
    /// snapshots can be opened again.
    pub catalog: Option<Catalog>,
    /// File in which the engine keeps what the store's manifests name: a collection by the next process reads only new ones.
    pub manifest_memory: Option<PathBuf>,
    /// Keeper of captured memory while this process is down; asked only if there is a catalog.
    pub keeper: Arc<dyn Keeper>,
    /// Other nodes that this one may read from.
    pub peers: Arc<dyn Peers>,
    /// This node, as others reach it, for the origin records of snapshots that are not in the store yet; without it none are
    /// put.
    pub origin: Option<Origin>,
    /// Times at which this node collects in the store by itself; never without.
    pub collect: Option<CollectSchedule>,
    /// Time from the deletion of a snapshot until a collector decides on what was its.
    pub second_look_after: Duration,
    /// Time without a sign of life after which a collector gives up roots and lists of another node.
    pub node_abandoned_after: Duration,
    /// Receiver of news about snapshots.
    pub watcher: Arc<dyn Watcher>,
    /// Points at which tests can stop background work.
    pub hooks: Arc<dyn Hooks>,
}

impl EngineOptions {
    /// The default options for a cache directory, a store, and keys.
    pub fn new(cache_directory: PathBuf, store: Store, keys: KeyRing) -> Self {
        Self {
            cache_directory,
            store,
            keys,
            cache_limits: CacheLimits::default(),
            capture_bytes_max: limits::CAPTURE_BYTES_DEFAULT,
            unpublished_bytes_max: None,
            unsealed_max: limits::UNSEALED_DEFAULT,
            pause_wait: limits::PAUSE_WAIT_DEFAULT,
            compare_workers: compare_workers(),
            encode_workers: cores(),
            merge_at_layers: limits::MERGE_AT_LAYERS,
            part_bytes: limits::UPLOAD_PART_BYTES,
            working_set_share: limits::WORKING_SET_SHARE_DEFAULT,
            catalog: None,
            manifest_memory: None,
            keeper: Arc::new(NoKeeper),
            peers: Arc::new(NoPeers),
            origin: None,
            collect: None,
            second_look_after: limits::SECOND_LOOK_AFTER,
            node_abandoned_after: limits::NODE_ABANDONED_AFTER,
            watcher: Arc::new(NoWatcher),
            hooks: Arc::new(NoHooks),
        }
    }
}

/// Default number of compare threads: all seals together use half of the cores, because idle priority leaves guests
/// their processor time but not their share of the memory's bandwidth.
fn compare_workers() -> usize {
    (cores() / (2 * limits::SEALS_AT_ONCE)).max(1)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
