//! Tombstones: a manifest under one is none, so a put of it that lands late brings no deleted snapshot back.

use object_store::PutPayload;
use object_store::path::Path as ObjectPath;

use crate::identity::SnapshotId;
use crate::manifest::Edition;
use crate::store::{Store, StoreError};

/// Place of all tombstones.
pub(crate) const TOMBSTONES: &str = "deleted";

/// Content of a tombstone; only its name counts.
const CONTENT: &[u8] = br#"{"version":1}"#;

impl Store {
    /// Deletes a snapshot: its tombstone is there before its manifest goes.
    /// An edition of it that was perhaps put without being listed yet goes too.
    pub async fn delete_snapshot(
        &self,
        snapshot: SnapshotId,
        perhaps: Option<Edition>,
    ) -> Result<(), StoreError> {
        self.put(&tombstone_path(snapshot), PutPayload::from_static(CONTENT)).await?;
        self.delete_manifest(snapshot, perhaps).await
    }

    /// True if a snapshot was deleted, by any node.
    pub(crate) async fn has_tombstone(&self, snapshot: SnapshotId) -> Result<bool, StoreError> {
        match self.size_of(&tombstone_path(snapshot)).await {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn tombstone_path(snapshot: SnapshotId) -> ObjectPath {
    ObjectPath::from(format!("{TOMBSTONES}/{snapshot}"))
}
