//! Keeps a snapshot's working set: with its handle, in the catalog, and in the store once the snapshot is published.
//!
//! Working sets are advice, and this is best effort: a failure is logged, and the next resume goes without or tries
//! again.

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::catalog::CatalogError;
use crate::key_ring::KeyRing;
use crate::limits;
use crate::records::Records;
use crate::snapshot::Snapshot;
use crate::sources::Sources;
use crate::store::Store;
use crate::working_set::WorkingSet;

/// Looks for the working set of a snapshot, in the catalog and in the store, if that was not done yet.
pub async fn find(snapshot: &Snapshot, sources: &Sources) -> Option<Arc<WorkingSet>> {
    let known = snapshot.working_set();
    let turn = known.turn().await;
    // The previous owner of the turn may have looked.
    if known.now().is_none() {
        let set = match recorded(snapshot).await {
            Some(recorded) => Some(recorded),
            None => stored(snapshot, sources).await.map(|set| (set, true)),
        };
        known.found(set.filter(|(set, _)| set.snapshot() == snapshot.id()));
    }
    drop(turn);
    known.now()
}

/// Keeps `set` in place of `expected`, on this node and, if its snapshot is published, in the store.
pub(crate) async fn keep(
    snapshot: &Snapshot,
    sources: &Sources,
    expected: Option<&Arc<WorkingSet>>,
    set: Arc<WorkingSet>,
) {
    if snapshot.is_deleted() || !snapshot.working_set().replace(expected, Arc::clone(&set)) {
        return;
    }
    // From here on the next resume has it. A pause may have ended the recording, and its own record must not wait for
    // this one.
    tokio::time::sleep(limits::WORKING_SET_WRITTEN_AFTER).await;
    let turn = snapshot.working_set().turn().await;
    let is_wanted = !snapshot.is_deleted()
        && snapshot.working_set().unstored().is_some_and(|present| Arc::ptr_eq(&present, &set));
    if is_wanted {
        record(snapshot, set, false).await;
    }
    drop(turn);
    if is_wanted && snapshot.is_published() {
        publish(snapshot, sources.store(), sources.keys()).await;
    }
}

/// Puts a working set into the store, if it is not there yet.
pub(crate) async fn publish(snapshot: &Snapshot, store: &Store, keys: &KeyRing) {
    let (id, known) = (snapshot.id(), snapshot.working_set());
    let turn = known.turn().await;
    if let Some(set) = known.unstored()
        && let Ok(key) = keys.of_domain(snapshot.domain())
    {
        let put = store.put_working_set(id, Bytes::from(set.encode(key)));
        match timeout(limits::WORKING_SET_STORE_WAIT, put).await {
            Ok(Ok(())) if known.is_stored(&set) => record(snapshot, set, true).await,
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(snapshot = %id, %error, "a working set is not stored now"),
            Err(_) => tracing::warn!(snapshot = %id, "a working set is not stored now: the store is slow"),
        }
    }
    drop(turn);
    // It was deleted meanwhile: the deletion may have listed the store before this object was there.
    if snapshot.is_deleted()
        && let Err(error) = store.delete_working_sets(id).await
    {
        tracing::warn!(snapshot = %id, %error, "the working set of a deleted snapshot may stay in the store");
    }
}

async fn recorded(snapshot: &Snapshot) -> Option<(WorkingSet, bool)> {
    let id = snapshot.id();
    in_catalog(snapshot, move |records| records.working_set(id)).await.flatten()
}

async fn record(snapshot: &Snapshot, set: Arc<WorkingSet>, stored: bool) {
    let id = snapshot.id();
    in_catalog(snapshot, move |records| records.keep_working_set(id, &set, stored)).await;
}

/// Asks the catalog on a thread that may wait; `None` without a catalog, or if it fails.
async fn in_catalog<T: Send + 'static>(
    snapshot: &Snapshot,
    ask: impl FnOnce(&Records) -> Result<T, CatalogError> + Send + 'static,
) -> Option<T> {
    let records = snapshot.records()?.clone();
    // A cancelled call means that the engine ends.
    match spawn_blocking(move || ask(&records)).await.ok()? {
        Ok(answer) => Some(answer),
        Err(error) => {
            tracing::warn!(snapshot = %snapshot.id(), %error, "the working set in the catalog");
            None
        }
    }
}

async fn stored(snapshot: &Snapshot, sources: &Sources) -> Option<WorkingSet> {
    if !snapshot.is_published() {
        return None;
    }
    let id = snapshot.id();
    let begun = snapshot.working_set().take_search();
    let read = async {
        let found = match begun {
            Some(search) => search.await.ok().flatten(),
            None => None,
        };
        // There may be one by now.
        let place = if found.is_some() { found } else { sources.newest_working_set(id).await? };
        match place {
            Some(place) => sources.working_set(place).await.map(Some),
            None => Ok(None),
        }
    };
    let bytes = match read.await {
        Ok(bytes) => bytes?,
        Err(error) => {
            tracing::debug!(snapshot = %id, %error, "a working set in the store cannot be had");
            return None;
        }
    };
    let decoded = WorkingSet::decode(&bytes, sources.keys());
    decoded.inspect_err(|error| tracing::warn!(snapshot = %id, %error, "a stored working set is none")).ok()
}
