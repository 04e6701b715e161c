//! Collection in the store, and the marks that keep it from what sandboxes read.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::Engine;
use super::options::CollectSchedule;
use crate::collect::{CollectCounts, CollectError, Collected, Collector, Judged};
use crate::identity::SnapshotId;
use crate::life::Background;
use crate::limits;
use crate::run_roots::RunsFrom;
use crate::snapshot::Snapshot;
use crate::stop::Stopped;
use crate::store::StoreError;

impl Engine {
    /// Notes that a sandbox runs from a snapshot until the result is dropped: the store keeps what it reads, also if the
    /// snapshot is deleted.
    pub fn runs_from(&self, snapshot: &Arc<Snapshot>) -> RunsFrom {
        self.background.run_roots.begin(snapshot)
    }

    /// The other nodes with sandboxes that run from a snapshot, as far as the store answers soon.
    pub fn runners_elsewhere(&self, snapshot: SnapshotId) -> Vec<Uuid> {
        let store = self.background.store();
        let asked = async {
            tokio::time::timeout(limits::RUNNERS_ASKED_FOR, store.runners_elsewhere(snapshot)).await
        };
        match self.runtime.block_on(asked) {
            Ok(Ok(nodes)) => nodes,
            Ok(Err(error)) => {
                tracing::debug!(%snapshot, %error, "which nodes run from it cannot be said");
                Vec::new()
            }
            Err(_) => Vec::new(),
        }
    }

    /// Deletes from the store what nobody needs, once `probation` is over. Without one, all of it is gone when this
    /// returns; otherwise the engine does the rest in time, also after a restart.
    pub fn collect(&self, probation: Duration) -> Result<Collected, CollectError> {
        self.runtime
            .block_on(async {
                let stopped = |Stopped| CollectError::Stopped;
                let work = async {
                    // This node's own roots for sandboxes that have ended are needless.
                    self.background.run_roots.look(self.background.store()).await?;
                    self.collector.collect(probation).await
                };
                self.background.stop().unless_said(work).await.map_err(stopped)?
            })
            .inspect(|done| self.background.watcher.collected(done))
    }

    /// Puts the roots for sandboxes that run, and takes away those that are needless, as the engine does by itself soon.
    pub fn look_after_roots(&self) -> Result<(), StoreError> {
        self.runtime.block_on(self.background.run_roots.look(self.background.store()))
    }

    /// Takes everything out of the store that says that this node is there. It uses the store no more after that.
    pub fn sign_off(&self) -> Result<(), StoreError> {
        self.look_after_roots()?;
        self.runtime.block_on(self.background.store().take_signs_away())
    }

    /// The fate of each object in the store, if it was collected now. Deletes nothing.
    pub fn judge_store(&self) -> Result<Vec<Judged>, CollectError> {
        self.runtime.block_on(self.collector.judge())
    }

    /// Counts of this node's collections.
    pub fn collect_counts(&self) -> CollectCounts {
        self.collector.counts()
    }

    /// Begins to collect now and then.
    pub(super) fn collect_by(&self, schedule: CollectSchedule) {
        let (collector, background) = (Arc::clone(&self.collector), Arc::clone(&self.background));
        let lives = self.lives.as_ref().expect("the engine has just started");
        lives.begin_other(async move {
            keep_collecting(&collector, &background, schedule).await.ok();
        });
    }
}

async fn keep_collecting(
    collector: &Collector,
    background: &Background,
    schedule: CollectSchedule,
) -> Result<(), Stopped> {
    let stop = background.stop();
    let mut next = schedule.every.map(|every| Instant::now() + jitter(every));
    loop {
        let due = match stop.unless_said(collector.go_on()).await? {
            Ok(due) => due.unwrap_or(limits::COLLECT_LOOK_EVERY),
            Err(error) => {
                tracing::warn!(%error, "a collection in the store waits");
                limits::COLLECT_LOOK_EVERY
            }
        };
        let wait = next.map_or(due, |next| due.min(next - Instant::now())).min(limits::COLLECT_LOOK_EVERY);
        stop.wait(wait.max(limits::WORK_RETRY_FIRST)).await?;
        if next.is_some_and(|next| Instant::now() >= next) {
            next = schedule.every.map(|every| Instant::now() + every);
            match stop.unless_said(collector.collect(schedule.probation)).await? {
                Ok(done) => {
                    tracing::info!(?done, "the store was collected");
                    background.watcher.collected(&done);
                }
                Err(error) => tracing::warn!(%error, "the store is not collected now"),
            }
        }
    }
}

/// A time within `every`, so that the nodes of a store do not all begin at once.
fn jitter(every: Duration) -> Duration {
    // Its last bytes are random.
    let [.., random] = *uuid::Uuid::now_v7().as_bytes();
    every / 256 * u32::from(random)
}
