//! The snapshots that a store holds, as a list of its manifests tells them.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;

use crate::identity::SnapshotId;
use crate::limits;
use crate::manifest_objects::MANIFESTS;
use crate::store::{Store, StoreError};
use crate::tombstones::{Deletion, TOMBSTONES};
use crate::withdrawal::{Signs, Withdrawal};

/// A snapshot in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredSnapshot {
    /// Its id, which begins with the time of its pause.
    pub id: SnapshotId,
    /// Time of the store at which its manifest was last written, in milliseconds since 1970.
    pub stored_unix_ms: u64,
}

/// A deleted snapshot that can be brought back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WithdrawnSnapshot {
    /// Its id, which begins with the time of its pause.
    pub id: SnapshotId,
    /// The node that deleted it last, as far as that is known.
    pub by: Deletion,
    /// Time of the store at which it was deleted last, in milliseconds since 1970.
    pub deleted_unix_ms: u64,
    /// Time of the store until which it can be brought back at least.
    pub until_unix_ms: u64,
}

/// The objects of one snapshot at a place.
#[derive(Default)]
struct Listed {
    /// The newest time at which another object than a sign was written; none if there is no other.
    stored_unix_ms: Option<u64>,
    signs: Signs,
    /// The times at which deletions were written.
    withdrawn_unix_ms: BTreeMap<Withdrawal, i64>,
}

impl Store {
    /// Every snapshot in the store that was not deleted, oldest first. A page of the list that fails is a list that failed.
    pub(crate) async fn snapshots(&self) -> Result<Vec<StoredSnapshot>, StoreError> {
        let there = self.not_deleted().await?.into_iter();
        let there = there.filter(|(_, listed)| listed.signs.standing().next().is_none());
        let stored = |(id, listed): (_, Listed)| {
            listed.stored_unix_ms.map(|stored_unix_ms| StoredSnapshot { id, stored_unix_ms })
        };
        Ok(there.filter_map(stored).collect())
    }

    /// Every snapshot in the store that is deleted and can be brought back, oldest first.
    pub(crate) async fn withdrawn(&self) -> Result<Vec<WithdrawnSnapshot>, StoreError> {
        let there = self.not_deleted().await?.into_iter();
        let withdrawn = there.filter_map(|(id, listed)| {
            listed.stored_unix_ms?;
            let last = listed.signs.standing().max()?;
            Some((id, last, *listed.withdrawn_unix_ms.get(&last)?))
        });
        let read = withdrawn.map(|(id, last, written)| async move {
            let by = self.withdrawn_by(id, last).await?;
            let time = |unix_ms| u64::try_from(unix_ms).unwrap_or(0);
            let (deleted_unix_ms, until_unix_ms) = (time(written), time(last.ends_unix_ms(written)));
            Ok(WithdrawnSnapshot { id, by, deleted_unix_ms, until_unix_ms })
        });
        stream::iter(read).buffered(limits::COLLECT_READS).try_collect().await
    }

    /// What lies in the place of manifests of each snapshot without a tombstone.
    async fn not_deleted(&self) -> Result<BTreeMap<SnapshotId, Listed>, StoreError> {
        let objects = self.checked().await?;
        let (mut found, deleted) =
            tokio::try_join!(listed(&objects, MANIFESTS), listed(&objects, TOMBSTONES))?;
        found.retain(|id, _| !deleted.contains_key(id));
        Ok(found)
    }
}

/// The snapshots that have objects at a place.
async fn listed(
    objects: &Arc<dyn ObjectStore>,
    place: &'static str,
) -> Result<BTreeMap<SnapshotId, Listed>, StoreError> {
    let under = ObjectPath::from(place);
    let mut listed = objects.list(Some(&under));
    let mut found: BTreeMap<SnapshotId, Listed> = BTreeMap::new();
    let failed = |source| StoreError::from_store(&under, source);
    while let Some(object) = listed.try_next().await.map_err(failed)? {
        // Other objects are nobody's.
        let Some(id) = snapshot_of(&object.location) else { continue };
        let of = found.entry(id).or_default();
        let (name, written) = (object.location.filename().unwrap_or_default(), object.last_modified);
        if let Ok(withdrawal) = name.parse() {
            of.withdrawn_unix_ms.insert(withdrawal, written.timestamp_millis());
        }
        if !of.signs.note(name) {
            of.stored_unix_ms = of.stored_unix_ms.max(u64::try_from(written.timestamp_millis()).ok());
        }
    }
    Ok(found)
}

/// The snapshot whose object has this name.
fn snapshot_of(path: &ObjectPath) -> Option<SnapshotId> {
    path.parts().nth(1)?.as_ref().parse().ok()
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use object_store::memory::InMemory;
    use object_store::{ObjectStoreExt, PutPayload};

    use super::*;

    #[test]
    fn a_store_lists_its_snapshots_once_each_and_oldest_first_and_none_that_was_deleted() {
        let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let store = Store::new(Arc::clone(&objects));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (first, second, deleted) = (SnapshotId::new(), SnapshotId::new(), SnapshotId::new());
        runtime.block_on(async {
            assert_eq!(store.snapshots().await.unwrap(), []);
            for path in [
                format!("manifests/{second}/1"),
                format!("manifests/{second}/2"),
                format!("manifests/{first}"),
                format!("deleted/{deleted}"),
                format!("manifests/{deleted}"),
            ] {
                objects.put(&ObjectPath::from(path), PutPayload::from_static(b"x")).await.unwrap();
            }
            for other in ["manifests/strange", "working-sets/a/b"] {
                objects.put(&ObjectPath::from(other), PutPayload::from_static(b"x")).await.unwrap();
            }
            let ids: Vec<_> = store.snapshots().await.unwrap().iter().map(|stored| stored.id).collect();
            assert_eq!(ids, [first, second]);
        });
    }
}
