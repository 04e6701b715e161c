//! The snapshots that a catalog has records of, read from it.

use std::collections::HashMap;

use crate::captured_facts::CapturedFacts;
use crate::catalog::{Catalog, CatalogError, Kind};
use crate::identity::{DomainName, LayerId, SnapshotId};
use crate::lifecycle::SnapshotState;
use crate::manifest::{LocalManifest, StoredLayer};
use crate::snapshot_record::{SealFacts, SnapshotRecord, SnapshotStage};
use crate::withdrawal::Withdrawal;

/// All records of snapshots in a catalog.
#[derive(Default)]
pub(crate) struct Recorded {
    pub(crate) captured: Vec<RecordedCaptured>,
    pub(crate) named: Vec<RecordedNamed>,
    pub(crate) remote: Vec<RecordedRemote>,
    /// Those whose node sent other bytes, each with the reason.
    pub(crate) refuted: Vec<(RecordedCaptured, String)>,
    /// Records that cannot be read, each with the reason.
    pub(crate) unreadable: Vec<(SnapshotId, String)>,
    /// Deleted snapshots, each with the deletion if it can be undone.
    pub(crate) deletions: HashMap<SnapshotId, Option<Withdrawal>>,
    /// Places of layers in the store, from the records of all snapshots.
    pub(crate) stored: HashMap<LayerId, Vec<StoredLayer>>,
}

/// The record of a captured snapshot.
#[derive(Clone)]
pub(crate) struct RecordedCaptured {
    pub(crate) id: SnapshotId,
    pub(crate) domain: DomainName,
    pub(crate) facts: CapturedFacts,
}

/// The record of a snapshot that another node has; its facts are those that a captured one has.
pub(crate) struct RecordedRemote {
    pub(crate) of: RecordedCaptured,
    pub(crate) node: String,
}

/// The records of a sealed or published snapshot.
pub(crate) struct RecordedNamed {
    pub(crate) local: LocalManifest,
    pub(crate) domain: DomainName,
    pub(crate) facts: SealFacts,
    pub(crate) state: SnapshotState,
}

impl Recorded {
    /// Reads all records; a record that cannot be read is noted as unreadable, and is not an error. Snapshots whose
    /// records say no domain are of the node's `own`.
    pub(crate) fn read(catalog: &Catalog, own: &DomainName) -> Result<Self, CatalogError> {
        let mut found = Self::default();
        for (key, value) in catalog.all(Kind::Deletion)? {
            let withdrawal = std::str::from_utf8(&value).ok().and_then(|name| name.parse().ok());
            found.deletions.extend(id_of(&key).map(|id| (id, withdrawal)));
        }
        for (key, value) in catalog.all(Kind::Snapshot)? {
            let Some(id) = id_of(&key) else { continue };
            let SnapshotRecord { domain, stage } = match SnapshotRecord::decode(&value) {
                Ok(record) => record,
                Err(error) => {
                    found.unreadable.push((id, format!("its record cannot be read: {error}")));
                    continue;
                }
            };
            let domain = domain.unwrap_or_else(|| own.clone());
            match stage {
                SnapshotStage::Captured(facts) => found.captured.push(RecordedCaptured { id, domain, facts }),
                SnapshotStage::Remote { node, facts } => {
                    found.remote.push(RecordedRemote { of: RecordedCaptured { id, domain, facts }, node });
                }
                SnapshotStage::Refuted { reason, facts } => {
                    found.refuted.push((RecordedCaptured { id, domain, facts }, reason));
                }
                SnapshotStage::Sealed(facts) => {
                    let named = |local| RecordedNamed { local, domain, facts, state: SnapshotState::Sealed };
                    found.add_named(catalog, id, named)?;
                }
                SnapshotStage::Published(facts) => {
                    let named =
                        |local| RecordedNamed { local, domain, facts, state: SnapshotState::Published };
                    found.add_named(catalog, id, named)?;
                }
            }
        }
        Ok(found)
    }

    fn add_named(
        &mut self,
        catalog: &Catalog,
        id: SnapshotId,
        named: impl FnOnce(LocalManifest) -> RecordedNamed,
    ) -> Result<(), CatalogError> {
        let Some(bytes) = catalog.get(Kind::Manifest, id.as_bytes())? else {
            self.unreadable.push((id, "its manifest is not in the catalog".to_owned()));
            return Ok(());
        };
        match LocalManifest::decode(&bytes) {
            Ok(local) => {
                let known = local.manifest().layers().iter().zip(local.stored());
                for (name, place) in known {
                    self.stored.entry(name.id).or_default().extend(place.clone());
                }
                self.named.push(named(local));
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
        let stage = SnapshotRecord::decode(&value).map(|record| record.stage);
        let is_published = matches!(stage, Ok(SnapshotStage::Published(_)));
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
