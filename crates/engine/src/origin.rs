//! The origin of a snapshot that is not in the store yet: the node that has it, and the record in the store that says so.
//!
//! Object `origins/<snapshot>`, as JSON. It is advice: nothing is deleted, kept or trusted because of it. Its node puts it
//! after a pause and takes it away once the snapshot is published or deleted. One that is left goes with a collection.

use object_store::ObjectMeta;
use object_store::path::Path as ObjectPath;
use serde::{Deserialize, Serialize};

use crate::identity::SnapshotId;
use crate::limits;
use crate::manifest_memory::ManifestMemory;
use crate::store::{Store, StoreError};
use crate::wire::{UnknownVersion, Versioned};

/// A node, as it calls itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Its name.
    pub node: String,
    /// Host and port at which other nodes reach it.
    pub address: String,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    snapshot: String,
    node: String,
    address: String,
}

/// The version of a record that is written, and the newest one that is read.
const VERSION: u32 = 1;

/// Place of all origin records.
const ORIGINS: &str = "origins";

impl Origin {
    /// The stored form of this origin of `snapshot`.
    #[must_use]
    pub fn encode(&self, snapshot: SnapshotId) -> Vec<u8> {
        let Self { node, address } = self.clone();
        let stored = Stored { version: VERSION, snapshot: snapshot.to_string(), node, address };
        serde_json::to_vec(&stored).expect("it is plain data")
    }

    /// The origin of `snapshot` that this is the stored form of. The error is for people.
    pub fn decode(snapshot: SnapshotId, bytes: &[u8]) -> Result<Self, String> {
        let not_understood = |error: serde_json::Error| format!("it cannot be understood: {error}");
        let Versioned { version } = serde_json::from_slice(bytes).map_err(not_understood)?;
        UnknownVersion::check(version, VERSION).map_err(|unknown| unknown.to_string())?;
        let Stored { snapshot: of, node, address, version: _ } =
            serde_json::from_slice(bytes).map_err(not_understood)?;
        if of != snapshot.to_string() {
            return Err("it is the one of another snapshot".to_owned());
        }
        let is_short = |text: &str| !text.is_empty() && text.len() <= limits::NODE_BYTES_MAX;
        let is_plain = |text: &str| is_short(text) && !text.chars().any(char::is_control);
        if !is_plain(&node) || !is_plain(&address) {
            return Err("it names no node".to_owned());
        }
        Ok(Self { node, address })
    }
}

impl Store {
    /// Puts the origin record of a snapshot. Putting it again is harmless.
    pub(crate) async fn put_origin(&self, snapshot: SnapshotId, origin: &Origin) -> Result<(), StoreError> {
        self.put(&path_of(snapshot), origin.encode(snapshot).into()).await
    }

    /// Takes it away.
    pub(crate) async fn take_origin_away(&self, snapshot: SnapshotId) -> Result<(), StoreError> {
        self.delete(path_of(snapshot)).await
    }

    /// The origin of a snapshot, if it has a record.
    pub(crate) async fn origin(&self, snapshot: SnapshotId) -> Result<Option<Origin>, StoreError> {
        let path = path_of(snapshot);
        match self.get_whole(path.clone(), limits::ORIGIN_BYTES_MAX).await {
            Ok(bytes) => match Origin::decode(snapshot, &bytes) {
                Ok(origin) => Ok(Some(origin)),
                Err(reason) => Err(StoreError::NotUnderstood { path, reason }),
            },
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The records that tell nothing any more: of snapshots whose manifest is there, and those put before `since_unix_ms`.
    pub(crate) async fn old_origins(
        &self,
        memory: &ManifestMemory,
        since_unix_ms: i64,
    ) -> Result<Vec<ObjectPath>, StoreError> {
        let is_old = |object: &ObjectMeta| {
            let snapshot = snapshot_of(&object.location)?;
            let is_over = object.last_modified.timestamp_millis() < since_unix_ms || memory.has(snapshot);
            is_over.then(|| object.location.clone())
        };
        let listed = self.list_all(ORIGINS).await?;
        Ok(listed.iter().filter_map(is_old).collect())
    }
}

fn path_of(snapshot: SnapshotId) -> ObjectPath {
    ObjectPath::from(format!("{ORIGINS}/{snapshot}"))
}

/// The snapshot whose record has this name. Other objects are nobody's.
fn snapshot_of(path: &ObjectPath) -> Option<SnapshotId> {
    let snapshot = path.parts().nth(1)?.as_ref().parse().ok()?;
    (path_of(snapshot) == *path).then_some(snapshot)
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn an_origin_record_is_read_as_it_was_written_and_any_other_is_refused() {
        let snapshot = SnapshotId::from_bytes([7; 16]);
        let first = br#"{"version":1,"snapshot":"07070707-0707-0707-0707-070707070707","node":"a","address":"10.0.0.7:7420"}"#;
        let origin = Origin { node: "a".to_owned(), address: "10.0.0.7:7420".to_owned() };
        assert_eq!(origin.encode(snapshot), first);
        assert_eq!(Origin::decode(snapshot, first), Ok(origin.clone()));
        let refused = |bytes: &[u8]| Origin::decode(snapshot, bytes).expect_err("it is refused");
        assert!(refused(br#"{"version":2}"#).contains("version 2 is unknown"));
        assert!(refused(b"\xff{").contains("cannot be understood"));
        assert!(refused(&origin.encode(SnapshotId::new())).contains("another snapshot"));
        for node in [String::new(), "x".repeat(256), "a\nb".to_owned()] {
            let strange = Origin { node, ..origin.clone() };
            assert_eq!(refused(&strange.encode(snapshot)), "it names no node");
            let strange = Origin { address: strange.node, ..origin.clone() };
            assert_eq!(refused(&strange.encode(snapshot)), "it names no node");
        }
    }

    #[test]
    fn a_record_that_was_left_goes_with_a_collection_once_it_tells_nothing() {
        use std::sync::Arc;

        use object_store::ObjectStoreExt;
        use object_store::memory::InMemory;

        let objects: Arc<dyn object_store::ObjectStore> = Arc::new(InMemory::new());
        let store = Store::new(Arc::clone(&objects));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let origin = Origin { node: "a".to_owned(), address: "a:1".to_owned() };
        let (saved, unsaved) = (SnapshotId::new(), SnapshotId::new());
        let mut memory = ManifestMemory::default();
        let written = crate::manifest_memory::WrittenManifest {
            edition: crate::manifest::Edition::FIRST,
            bytes: 1,
            unix_ms: 1,
        };
        memory.remember(saved, written, &[]);
        runtime.block_on(async {
            for snapshot in [saved, unsaved] {
                store.put_origin(snapshot, &origin).await.unwrap();
            }
            let strange = ObjectPath::from("origins/strange");
            objects.put(&strange, "x".into()).await.unwrap();
            let all = |since| store.old_origins(&memory, since);
            assert_eq!(all(0).await.unwrap(), [path_of(saved)]);
            assert_eq!(
                all(i64::MAX).await.unwrap().len(),
                2,
                "both are old, and the strange one is nobody's"
            );
            store.take_origin_away(saved).await.unwrap();
            store.take_origin_away(saved).await.unwrap();
            assert_eq!(store.origin(saved).await.unwrap(), None);
            assert_eq!(store.origin(unsaved).await.unwrap(), Some(origin.clone()));
        });
    }
}
