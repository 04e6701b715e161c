//! Metrics of disks: of those that are served now, and of those before.

use std::sync::{Mutex, PoisonError};

use rekindle_disk::{DiskStats, DiskWatch};

/// The disks of this process.
#[derive(Debug, Default)]
pub(super) struct Disks(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    served: Vec<DiskWatch>,
    /// Counts of the disks that are gone.
    before: DiskStats,
}

impl Disks {
    /// A disk is served from now on.
    pub(super) fn begin(&self, watch: DiskWatch) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.look();
        known.served.push(watch);
    }

    /// Counts of all of them together.
    pub(super) fn look(&self) -> DiskStats {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).look()
    }
}

impl Known {
    /// Adds everything up, and forgets those that are gone.
    fn look(&mut self) -> DiskStats {
        let Self { served, before } = self;
        let mut running = DiskStats::default();
        served.retain(|watch| {
            // Asked before the counts are read: gone, they stay as they are.
            let is_gone = watch.is_gone();
            if is_gone {
                before.add(&watch.stats())
            } else {
                running.add(&watch.stats())
            }
            !is_gone
        });
        running.add(before);
        running
    }
}
