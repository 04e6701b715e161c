//! Keeps a snapshot's working set: with its handle, in the catalog, and in the store once the snapshot is published.
//!
//! Working sets are advice, and this is best effort: a failure is logged, and the next resume goes without or tries
//! again.

use std::sync::Arc;
use std::time::Duration;

use object_store::PutPayload;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::byte_budget::ByteBudget;
use crate::catalog::CatalogError;
use crate::fetch::Fetcher;
use crate::geometry::u64_of;
use crate::identity::SnapshotId;
use crate::key_ring::DomainKey;
use crate::limits;
use crate::packed_reads::{PackedReads, StoredSet, StoredSetError};
use crate::pool::PoolHandle;
use crate::records::Records;
use crate::set_packer::SetPages;
use crate::snapshot::Snapshot;
use crate::sources::Sources;
use crate::working_set::WorkingSet;

/// A snapshot's working set.
#[derive(Debug)]
pub struct FoundSet {
    /// The pages.
    pub set: Arc<WorkingSet>,
    /// The reads of their bytes, which have begun, if they lie packed in the store and are not here.
    pub packed: Option<PackedReads>,
}

/// Keeps the working sets of a node's snapshots.
#[derive(Debug)]
pub(crate) struct WorkingSets {
    /// Brings frames that are packed.
    pub(crate) fetcher: Fetcher,
    /// Compresses pages.
    pub(crate) encoding: PoolHandle,
    /// Bytes that all uploads together may hold.
    pub(crate) budget: ByteBudget<SnapshotId>,
    /// Hundredths of a snapshot's bytes in the store that its working set's may be.
    pub(crate) share: u8,
}

/// Looks for the working set of a snapshot, in the catalog and in the store, if that was not done yet. With `pages`, the
/// reads of its bytes begin at once where this node has little of the snapshot.
pub async fn find(snapshot: &Snapshot, sources: &Sources, pages: bool) -> Option<FoundSet> {
    let (known, mut packed) = (snapshot.working_set(), None);
    let turn = known.turn().await;
    // The previous owner of the turn may have looked.
    if known.now().is_none() {
        let set = match recorded(snapshot).await {
            Some(recorded) => Some(recorded),
            None => stored(snapshot, sources, pages).await.map(|found| {
                packed = found.packed;
                (found.set, true)
            }),
        };
        known.found(set.filter(|(set, _)| set.snapshot() == snapshot.id()));
    }
    drop(turn);
    known.now().map(|set| FoundSet { set, packed })
}

/// The reads of the pages that lie packed with a working set in the store, where this node has little of the snapshot. They
/// have begun. Without the index of a layer, its pages cannot be proven.
pub(crate) async fn packed_pages(snapshot: &Snapshot, sources: &Sources) -> Option<PackedReads> {
    let view = snapshot.memory().load();
    let can_prove = view.layers().iter().all(|layer| layer.index().is_some());
    if !can_prove || !is_mostly_elsewhere(snapshot) {
        return None;
    }
    stored(snapshot, sources, true).await?.packed
}

impl WorkingSets {
    /// Keeps `set` in place of `expected`, on this node and, if its snapshot is published, in the store.
    pub(crate) async fn keep(
        &self,
        snapshot: &Snapshot,
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
            self.publish(snapshot).await;
        }
    }

    /// Gives a snapshot that was just published a working set: its own, or else that of its parent, whose guest it was. The
    /// parent's pages leave the store then if nothing else was resumed from it.
    pub(crate) async fn begin(&self, snapshot: &Snapshot) {
        let known = snapshot.working_set();
        let parent = snapshot.parent_now();
        if known.now().is_none()
            && let Some((set, uses)) = parent.as_ref().and_then(|parent| parent.working_set().for_child())
        {
            known.inherit(set.of_child(snapshot.id(), snapshot.memory().pages()), uses);
        }
        let is_packed = self.publish(snapshot).await;
        if is_packed
            && let Some(parent) = &parent
            && parent.working_set().has_gone_on()
            && parent.domain() == snapshot.domain()
        {
            self.drop_pages(parent).await;
        }
        // With its last handle go the files of a deleted snapshot.
        drop(spawn_blocking(move || drop(parent)));
    }

    /// Puts a working set into the store, if it is not there yet, with as many of its pages as the share allows. True if it
    /// was put with pages.
    pub(crate) async fn publish(&self, snapshot: &Snapshot) -> bool {
        let (known, keys) = (snapshot.working_set(), self.fetcher.sources().keys());
        let turn = known.turn().await;
        let mut is_packed = false;
        if let Some(set) = known.unstored()
            && let Ok(key) = keys.of_domain(snapshot.domain())
        {
            let packed = self.pack(snapshot, &set, key).await;
            is_packed = packed.is_some();
            let payload = packed.unwrap_or_else(|| set.encode(key).into());
            let is_put = self.put(snapshot.id(), payload).await;
            if is_put && known.is_stored(&set) {
                record(snapshot, set, true).await;
            }
            is_packed &= is_put;
        }
        drop(turn);
        self.delete_if_deleted(snapshot).await;
        is_packed
    }

    /// The working set with its pages; none if the share allows none, or none are here.
    async fn pack(&self, snapshot: &Snapshot, set: &WorkingSet, key: &DomainKey) -> Option<PutPayload> {
        let layers = snapshot.layers_now();
        let stored: u64 = layers.iter().filter_map(|layer| layer.stored_bytes).sum();
        let bytes_max = (stored * u64::from(self.share) / 100).min(limits::PACKED_BYTES_MAX);
        if bytes_max == 0 {
            return None;
        }
        let pages = SetPages::find(snapshot.memory(), set);
        let lease = self.budget.lease(snapshot.id(), pages.raw_bytes().min(bytes_max)).await;
        let packed = pages.pack((snapshot.id(), key), (&self.fetcher, &self.encoding), bytes_max).await;
        drop(lease);
        packed
    }

    /// True if the store has it now.
    async fn put(&self, id: SnapshotId, payload: PutPayload) -> bool {
        let sending = u64_of(payload.content_length()) / limits::READ_BYTES_A_SECOND_MIN;
        let wait = limits::WORKING_SET_STORE_WAIT + Duration::from_secs(sending);
        let put = self.fetcher.sources().store().put_working_set(id, payload);
        match timeout(wait, put).await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => tracing::warn!(snapshot = %id, %error, "a working set is not stored now"),
            Err(_) => tracing::warn!(snapshot = %id, "a working set is not stored now: the store is slow"),
        }
        false
    }

    /// Puts a snapshot's working set without its pages in the place of the one with them. The next resume from it puts them
    /// again.
    async fn drop_pages(&self, snapshot: &Snapshot) {
        let (known, keys) = (snapshot.working_set(), self.fetcher.sources().keys());
        let turn = known.turn().await;
        if snapshot.is_published()
            && let Some(set) = known.now()
            && let Ok(key) = keys.of_domain(snapshot.domain())
        {
            // Before they are gone: a resume that begins meanwhile puts them again.
            known.lacks_pages(&set);
            self.put(snapshot.id(), set.encode(key).into()).await;
        }
        drop(turn);
        self.delete_if_deleted(snapshot).await;
    }

    /// It was deleted meanwhile: the deletion may have listed the store before this object was there.
    async fn delete_if_deleted(&self, snapshot: &Snapshot) {
        let id = snapshot.id();
        if snapshot.is_deleted()
            && let Err(error) = self.fetcher.sources().store().delete_working_sets(id).await
        {
            tracing::warn!(snapshot = %id, %error, "the working set of a deleted snapshot may stay in the store");
        }
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

async fn stored(snapshot: &Snapshot, sources: &Sources, pages: bool) -> Option<StoredSet> {
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
        let object = if found.is_some() { found } else { sources.newest_working_set(id).await? };
        let Some(object) = object else { return Ok(None) };
        StoredSet::read(sources, object, pages && is_mostly_elsewhere(snapshot)).await.map(Some)
    };
    let wait = limits::WORKING_SET_STORE_WAIT;
    match timeout(wait, read).await {
        Ok(Ok(found)) => found,
        Ok(Err(StoredSetError::Source(error))) => {
            tracing::debug!(snapshot = %id, %error, "a working set in the store cannot be had");
            None
        }
        Ok(Err(StoredSetError::Tagged(error))) => {
            tracing::warn!(snapshot = %id, %error, "a stored working set is none");
            None
        }
        Err(_) => {
            tracing::debug!(snapshot = %id, "a working set in the store does not come");
            None
        }
    }
}

/// True if most bytes of a snapshot's layers are not on this node.
fn is_mostly_elsewhere(snapshot: &Snapshot) -> bool {
    let layers = snapshot.layers_now();
    let here: u64 = layers.iter().map(|layer| layer.local_bytes).sum();
    here * 2 < layers.iter().map(|layer| layer.bytes).sum()
}
