//! Working sets in the store: the newest of a snapshot counts.

use futures_util::stream::{StreamExt, TryStreamExt};
use object_store::PutPayload;
use object_store::path::Path as ObjectPath;
use uuid::Uuid;

use crate::identity::SnapshotId;
use crate::limits;
use crate::store::{Store, StoreError};
use crate::working_set::WorkingSetObject;

impl Store {
    /// Writes a working set under a key of its own, and deletes older ones.
    pub async fn put_working_set(
        &self,
        snapshot: SnapshotId,
        payload: impl Into<PutPayload>,
    ) -> Result<(), StoreError> {
        // Keys begin with the time.
        let path = working_sets_path(snapshot).join(Uuid::now_v7().to_string());
        self.put(&path, payload.into()).await?;
        for other in self.working_sets(snapshot).await? {
            if other.path < path {
                self.delete(other.path).await?;
            }
        }
        Ok(())
    }

    /// The newest working set of a snapshot, if there is one.
    pub(crate) async fn newest_working_set(
        &self,
        snapshot: SnapshotId,
    ) -> Result<Option<WorkingSetObject>, StoreError> {
        Ok(self.working_sets(snapshot).await?.into_iter().max_by(|one, other| one.path.cmp(&other.path)))
    }

    /// Deletes all working sets of a snapshot.
    pub async fn delete_working_sets(&self, snapshot: SnapshotId) -> Result<(), StoreError> {
        for object in self.working_sets(snapshot).await? {
            self.delete(object.path).await?;
        }
        Ok(())
    }

    async fn working_sets(&self, snapshot: SnapshotId) -> Result<Vec<WorkingSetObject>, StoreError> {
        let under = working_sets_path(snapshot);
        let objects = self.objects().await?;
        let listed = objects.list(Some(&under)).take(limits::WORKING_SET_OBJECTS_MAX);
        let named = listed.map_ok(|object| WorkingSetObject { path: object.location, bytes: object.size });
        named.try_collect().await.map_err(|source| StoreError::from_store(&under, source))
    }
}

fn working_sets_path(snapshot: SnapshotId) -> ObjectPath {
    ObjectPath::from(format!("working-sets/{snapshot}"))
}
