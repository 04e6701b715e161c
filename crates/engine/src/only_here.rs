//! The layers of which this node's disk has the only copy, with their bytes and their age.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crate::identity::LayerId;
use crate::sync::{Mutex, lock};

/// Layers that are on this node's disk and nowhere else.
#[derive(Debug, Default)]
pub struct OnlyHere {
    bytes: AtomicU64,
    layers: Mutex<BTreeSet<(SystemTime, LayerId)>>,
}

/// One such layer, counted until this is dropped: it is elsewhere too, or gone.
#[derive(Debug)]
pub struct OnlyHereLayer {
    all: Arc<OnlyHere>,
    key: (SystemTime, LayerId),
    bytes: u64,
}

impl OnlyHere {
    /// Counts a layer that was made at `since`.
    pub fn add(self: &Arc<Self>, layer: LayerId, bytes: u64, since: SystemTime) -> OnlyHereLayer {
        let key = (since, layer);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        lock(&self.layers).insert(key);
        OnlyHereLayer { all: Arc::clone(self), key, bytes }
    }

    /// Bytes of the pages of all these layers.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Time since the oldest of them was made; zero without any.
    pub fn oldest_age(&self) -> Duration {
        let oldest = lock(&self.layers).first().map(|(since, _)| *since);
        oldest.and_then(|since| since.elapsed().ok()).unwrap_or_default()
    }
}

impl Drop for OnlyHereLayer {
    fn drop(&mut self) {
        self.all.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        lock(&self.all.layers).remove(&self.key);
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_layer_that_is_only_here_gives_the_age() {
        let all = Arc::<OnlyHere>::default();
        assert_eq!((all.bytes(), all.oldest_age()), (0, Duration::ZERO));
        let hour = Duration::from_secs(3600);
        let old = all.add(LayerId::from_bytes([1; 32]), 10, SystemTime::now() - hour);
        let new = all.add(LayerId::from_bytes([2; 32]), 5, SystemTime::now());
        assert_eq!(all.bytes(), 15);
        assert!(all.oldest_age() >= hour);
        drop(old);
        assert!(all.bytes() == 5 && all.oldest_age() < hour);
        drop(new);
        assert_eq!((all.bytes(), all.oldest_age()), (0, Duration::ZERO));
    }
}
