//! Deletes snapshots, and brings deleted ones back while that can be done.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Engine;
use crate::catalog::CatalogError;
use crate::identity::SnapshotId;
use crate::life::Work;
use crate::lifecycle::SnapshotEvent;
use crate::limits;
use crate::manifest_objects::{editions_and_signs, older_path};
use crate::snapshot::Snapshot;
use crate::sources::SourceError;
use crate::store::{Store, StoreError};
use crate::store_list::WithdrawnSnapshot;
use crate::sync::lock;
use crate::tombstones::Deletion;
use crate::undelete_steps::{UndeleteStep, Undeleting};
use crate::withdrawal::Withdrawal;

/// Reason that a snapshot is not brought back.
#[derive(Debug, thiserror::Error)]
pub enum UndeleteError {
    /// The store has no deletion of it that can be undone.
    #[error("the store has no deletion of it that can be undone")]
    NotDeleted,
    /// It is deleted for good.
    #[error("it is deleted for good{0}")]
    Gone(Deletion),
    /// Something on this node reads it still, or its deletion has not reached the store yet.
    #[error("something on this node still uses it, or its deletion has not reached the store yet")]
    InUse,
    /// A collector is about to make the deletion final, and has not decided yet.
    #[error("its time has passed, and a collection is deciding about it")]
    Undecided,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl Engine {
    /// Deletes a snapshot, for good once this has returned. Sandboxes that run from it go on, and children keep their
    /// pages.
    pub fn delete(&self, snapshot: &Arc<Snapshot>) -> Result<(), CatalogError> {
        self.delete_undoably(snapshot, Duration::ZERO).map(drop)
    }

    /// The same; a published snapshot can be brought back for this time at least. True if it can.
    pub fn delete_undoably(&self, snapshot: &Arc<Snapshot>, window: Duration) -> Result<bool, CatalogError> {
        let can_be_undone = !window.is_zero() && snapshot.is_published();
        let withdrawal = can_be_undone.then(|| Withdrawal::new(window));
        if let Some(records) = &self.background.records {
            records.deleted(snapshot.id(), withdrawal)?;
        }
        if let Some(withdrawal) = withdrawal {
            snapshot.withdrawal.set(withdrawal).ok();
        }
        let mut deleting = lock(&self.deleting);
        deleting.retain(|_, snapshot| snapshot.strong_count() > 0);
        deleting.insert(snapshot.id(), Arc::downgrade(snapshot));
        drop(deleting);
        self.there.deleted.hold(Arc::clone(snapshot));
        lock(&self.there.known).remove(&snapshot.id());
        let asked = snapshot.record(SnapshotEvent::Deleted);
        self.background.watcher.changed(snapshot);
        self.begin_life(snapshot, Work::asked(asked, snapshot, Work::Nothing));
        self.there.deleted.let_go(&self.snapshots());
        Ok(can_be_undone)
    }

    /// Brings a snapshot back whose deletion can be undone, for all nodes. Doing so again is a success.
    pub fn undelete(&self, id: SnapshotId) -> Result<(), UndeleteError> {
        // This node could not open it before its own handles of it are gone.
        if !self.wait_deleted(id, limits::FORGET_WAIT)? {
            return Err(UndeleteError::InUse);
        }
        self.runtime.block_on(undelete(self.background.store(), id))
    }

    /// Waits until the store has the deletion of a snapshot, and nothing on this node reads it. False if that is not so
    /// within `limit`.
    pub fn wait_deleted(&self, id: SnapshotId, limit: Duration) -> Result<bool, CatalogError> {
        let until = Instant::now() + limit;
        self.runtime.block_on(async {
            while self.is_being_deleted(id) || self.is_recorded_as_deleted(id)? {
                if Instant::now() >= until {
                    return Ok(false);
                }
                tokio::time::sleep(limits::FORGET_LOOK_EVERY).await;
            }
            Ok(true)
        })
    }

    /// Every snapshot in the store that is deleted and can be brought back; oldest first.
    pub fn withdrawn_snapshots(&self) -> Result<Vec<WithdrawnSnapshot>, SourceError> {
        self.runtime.block_on(self.fetcher.sources().withdrawn())
    }

    /// True if a snapshot that was deleted here is still held.
    pub(super) fn is_being_deleted(&self, id: SnapshotId) -> bool {
        lock(&self.deleting).get(&id).is_some_and(|snapshot| snapshot.strong_count() > 0)
    }

    fn is_recorded_as_deleted(&self, id: SnapshotId) -> Result<bool, CatalogError> {
        self.background.records.as_ref().map_or(Ok(false), |records| records.is_deleted(id))
    }
}

async fn undelete(store: &Store, id: SnapshotId) -> Result<(), UndeleteError> {
    let listed = editions_and_signs(&store.checked().await?, id).await;
    let (_, signs) = listed.map_err(|source| StoreError::from_store(&older_path(id), source))?;
    if signs.withdrawn.is_empty() {
        let gone = store.deletion(id).await?;
        return Err(gone.map_or(UndeleteError::NotDeleted, UndeleteError::Gone));
    }
    let (mut undeleting, until) = (Undeleting::of(id, signs), Instant::now() + limits::UNDELETE_WAIT);
    loop {
        match undeleting.next() {
            UndeleteStep::PutUndone(deletion) => {
                store.put_undone(id, deletion).await?;
                undeleting.undone(deletion);
            }
            UndeleteStep::ListCondemned => {
                if !undeleting.listed(&store.condemned().await?) {
                    if Instant::now() >= until {
                        return Err(UndeleteError::Undecided);
                    }
                    tokio::time::sleep(limits::UNDELETE_LOOK_EVERY).await;
                }
            }
            UndeleteStep::LookForTombstone => undeleting.looked(store.has_tombstone(id).await?),
            UndeleteStep::Done => return Ok(()),
            UndeleteStep::Gone => {
                return Err(UndeleteError::Gone(store.deletion(id).await?.unwrap_or_default()));
            }
        }
    }
}
