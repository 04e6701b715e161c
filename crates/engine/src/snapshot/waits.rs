//! Waits for a change of a snapshot's progress: of threads, with a limit, and of tasks.

use std::sync::Arc;
use std::time::Duration;

use super::progress::Progress;
use super::{NoManifestYet, Snapshot};
use crate::deadline::Deadline;
use crate::lifecycle::SnapshotState;
use crate::manifest::Manifest;
use crate::named::Named;
use crate::sync::{MutexGuard, lock};

impl Snapshot {
    /// Waits up to `limit` for the manifest.
    pub fn wait_manifest(&self, limit: Duration) -> Result<Arc<Manifest>, NoManifestYet> {
        self.wait(limit, |progress| Some(Arc::clone(progress.named()?.manifest()))).ok_or(NoManifestYet)
    }

    /// Waits up to `limit` for the state to be `state`; true if it was.
    pub fn wait_state(&self, state: SnapshotState, limit: Duration) -> bool {
        self.wait(limit, |progress| (progress.state() == state).then_some(())).is_some()
    }

    /// Waits for the manifest as long as it takes; the reason instead if another node's bytes of it were wrong.
    pub(crate) async fn names(&self) -> Result<Named, String> {
        loop {
            // Made before the check, so that no later change is missed.
            let news = self.news.notified();
            if let Some(named) = self.named_now() {
                return Ok(named);
            }
            if let Some(reason) = self.refuted() {
                return Err(reason);
            }
            news.await;
        }
    }

    /// Waits until it is in the store, or can never be.
    pub async fn published_or_over(&self) {
        loop {
            // Made before the check, so that no later change is missed.
            let news = self.news.notified();
            match self.state() {
                SnapshotState::Published | SnapshotState::Discarded | SnapshotState::Lost => return,
                SnapshotState::Captured
                | SnapshotState::CapturedForChildren
                | SnapshotState::Sealed
                | SnapshotState::Remote => news.await,
            }
        }
    }

    /// Waits until nothing is left to save of it for other nodes: it is in the store, deleted or lost.
    pub(crate) async fn saved_or_gone(&self) {
        loop {
            // Made before the check, so that no later change is missed.
            let news = self.news.notified();
            match self.state() {
                SnapshotState::Captured | SnapshotState::Sealed => news.await,
                SnapshotState::CapturedForChildren
                | SnapshotState::Published
                | SnapshotState::Remote
                | SnapshotState::Discarded
                | SnapshotState::Lost => return,
            }
        }
    }

    fn wait<T>(&self, limit: Duration, found: impl Fn(&Progress) -> Option<T>) -> Option<T> {
        let deadline = Deadline::after(limit);
        let mut progress: MutexGuard<'_, Progress> = lock(&self.progress);
        loop {
            if let Some(value) = found(&progress) {
                return Some(value);
            }
            let left = deadline.left();
            if left.is_zero() {
                return None;
            }
            progress =
                self.changed.wait_timeout(progress, left).expect("no thread panics while it holds a lock").0;
        }
    }
}
