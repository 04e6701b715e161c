//! Tells of snapshots that come further and of collections, by events and metrics.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rekindle_engine::collect::Collected;
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::watch::Watcher;
use rekindle_metrics::Metrics;

use super::clock::unix_ms;
use super::events::{About, EventLog};
use super::listed_snapshots::ListedSnapshots;

/// Tells of snapshots that come further.
#[derive(Debug)]
pub(super) struct SnapshotNews {
    events: Arc<EventLog>,
    metrics: Arc<Metrics>,
    snapshots: Arc<ListedSnapshots>,
    /// The failure that was told last of each snapshot, so that each is told once.
    told: Mutex<HashMap<SnapshotId, String>>,
}

impl SnapshotNews {
    pub(super) fn new(events: Arc<EventLog>, metrics: Arc<Metrics>, snapshots: Arc<ListedSnapshots>) -> Self {
        Self { events, metrics, snapshots, told: Mutex::default() }
    }

    fn told(&self) -> MutexGuard<'_, HashMap<SnapshotId, String>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher for SnapshotNews {
    fn collected(&self, done: &Collected) {
        let Collected { objects, condemned, deleted, waiting, .. } = done;
        let detail = format!(
            "{objects} objects, of which {condemned} are needed no more; {deleted} are deleted, {waiting} wait for the end of \
             their probation"
        );
        self.events.say("store.collected", About::default(), Some(detail));
    }

    fn changed(&self, snapshot: &Arc<Snapshot>) {
        let sandbox = self.snapshots.changed(snapshot).sandbox;
        let about = About { sandbox, snapshot: Some(snapshot.id().uuid()) };
        let status = snapshot.status();
        // A snapshot that was deleted while it failed needs no attention any more.
        let failure = status.failure.filter(|_| status.state != SnapshotState::Discarded);
        if let Some(failure) = failure {
            match status.state {
                SnapshotState::Captured | SnapshotState::CapturedForChildren => self.metrics.seal_failed(),
                SnapshotState::Sealed => self.metrics.publish_failed(),
                SnapshotState::Published
                | SnapshotState::Remote
                | SnapshotState::Discarded
                | SnapshotState::Lost => {}
            }
            let told = self.told().insert(snapshot.id(), failure.clone());
            if told.as_ref() != Some(&failure) {
                self.events.say("snapshot.failing", about, Some(failure));
            }
            return;
        }
        self.told().remove(&snapshot.id());
        match status.state {
            SnapshotState::Captured => self.events.say("snapshot.captured", about, None),
            SnapshotState::Sealed => {
                self.metrics.snapshot_sealed(&snapshot.status());
                self.events.say("snapshot.sealed", about, None);
            }
            SnapshotState::Published => {
                let age = Duration::from_millis(unix_ms().saturating_sub(snapshot.created_unix_ms()));
                self.metrics.snapshot_published(age);
                self.events.say("snapshot.published", about, None);
            }
            SnapshotState::Remote => self.events.say("snapshot.remote", about, None),
            SnapshotState::CapturedForChildren | SnapshotState::Discarded | SnapshotState::Lost => {}
        }
    }
}
