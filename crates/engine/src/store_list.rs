//! The snapshots that a store holds, as a list of its manifests tells them.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::stream::TryStreamExt;
use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;

use crate::identity::SnapshotId;
use crate::manifest_objects::MANIFESTS;
use crate::store::{Store, StoreError};
use crate::tombstones::TOMBSTONES;

/// A snapshot in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredSnapshot {
    /// Its id, which begins with the time of its pause.
    pub id: SnapshotId,
    /// Time of the store at which its manifest was last written, in milliseconds since 1970.
    pub stored_unix_ms: u64,
}

impl Store {
    /// Every snapshot in the store that was not deleted, oldest first. A page of the list that fails is a list that failed.
    pub(crate) async fn snapshots(&self) -> Result<Vec<StoredSnapshot>, StoreError> {
        let objects = self.checked().await?;
        let (mut found, deleted) =
            tokio::try_join!(listed(&objects, MANIFESTS), listed(&objects, TOMBSTONES))?;
        found.retain(|id, _| !deleted.contains_key(id));
        Ok(found.into_iter().map(|(id, stored_unix_ms)| StoredSnapshot { id, stored_unix_ms }).collect())
    }
}

/// The snapshots that have objects at a place, with the newest time at which one was written.
async fn listed(
    objects: &Arc<dyn ObjectStore>,
    place: &'static str,
) -> Result<BTreeMap<SnapshotId, u64>, StoreError> {
    let under = ObjectPath::from(place);
    let mut listed = objects.list(Some(&under));
    let mut found = BTreeMap::new();
    let failed = |source| StoreError::from_store(&under, source);
    while let Some(object) = listed.try_next().await.map_err(failed)? {
        // Other objects are nobody's.
        let Some(id) = snapshot_of(&object.location) else { continue };
        let stored = u64::try_from(object.last_modified.timestamp_millis()).unwrap_or(0);
        let newest = found.entry(id).or_insert(stored);
        *newest = stored.max(*newest);
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
