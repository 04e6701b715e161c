//! Metrics of seals and publishes: their times, their findings, and their failures.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use rekindle_engine::snapshot::{SealParts, SnapshotStatus};

use super::series::{Label, work_seconds};

/// Classes of captured pages.
const CLASSES: [&str; 3] = ["zero", "equal", "kept"];

/// Parts of a seal.
const PARTS: [&str; 5] = ["proof", "turn", "compare", "pack", "name"];

/// Metrics of a snapshot's life after its pause was answered.
#[derive(Debug)]
pub(super) struct Saving {
    seal: Histogram,
    parts: Family<[Label; 1], Histogram, fn() -> Histogram>,
    classes: Family<[Label; 1], Counter>,
    unread: Counter,
    pub(super) seal_failures: Counter,
    pub(super) publish_failures: Counter,
    pub(super) lag: Histogram,
}

impl Saving {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let seal = work_seconds();
        registry.register_with_unit(
            "seal",
            "From the proof that captured memory is frozen to its manifest",
            Unit::Seconds,
            seal.clone(),
        );
        let parts = Family::<[Label; 1], Histogram, fn() -> Histogram>::new_with_constructor(work_seconds);
        for part in PARTS {
            drop(parts.get_or_create(&[("part", part)]));
        }
        registry.register_with_unit(
            "seal_part",
            "Parts of seals: waiting for the proof that memory is frozen and for a turn, comparing, packing, naming",
            Unit::Seconds,
            parts.clone(),
        );
        let classes = Family::<[Label; 1], Counter>::default();
        for class in CLASSES {
            drop(classes.get_or_create(&[("class", class)]));
        }
        registry.register(
            "captured_pages",
            "Captured pages of 4096 bytes by what comparing found: zero, equal to the parent's, or kept",
            classes.clone(),
        );
        let unread = Counter::default();
        registry.register(
            "unread_parent_pages",
            "Of the kept ones, those kept because the parent's page could not be read",
            unread.clone(),
        );
        let seal_failures = Counter::default();
        registry.register("seal_failures", "Tries to seal that failed", seal_failures.clone());
        let publish_failures = Counter::default();
        registry.register("publish_failures", "Tries to publish that failed", publish_failures.clone());
        let lag = work_seconds();
        registry.register_with_unit(
            "publish_lag",
            "From the answer of a pause to its snapshot being in the store",
            Unit::Seconds,
            lag.clone(),
        );
        Self { seal, parts, classes, unread, seal_failures, publish_failures, lag }
    }

    pub(super) fn sealed(&self, status: &SnapshotStatus) {
        if let Some(time) = status.seal_time {
            self.seal.observe(time.as_secs_f64());
        }
        if let Some(SealParts { proof, turn, compare, pack, name }) = status.seal_parts {
            for (part, time) in PARTS.into_iter().zip([proof, turn, compare, pack, name]) {
                self.parts.get_or_create(&[("part", part)]).observe(time.as_secs_f64());
            }
        }
        if let Some(classes) = status.classes {
            let found = [classes.zero, classes.equal, classes.kept];
            for (class, pages) in CLASSES.into_iter().zip(found) {
                self.classes.get_or_create(&[("class", class)]).inc_by(u64::from(pages));
            }
            self.unread.inc_by(u64::from(classes.unread));
        }
    }
}
