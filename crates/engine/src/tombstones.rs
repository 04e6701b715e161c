//! Tombstones: a manifest under one is none, so a put of it that lands late brings no deleted snapshot back.

use object_store::PutPayload;
use object_store::path::Path as ObjectPath;

use crate::identity::SnapshotId;
use crate::store::{Store, StoreError};

/// Place of all tombstones.
pub(crate) const TOMBSTONES: &str = "deleted";

/// Content of a tombstone; only its name counts.
const CONTENT: &[u8] = br#"{"version":1}"#;

impl Store {
    /// Puts a snapshot's tombstone: a manifest of it is none from then on.
    pub(crate) async fn put_tombstone(&self, snapshot: SnapshotId) -> Result<(), StoreError> {
        self.put(&tombstone_path(snapshot), PutPayload::from_static(CONTENT)).await
    }

    /// True if a snapshot's manifest or tombstone is there, so that it needs no root to be published.
    pub(crate) async fn is_settled(&self, snapshot: SnapshotId) -> Result<bool, StoreError> {
        match self.see_manifest(snapshot, None).await {
            Ok(()) => Ok(true),
            Err(StoreError::NotFound(_)) => self.has_tombstone(snapshot).await,
            Err(error) => Err(error),
        }
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

/// The snapshot whose tombstone has this name.
pub(crate) fn snapshot_of_tombstone(name: &str) -> Option<SnapshotId> {
    let snapshot = name.strip_prefix(TOMBSTONES)?.strip_prefix('/')?.parse().ok()?;
    (tombstone_path(snapshot).as_ref() == name).then_some(snapshot)
}

fn tombstone_path(snapshot: SnapshotId) -> ObjectPath {
    ObjectPath::from(format!("{TOMBSTONES}/{snapshot}"))
}
