//! Keeps layer files within their bytes and the disk above its floor: evicts the least recently used copies.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::statvfs;

use crate::cache::Cache;
use crate::layer::Evictable;
use crate::limits;
use crate::stop::{Stop, Stopped};
use crate::store::Store;
use crate::sync::{Mutex, lock};
use crate::turns::Turns;

/// Bounds on the layer files of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    /// Bytes that layer files may take on the disk; no bound without.
    pub bytes_max: Option<u64>,
    /// Bytes of the disk that stay free.
    pub free_bytes_min: u64,
    /// Number of layer files that stay open without a reader.
    pub files_open_max: usize,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self { bytes_max: None, free_bytes_min: 0, files_open_max: limits::LAYER_FILES_OPEN_DEFAULT }
    }
}

/// The layer files and their disk at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheStatus {
    /// Bytes that layer files take on the disk.
    pub bytes: u64,
    /// Bytes that they may take.
    pub bytes_max: Option<u64>,
    /// Bytes of the disk that are free; none if the system does not say.
    pub free_bytes: Option<u64>,
    /// Bytes of the disk that stay free.
    pub free_bytes_min: u64,
    /// Bytes of the layers that are on this disk and nowhere else.
    pub only_here_bytes: u64,
    /// Time since the oldest of them was made.
    pub only_here_oldest: Duration,
    /// Layer files that are open.
    pub files_open: usize,
    /// Counts of evictions since the start.
    pub evicted: Evicted,
    /// The reason that a bound is not held, if one is not.
    pub shortage: Option<Shortage>,
}

/// Counts of evicted files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Number of files.
    pub files: u64,
    /// Bytes that they took on the disk.
    pub bytes: u64,
}

/// Reason that a bound on the layer files is not held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// Every file that is left is needed here: it is the only copy, or its snapshot is not published yet.
    NothingToEvict,
    /// The store is away, so no file may go.
    StoreAway,
}

/// The layer files of a node with their bounds. Only published layers are ever evicted, and none while the store is away.
#[derive(Debug)]
pub(crate) struct BoundedCache {
    cache: Arc<Cache>,
    limits: CacheLimits,
    store: Store,
    evicted_files: AtomicU64,
    evicted_bytes: AtomicU64,
    shortage: Mutex<Option<Shortage>>,
    turns: Turns,
}

impl BoundedCache {
    pub(crate) fn new(cache: Arc<Cache>, limits: CacheLimits, store: Store) -> Self {
        Self {
            cache,
            limits,
            store,
            evicted_files: AtomicU64::new(0),
            evicted_bytes: AtomicU64::new(0),
            shortage: Mutex::default(),
            turns: Turns::new(),
        }
    }

    /// The layer files and their disk now.
    pub(crate) fn status(&self) -> CacheStatus {
        let files = self.cache.files();
        CacheStatus {
            bytes: files.bytes().bytes(),
            bytes_max: self.limits.bytes_max,
            free_bytes: self.free_bytes().ok(),
            free_bytes_min: self.limits.free_bytes_min,
            only_here_bytes: files.only_here().bytes(),
            only_here_oldest: files.only_here().oldest_age(),
            files_open: files.open_count(),
            evicted: Evicted {
                files: self.evicted_files.load(Ordering::Relaxed),
                bytes: self.evicted_bytes.load(Ordering::Relaxed),
            },
            shortage: *lock(&self.shortage),
        }
    }

    /// Looks at the disk whenever layer files have grown, and now and then, until the stop signal.
    pub(crate) async fn watch(self: Arc<Self>, stop: Stop) {
        while self.look_once(&stop).await.is_ok() {}
    }

    async fn look_once(self: &Arc<Self>, stop: &Stop) -> Result<(), Stopped> {
        let bounded = Arc::clone(self);
        let looked = tokio::task::spawn_blocking(move || bounded.look()).await;
        // A panic goes on; that the runtime has ended is the end of this task too.
        if let Err(Ok(panic)) = looked.map_err(tokio::task::JoinError::try_into_panic) {
            std::panic::resume_unwind(panic);
        }
        let reason = self.cache.files().bytes().reason_to_look();
        stop.unless_said(tokio::time::timeout(limits::DISK_LOOK_PAUSE, reason)).await.map(drop)
    }

    /// Evicts as much as the bounds ask for, and remembers if that is not enough.
    pub(crate) fn look(&self) {
        let turn = self.turns.take();
        let files = self.cache.files();
        files.tick();
        files.bytes().looked(self.limits.bytes_max.map_or(u64::MAX, |max| max - slack(max) / 2));
        let wanted = self.bytes_to_free();
        let shortage = match wanted {
            0 => None,
            _ if self.store.away().is_some() => Some(Shortage::StoreAway),
            _ => {
                self.evict(wanted);
                Some(Shortage::NothingToEvict)
            }
        };
        // Not while the bound is met but for the slack, or by files that go with their last reader.
        let shortage = shortage.filter(|_| self.is_beyond_bounds());
        let before = std::mem::replace(&mut *lock(&self.shortage), shortage);
        if before != shortage {
            self.tell(shortage);
        }
        drop(turn);
    }

    /// Bytes that have to go so that both bounds are held, with some slack.
    fn bytes_to_free(&self) -> u64 {
        let CacheLimits { bytes_max, free_bytes_min, .. } = self.limits;
        let used = self.cache.files().bytes().bytes();
        let beyond =
            bytes_max.filter(|max| used > max - slack(*max) / 2).map(|max| used - (max - slack(max)));
        let missing = match self.free_bytes() {
            Ok(free) if free < free_bytes_min => free_bytes_min + slack(free_bytes_min) - free,
            Ok(_) => 0,
            Err(error) => {
                tracing::warn!(%error, "the free space of the disk with the layers cannot be asked for");
                0
            }
        };
        beyond.unwrap_or_default().max(missing)
    }

    /// True if what is left is beyond a bound also without the files that readers still have.
    fn is_beyond_bounds(&self) -> bool {
        let CacheLimits { bytes_max, free_bytes_min, .. } = self.limits;
        let left: u64 = self.cache.layers().iter().map(|layer| layer.local_bytes()).sum();
        let leaving = self.cache.files().bytes().bytes().saturating_sub(left);
        bytes_max.is_some_and(|max| left > max)
            || self.free_bytes().is_ok_and(|free| free + leaving < free_bytes_min)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let disk = statvfs(self.cache.files().directory())?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Evicts files of about `wanted` bytes, the least recently used first.
    fn evict(&self, wanted: u64) {
        let mut layers = self.cache.layers();
        layers.retain(|layer| layer.local_bytes() > 0);
        layers.sort_by_key(|layer| layer.last_used());
        let mut gone = Evicted::default();
        for layer in layers {
            if gone.bytes >= wanted {
                break;
            }
            match layer.evictable().map(Evictable::evict) {
                Some(Ok(bytes)) => {
                    tracing::debug!(layer = %layer.id(), bytes, "a layer file was evicted");
                    gone = Evicted { files: gone.files + 1, bytes: gone.bytes + bytes };
                }
                Some(Err(error)) => {
                    tracing::warn!(layer = %layer.id(), %error, "a layer file cannot be evicted");
                }
                None => {}
            }
        }
        self.evicted_files.fetch_add(gone.files, Ordering::Relaxed);
        self.evicted_bytes.fetch_add(gone.bytes, Ordering::Relaxed);
        if gone.files > 0 {
            tracing::info!(
                files = gone.files,
                bytes = gone.bytes,
                "layer files were evicted; the store has them"
            );
        }
    }

    fn tell(&self, shortage: Option<Shortage>) {
        let CacheStatus { bytes, free_bytes, only_here_bytes, .. } = self.status();
        match shortage {
            None => tracing::info!(bytes, free_bytes, "the bounds on layer files are held again"),
            Some(shortage) => tracing::error!(
                ?shortage,
                bytes,
                free_bytes,
                only_here_bytes,
                "a bound on layer files is not held, and nothing more may be evicted"
            ),
        }
    }
}

/// Part of a bound that is kept free.
fn slack(bound: u64) -> u64 {
    bound / limits::DISK_SLACK_DIVISOR
}
