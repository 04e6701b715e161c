//! Finds published snapshots that are missing in a store that was accepted in place of another.

use std::sync::Arc;

use crate::catalog::CatalogError;
use crate::life::Background;
use crate::lifecycle::{SnapshotEvent, SnapshotWork};
use crate::snapshot::Snapshot;
use crate::stop::Stopped;
use crate::store::StoreError;

/// Reason that the search for published snapshots was not finished; it is repeated.
#[derive(Debug, thiserror::Error)]
pub enum RepublishError {
    /// The store gave no answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The engine ends.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Extent of a search for published snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookedFor {
    /// All of them were looked for.
    All,
    /// The undecided ones were not, or the store is not open: try again later.
    Some,
}

/// If the store was accepted in place of another, looks in it for the manifests of published snapshots. Missing ones
/// return to the state sealed, and `begin` is called with the work of publishing them.
pub(crate) async fn look_for_published(
    snapshots: &[Arc<Snapshot>],
    background: &Background,
    begin: impl Fn(&Arc<Snapshot>, SnapshotWork),
) -> Result<LookedFor, RepublishError> {
    let (store, Some(records)) = (background.store(), &background.records) else { return Ok(LookedFor::All) };
    match store.is_accepted() {
        None => return Ok(LookedFor::Some),
        Some(false) => return Ok(LookedFor::All),
        Some(true) => {}
    }
    for snapshot in snapshots.iter().filter(|snapshot| snapshot.is_published()) {
        let seen = snapshot.editions().last();
        match background.stop().unless_said(store.see_manifest(snapshot.id(), seen)).await? {
            Ok(()) => {}
            Err(StoreError::NotFound(_)) => {
                tracing::warn!(snapshot = %snapshot.id(), "a snapshot is not in the accepted store; it is published again");
                let named = snapshot.named_now().expect("a published snapshot has names");
                records.sealed(snapshot.domain(), snapshot.seal_facts(), &named.local(seen))?;
                let work = snapshot.record(SnapshotEvent::ManifestMissing);
                background.watcher.changed(snapshot);
                begin(snapshot, work);
            }
            Err(error) => return Err(error.into()),
        }
    }
    if snapshots.iter().any(|snapshot| snapshot.status().is_undecided) {
        return Ok(LookedFor::Some);
    }
    store.note_looked_for()?;
    Ok(LookedFor::All)
}
