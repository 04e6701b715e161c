//! Records of a snapshot's life in the catalog, and the moment at which the keeper lets go of its memory.
//!
//! One thread at a time writes a snapshot's record: the pause, then its life, then the thread that drops its last
//! handle. That it was deleted stands under a key of its own, so the owner's word and the life's steps never overwrite
//! each other.

use std::io;
use std::sync::Arc;

use crate::cache::Cache;
use crate::capture::Capture;
use crate::captured_facts::CapturedFacts;
use crate::catalog::{Catalog, CatalogError, Change, Kind, Unsettled, WriteError};
use crate::identity::{DomainName, SnapshotId, VolumeName};
use crate::keep::{Keeper, KeptVolume};
use crate::manifest::LocalManifest;
use crate::reaper::ReaperHandle;
use crate::snapshot_record::{SealFacts, SnapshotRecord, SnapshotStage};
use crate::withdrawal::Withdrawal;
use crate::working_set::WorkingSet;

/// Writes snapshots' records into the catalog. Clones are the same place.
#[derive(Debug, Clone)]
pub(crate) struct Records(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    catalog: Catalog,
    keeper: Arc<dyn Keeper>,
    /// While it keeps files, records are kept too.
    cache: Arc<Cache>,
    reaper: ReaperHandle,
}

impl Records {
    pub(crate) fn new(
        catalog: Catalog,
        keeper: Arc<dyn Keeper>,
        cache: Arc<Cache>,
        reaper: ReaperHandle,
    ) -> Self {
        Self(Arc::new(Shared { catalog, keeper, cache, reaper }))
    }

    pub(crate) fn catalog(&self) -> &Catalog {
        &self.0.catalog
    }

    pub(crate) fn keeper(&self) -> &dyn Keeper {
        &*self.0.keeper
    }

    /// Hands the captured memory of volumes of these names to the keeper.
    pub(crate) fn keep<'a>(
        &self,
        id: SnapshotId,
        volumes: impl IntoIterator<Item = &'a VolumeName>,
        captures: &[Arc<Capture>],
    ) -> io::Result<()> {
        let kept =
            volumes.into_iter().zip(captures).map(|(name, capture)| KeptVolume::of(name.clone(), capture));
        self.0.keeper.keep(id, &kept.collect::<io::Result<Vec<_>>>()?)
    }

    /// Records a pause whose memory the keeper has, and what its owner says of the same instant: from here on it is
    /// acknowledged.
    pub(crate) fn captured(
        &self,
        id: SnapshotId,
        domain: &DomainName,
        facts: CapturedFacts,
        mut alongside: Vec<Change>,
    ) -> Result<(), WriteError> {
        alongside.push(put_record(id, domain, SnapshotStage::Captured(facts)));
        self.0.catalog.write(&alongside)
    }

    /// True if anything is recorded of a snapshot: then its id is used.
    pub(crate) fn knows(&self, id: SnapshotId) -> Result<bool, CatalogError> {
        self.0.catalog.has(&OF_A_SNAPSHOT, id.as_bytes())
    }

    /// Leaves word at the keeper that a pause was taken back: a start that finds its record removes it.
    fn take_back(&self, id: SnapshotId) {
        if let Err(error) = self.0.keeper.take_back(id) {
            tracing::error!(snapshot = %id, %error, "a pause that failed may be found lost at the next start");
        }
    }

    /// True if the keeper has word that a pause was taken back: every other one has volumes.
    pub(crate) fn is_taken_back(kept: &[KeptVolume]) -> bool {
        kept.is_empty()
    }

    /// Removes what is recorded of a snapshot: one that was never acknowledged, or that this node need not know.
    pub(crate) fn remove(&self, id: SnapshotId) -> Result<(), CatalogError> {
        self.write_with_last_room(&OF_A_SNAPSHOT.map(|kind| remove(kind, id)))
    }

    fn write_with_last_room(&self, changes: &[Change]) -> Result<(), CatalogError> {
        self.0.catalog.write_with_last_room(changes).map_err(WriteError::either_way)
    }

    /// Makes changes that are right whether they are found made after a crash or not: a life does them again, and what a
    /// deletion leaves is deleted again.
    fn write(&self, changes: &[Change]) -> Result<(), CatalogError> {
        self.0.catalog.write(changes).map_err(WriteError::either_way)
    }

    /// Records that a snapshot's layers are on the disk, with what names them.
    pub(crate) fn sealed(
        &self,
        domain: &DomainName,
        facts: SealFacts,
        manifest: &LocalManifest,
    ) -> Result<(), CatalogError> {
        self.write(&with_manifest(domain, SnapshotStage::Sealed(facts), manifest))
    }

    /// Records where a snapshot's layers are stored, before its manifest is: so that it is put with the same bytes
    /// however often the node is started anew.
    pub(crate) fn uploaded(&self, id: SnapshotId, manifest: &LocalManifest) -> Result<(), CatalogError> {
        self.write(&[put(Kind::Manifest, id, manifest.encode())])
    }

    /// Records that a snapshot's manifest is in the store, and what has to be remembered with it.
    pub(crate) fn published(
        &self,
        domain: &DomainName,
        facts: SealFacts,
        manifest: &LocalManifest,
        alongside: Option<Change>,
    ) -> Result<(), CatalogError> {
        let mut changes = with_manifest(domain, SnapshotStage::Published(facts), manifest).to_vec();
        changes.extend(alongside);
        self.write(&changes)
    }

    /// Records a snapshot that was found in the store.
    pub(crate) fn opened(&self, domain: &DomainName, manifest: &LocalManifest) -> Result<(), CatalogError> {
        self.write(&with_manifest(domain, SnapshotStage::Published(SealFacts::default()), manifest))
    }

    /// Records a snapshot whose pages are read from another node.
    pub(crate) fn remote(
        &self,
        id: SnapshotId,
        domain: &DomainName,
        node: &str,
        facts: CapturedFacts,
    ) -> Result<(), CatalogError> {
        self.write(&[put_record(id, domain, SnapshotStage::Remote { node: node.to_owned(), facts })])
    }

    /// Records that its node sent other bytes than it has.
    pub(crate) fn refuted(
        &self,
        id: SnapshotId,
        domain: &DomainName,
        reason: String,
        facts: CapturedFacts,
    ) -> Result<(), CatalogError> {
        self.write(&[put_record(id, domain, SnapshotStage::Refuted { reason, facts })])
    }

    /// Records a snapshot's working set, and whether the store has it.
    pub(crate) fn keep_working_set(
        &self,
        id: SnapshotId,
        set: &WorkingSet,
        stored: bool,
    ) -> Result<(), CatalogError> {
        let value = [vec![u8::from(stored)], set.encode(self.0.cache.keys().own())].concat();
        self.write(&[put(Kind::WorkingSet, id, value)])
    }

    /// A snapshot's working set, and whether the store has it; none if what is recorded is not one of it.
    pub(crate) fn working_set(&self, id: SnapshotId) -> Result<Option<(WorkingSet, bool)>, CatalogError> {
        let value = self.0.catalog.get(Kind::WorkingSet, id.as_bytes())?;
        let read = value.as_deref().and_then(<[u8]>::split_first).and_then(|(stored, encoded)| {
            let set =
                WorkingSet::decode(encoded, self.0.cache.keys()).ok().filter(|set| set.snapshot() == id)?;
            Some((set, *stored != 0))
        });
        Ok(read)
    }

    /// Records that the owner deleted a snapshot, and that this can be undone if there is a withdrawal.
    pub(crate) fn deleted(&self, id: SnapshotId, withdrawal: Option<Withdrawal>) -> Result<(), CatalogError> {
        let value = withdrawal.map(|withdrawal| withdrawal.to_string().into_bytes());
        self.write_with_last_room(&[put(Kind::Deletion, id, value.unwrap_or_default())])
    }

    /// True if a snapshot was deleted and is not gone yet.
    pub(crate) fn is_deleted(&self, id: SnapshotId) -> Result<bool, CatalogError> {
        Ok(self.0.catalog.get(Kind::Deletion, id.as_bytes())?.is_some())
    }

    /// Lets the keeper forget a snapshot's memory. If that fails, the next start does it.
    pub(crate) fn forget(&self, id: SnapshotId) {
        if let Err(error) = self.0.keeper.forget(id) {
            tracing::warn!(snapshot = %id, %error, "the keeper still holds memory that nobody needs");
        }
    }

    /// Removes all that is recorded of a snapshot whose last handle goes, on the reaper's thread.
    pub(crate) fn gone(&self, id: SnapshotId) {
        self.0.reaper.discard(Removal { records: self.clone(), id });
    }
}

/// The removal of a snapshot's records, done when it is dropped.
struct Removal {
    records: Records,
    id: SnapshotId,
}

impl Drop for Removal {
    fn drop(&mut self) {
        let Self { records, id } = self;
        // The node ends, and with it every handle: what is needed is decided at its next start.
        if records.0.cache.keeps_files() {
            return;
        }
        records.forget(*id);
        if let Err(error) = records.remove(*id) {
            tracing::warn!(snapshot = %id, %error, "the record of a deleted snapshot stays until the next start");
        }
    }
}

/// A pause that may be in the catalog although it was not acknowledged, with all that was to be recorded in the same
/// instant.
///
/// While it lives, a crash leaves a start that is right for both outcomes: the guest stands, and the keeper has its
/// memory. Dropped, the pause is taken back, and the guest may go on.
#[derive(Debug)]
#[must_use = "dropped, the pause is taken back: what else was recorded with it has to be settled before"]
pub struct UnsettledPause {
    records: Records,
    snapshot: SnapshotId,
    unsettled: Unsettled,
}

impl UnsettledPause {
    pub(crate) fn new(records: Records, snapshot: SnapshotId, unsettled: Unsettled) -> Self {
        Self { records, snapshot, unsettled }
    }
}

impl std::fmt::Display for UnsettledPause {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.unsettled.fmt(out)
    }
}

impl Drop for UnsettledPause {
    fn drop(&mut self) {
        match self.unsettled.settle() {
            Ok(()) => self.records.forget(self.snapshot),
            Err(_) => self.records.take_back(self.snapshot),
        }
    }
}

/// The tables that have something of a snapshot, under its id.
const OF_A_SNAPSHOT: [Kind; 4] = [Kind::Snapshot, Kind::Manifest, Kind::WorkingSet, Kind::Deletion];

/// A record of a snapshot that has a manifest is only ever written with it: each such write is enough by itself, also if
/// the disk forgot an earlier one that it had reported as made.
fn with_manifest(domain: &DomainName, stage: SnapshotStage, manifest: &LocalManifest) -> [Change; 2] {
    let id = manifest.manifest().snapshot();
    [put_record(id, domain, stage), put(Kind::Manifest, id, manifest.encode())]
}

fn put_record(id: SnapshotId, domain: &DomainName, stage: SnapshotStage) -> Change {
    put(Kind::Snapshot, id, SnapshotRecord { domain: Some(domain.clone()), stage }.encode())
}

fn put(kind: Kind, id: SnapshotId, value: Vec<u8>) -> Change {
    Change::Put { kind, key: id.as_bytes().to_vec(), value }
}

fn remove(kind: Kind, id: SnapshotId) -> Change {
    Change::Remove { kind, key: id.as_bytes().to_vec() }
}
