//! The snapshots that a catalog has records of, read from it.

use std::collections::{HashMap, HashSet};

use crate::catalog::{Catalog, CatalogError, Kind};
use crate::identity::{LayerId, SnapshotId};
use crate::lifecycle::SnapshotState;
use crate::manifest::{LocalManifest, StoredLayer};
use crate::snapshot_record::{CapturedFacts, SealFacts, SnapshotRecord};

/// All records of snapshots in a catalog.
#[derive(Default)]
pub(crate) struct Recorded {
    pub(crate) captured: Vec<(SnapshotId, CapturedFacts)>,
    pub(crate) named: Vec<(LocalManifest, SealFacts, SnapshotState)>,
    /// Records that cannot be read, each with the reason.
    pub(crate) unreadable: Vec<(SnapshotId, String)>,
    pub(crate) deletions: HashSet<SnapshotId>,
    /// Places of layers in the store, from the records of all snapshots.
    pub(crate) stored: HashMap<LayerId, StoredLayer>,
}

impl Recorded {
    /// Reads all records; a record that cannot be read is noted as unreadable, and is not an error.
    pub(crate) fn read(catalog: &Catalog) -> Result<Self, CatalogError> {
        let mut found = Self::default();
        for (key, _) in catalog.all(Kind::Deletion)? {
            found.deletions.extend(id_of(&key));
        }
        for (key, value) in catalog.all(Kind::Snapshot)? {
            let Some(id) = id_of(&key) else { continue };
            match SnapshotRecord::decode(&value) {
                Ok(SnapshotRecord::Captured(facts)) => found.captured.push((id, facts)),
                Ok(SnapshotRecord::Sealed(facts)) => {
                    found.add_named(catalog, id, facts, SnapshotState::Sealed)?
                }
                Ok(SnapshotRecord::Published(facts)) => {
                    found.add_named(catalog, id, facts, SnapshotState::Published)?;
                }
                Err(error) => found.unreadable.push((id, format!("its record cannot be read: {error}"))),
            }
        }
        Ok(found)
    }

    fn add_named(
        &mut self,
        catalog: &Catalog,
        id: SnapshotId,
        facts: SealFacts,
        state: SnapshotState,
    ) -> Result<(), CatalogError> {
        let Some(bytes) = catalog.get(Kind::Manifest, id.as_bytes())? else {
            self.unreadable.push((id, "its manifest is not in the catalog".to_owned()));
            return Ok(());
        };
        match LocalManifest::decode(&bytes) {
            Ok(local) => {
                let known = local.manifest().layers().iter().zip(local.stored());
                self.stored.extend(known.filter_map(|(name, stored)| Some((name.id, stored.clone()?))));
                self.named.push((local, facts, state));
            }
            Err(error) => self.unreadable.push((id, format!("its manifest cannot be read: {error}"))),
        }
        Ok(())
    }
}

/// The newest snapshot that a catalog calls published, and that was not deleted.
pub fn newest_published(catalog: &Catalog) -> Result<Option<SnapshotId>, CatalogError> {
    let mut newest = None;
    for (key, value) in catalog.all(Kind::Snapshot)? {
        let is_published = matches!(SnapshotRecord::decode(&value), Ok(SnapshotRecord::Published(_)));
        if is_published && catalog.get(Kind::Deletion, &key)?.is_none() {
            newest = newest.max(id_of(&key));
        }
    }
    Ok(newest)
}

/// The id in a key of the catalog.
fn id_of(key: &[u8]) -> Option<SnapshotId> {
    let id = key.try_into().ok().map(SnapshotId::from_bytes);
    if id.is_none() {
        tracing::error!(key = %key.escape_ascii(), "a record of the catalog is of no snapshot");
    }
    id
}
