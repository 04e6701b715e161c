//! Counts of an earlier daemon's things that a start found.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Things that a start found and took over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Running sandboxes whose guests are served again.
    pub sandboxes: u64,
    /// Snapshots that are listed again, lost ones not counted.
    pub snapshots: u64,
    /// From the start of this daemon until the last of the guests was served again.
    pub until_served: Duration,
}

/// Sums of all starts.
#[derive(Debug)]
pub(super) struct Recoveries {
    sandboxes: Counter,
    snapshots: Counter,
    until_served: Gauge<f64, AtomicU64>,
    pub(super) lost: Counter,
}

impl Recoveries {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let counter = |registry: &mut Registry, name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let sandboxes = counter(
            registry,
            "recovered_sandboxes",
            "Running sandboxes that this start took over from an earlier daemon",
        );
        let snapshots =
            counter(registry, "recovered_snapshots", "Snapshots that this start found in the catalog");
        let lost = counter(
            registry,
            "lost_snapshots",
            "Snapshots whose memory was found to be lost before it was sealed",
        );
        let until_served = Gauge::default();
        registry.register_with_unit(
            "recovery_until_served",
            "From the start of this daemon until the last guest it took over was served again",
            Unit::Seconds,
            until_served.clone(),
        );
        Self { sandboxes, snapshots, until_served, lost }
    }

    pub(super) fn recovered(&self, recovery: &Recovery) {
        self.sandboxes.inc_by(recovery.sandboxes);
        self.snapshots.inc_by(recovery.snapshots);
        self.until_served.set(recovery.until_served.as_secs_f64());
    }
}
