//! The daemon's metrics: recorded where things happen, observed when asked, rendered in the text form that Prometheus
//! scrapes.
//!
//! Every series exists from the start, at zero: a rate over a name that is not there yet says nothing, not zero.

mod aside;
mod cache;
mod collecting;
mod disks;
mod first_faults;
mod observed;
mod pauses;
mod process;
mod recovery;
mod saving;
mod series;
mod sessions;

use std::time::{Duration, Instant, SystemTime};

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::registry::Registry;
use rekindle_api::problem::Code;
use rekindle_disk::DiskWatch;
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::serve::ServerWatch;
use rekindle_engine::snapshot::SnapshotStatus;

pub use aside::AsideCounts;
pub use observed::{Captures, Observed, SandboxCounts, SnapshotCounts};
pub use pauses::PeriodicOutcome;
pub use recovery::Recovery;

use disks::Disks;
use first_faults::FirstFaults;
use pauses::Pauses;
use recovery::Recoveries;
use saving::Saving;
use sessions::{Seen, Sessions};

/// Media type of the text that [`Metrics::render`] gives.
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The daemon's measurements since its start. Everything may be called from any thread.
#[derive(Debug)]
pub struct Metrics {
    recorded: Registry,
    pauses: Pauses,
    first_faults: FirstFaults,
    saving: Saving,
    recoveries: Recoveries,
    sessions: Sessions<ServerWatch>,
    disks: Disks,
    started: SystemTime,
}

impl Metrics {
    /// Nothing measured yet.
    pub fn new() -> Self {
        let mut recorded = Registry::with_prefix("rekindle");
        Self {
            pauses: Pauses::register(&mut recorded),
            first_faults: FirstFaults::default(),
            saving: Saving::register(&mut recorded),
            recoveries: Recoveries::register(&mut recorded),
            sessions: Sessions::default(),
            disks: Disks::default(),
            started: SystemTime::now(),
            recorded,
        }
    }

    /// A pause was answered `answer` after it was asked for; its guest stood still for `frozen` of that.
    pub fn pause_answered(&self, answer: Duration, frozen: Duration) {
        self.pauses.pause.observe(answer.as_secs_f64());
        self.pauses.frozen.observe(frozen.as_secs_f64());
    }

    /// The same of a checkpoint, whose guest goes on.
    pub fn checkpoint_answered(&self, answer: Duration, frozen: Duration) {
        self.pauses.checkpoint.observe(answer.as_secs_f64());
        self.pauses.checkpoint_frozen.observe(frozen.as_secs_f64());
    }

    /// A sandbox was due for a checkpoint.
    pub fn periodic_checkpoint(&self, outcome: PeriodicOutcome) {
        self.pauses.periodic(outcome);
    }

    /// A snapshot's pause was answered just now: its first fault is measured from here.
    pub fn snapshot_answered(&self, snapshot: SnapshotId) {
        self.first_faults.answered(snapshot, Instant::now());
    }

    /// A resume or fork was answered, its guests running.
    pub fn resume_answered(&self, answer: Duration) {
        self.pauses.resume.observe(answer.as_secs_f64());
    }

    /// A guest is served from a snapshot; its counts are shown from here on, also when it is over.
    pub fn serving(&self, snapshot: SnapshotId, watch: ServerWatch) {
        if self.sessions.begin(snapshot, watch) {
            drop(self.look_at_sessions());
        }
    }

    /// A disk is served; its counts are shown from here on, also when it is gone.
    pub fn disk_served(&self, watch: DiskWatch) {
        self.disks.begin(watch);
    }

    /// A request was not done.
    pub fn refused(&self, code: Code) {
        self.pauses.refused(code);
    }

    /// A snapshot was sealed.
    pub fn snapshot_sealed(&self, status: &SnapshotStatus) {
        self.saving.sealed(status);
    }

    /// A snapshot's manifest reached the store this long after its pause.
    pub fn snapshot_published(&self, after_pause: Duration) {
        self.saving.lag.observe(after_pause.as_secs_f64());
    }

    /// A try to seal a snapshot failed; it will be tried again.
    pub fn seal_failed(&self) {
        self.saving.seal_failures.inc();
    }

    /// A try to publish a snapshot failed; it will be tried again.
    pub fn publish_failed(&self) {
        self.saving.publish_failures.inc();
    }

    /// A snapshot was found to be lost.
    pub fn snapshot_lost(&self) {
        self.recoveries.lost.inc();
    }

    /// A start found what an earlier daemon left.
    pub fn recovered(&self, recovery: &Recovery) {
        self.recoveries.recovered(recovery);
    }

    /// All of it as text, with what the daemon sees now.
    pub fn render(&self, observed: &Observed) -> String {
        let sessions = self.look_at_sessions();
        let mut seen = Registry::with_prefix("rekindle");
        observed.register(&sessions, &mut seen);
        observed::register_disks(&self.disks.look(), &mut seen);
        let mut process = Registry::default();
        process::register(self.started, &mut process);
        let mut text = String::new();
        [&self.recorded, &seen, &process]
            .into_iter()
            .try_for_each(|registry| encode_registry(&mut text, registry))
            .and_then(|()| encode_eof(&mut text))
            .expect("writing into a string does not fail");
        text
    }

    fn look_at_sessions(&self) -> Seen {
        let seen = self.sessions.look();
        for &(snapshot, at) in &seen.first_faults {
            self.first_fault(snapshot, at);
        }
        seen
    }

    /// Measured once for each snapshot: its first fault after the answer of its pause.
    fn first_fault(&self, snapshot: SnapshotId, at: Instant) {
        if let Some(answered) = self.first_faults.take(snapshot, at) {
            self.pauses.first_fault.observe(at.duration_since(answered).as_secs_f64());
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
