//! Counts and state of an engine, for those who watch it.

use super::Engine;
use crate::cache_limits::CacheStatus;
use crate::sources::{Class, ReadCounts, SourceError};
use crate::store::Traffic;
use crate::store_gate::Away;
use crate::store_usage::StoreUsage;

impl Engine {
    /// The layer files and their disk now.
    pub fn cache_status(&self) -> CacheStatus {
        self.bounded.status()
    }

    /// Bytes that layer files take on the disk, as they are counted; the disk is not asked.
    pub fn layer_bytes_here(&self) -> u64 {
        self.cache.files().bytes().bytes()
    }

    /// Bytes of RAM that captures hold now, including those that the reaper has not freed yet.
    pub fn capture_bytes_held(&self) -> u64 {
        self.rules.capture_bytes_held()
    }

    /// The reason that the store is away, if it is.
    pub fn store_away(&self) -> Option<Away> {
        self.background.store().away()
    }

    /// Counts of the reads of each class from outside this node.
    pub fn read_counts(&self) -> [(Class, ReadCounts); 3] {
        let sources = self.fetcher.sources();
        [Class::Fault, Class::Ahead, Class::Background].map(|class| (class, sources.counts(class)))
    }

    /// Counts of the bytes moved to and from the store.
    pub fn traffic(&self) -> Traffic {
        self.background.store().traffic()
    }

    /// All objects of the store by what they are for.
    pub fn store_usage(&self) -> Result<StoreUsage, SourceError> {
        Ok(self.runtime.block_on(self.collector.usage())?)
    }

    /// Bytes that uploads hold, or may hold, in RAM now.
    pub fn upload_bytes_held(&self) -> u64 {
        self.background.publisher.budget.bytes_held()
    }
}
