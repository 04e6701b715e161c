//! Opens a published snapshot by its id on a node that may have nothing of it yet.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;

use crate::attempt::FetchError;
use crate::budget::BudgetError;
use crate::cache::{Cache, OpenStoredError};
use crate::catalog::CatalogError;
use crate::hooks::{Hooks, NoHooks};
use crate::identity::{DomainName, SnapshotId};
use crate::key_ring::NoKeyOfDomain;
use crate::layer::Layer;
use crate::manifest::{LocalManifest, Publication, VolumeManifest};
use crate::named::Named;
use crate::object_tables;
use crate::peer::PeerError;
use crate::records::Records;
use crate::snapshot::{Snapshot, SnapshotParts, Volume};
use crate::snapshot_record::SealFacts;
use crate::sources::{Class, SourceError, Sources};
use crate::store_manifests::StoredManifestError;
use crate::sync::{Condvar, Mutex, lock};
use crate::tombstones::Deletion;
use crate::view::LiveView;

/// Reason that a published snapshot cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The manifest could not be had; `NotFound` means that the snapshot was never published, or deleted.
    #[error("manifest of snapshot {snapshot}: {source}")]
    Store {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The error of the read.
        source: SourceError,
    },
    /// The manifest in the store is not used.
    #[error("the manifest of snapshot {snapshot} in the store: {source}")]
    Manifest {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The fault in it.
        source: StoredManifestError,
    },
    /// The manifest has a table of an object that is not its layer's.
    #[error("the manifest of snapshot {snapshot} in the store: {source}")]
    Table {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The fault in the table.
        source: FetchError,
    },
    /// The manifest is of a snapshot without any volume, which nothing can run from.
    #[error("snapshot {snapshot} has no memory")]
    NoMemory {
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// The manifest names a layer of a domain that is not the snapshot's.
    #[error("snapshot {snapshot} names a layer of domain {of_layer}, which is neither {domain} nor shared")]
    Domain {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The snapshot's domain.
        domain: DomainName,
        /// The layer's domain.
        of_layer: DomainName,
    },
    /// It was deleted, here or by another node.
    #[error("snapshot {snapshot} was deleted{by}")]
    Deleted {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The node that did so, and the time, as far as they are known.
        by: Deletion,
    },
    /// Another node that was named for it gave no answer that can be used, and the store does not have it.
    #[error("snapshot {snapshot}: {source}")]
    Peer {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The node's error.
        source: PeerError,
    },
    /// The store does not have it, and its origin record there cannot be used.
    #[error("snapshot {snapshot} is not in the store, and its origin record there is not used: {reason}")]
    Origin {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The fault.
        reason: String,
    },
    /// The system gave no memory for them.
    #[error("memory for the pages of snapshot {snapshot}: {source}")]
    NoMemoryFile {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The system's error.
        source: io::Error,
    },
    /// The node has no key of its domain.
    #[error("snapshot {snapshot}: {source}")]
    NoKey {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The missing key.
        source: NoKeyOfDomain,
    },
    /// There is no RAM for the pages that come from another node.
    #[error("snapshot {snapshot}: {source}")]
    NoRoom {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The budget's error.
        source: BudgetError,
    },
    /// Its pages are nowhere.
    #[error("snapshot {snapshot} is lost: {reason}")]
    Lost {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The reason.
        reason: String,
    },
    /// It could not be recorded that it was opened.
    #[error("recording snapshot {snapshot}: {source}")]
    Catalog {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The catalog's error.
        source: CatalogError,
    },
    /// A layer has no key on this node, or the local disk failed.
    #[error("snapshot {snapshot}: {source}")]
    Cache {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The layer's error.
        source: OpenStoredError,
    },
}

/// The snapshots being opened now: one call at a time each, so that none opens a snapshot that another call has opened,
/// and perhaps deleted, meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Openings {
    under_way: Mutex<HashSet<SnapshotId>>,
    ended: Condvar,
}

/// The right to open a snapshot, until it is dropped.
#[derive(Debug)]
pub(crate) struct Opening<'a> {
    openings: &'a Openings,
    snapshot: SnapshotId,
}

impl Openings {
    /// Waits until no other call opens the snapshot; `waiting` is called first if there is one.
    pub(crate) fn begin(&self, snapshot: SnapshotId, waiting: impl FnOnce()) -> Opening<'_> {
        let mut waiting = Some(waiting);
        let mut under_way = lock(&self.under_way);
        while !under_way.insert(snapshot) {
            if let Some(waiting) = waiting.take() {
                drop(under_way);
                waiting();
                under_way = lock(&self.under_way);
            } else {
                under_way = self.ended.wait(under_way).expect("no thread panics while it holds a lock");
            }
        }
        Opening { openings: self, snapshot }
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        lock(&self.openings.under_way).remove(&self.snapshot);
        self.openings.ended.notify_all();
    }
}

/// Opens a snapshot on a node without a catalog: [`open`] for callers that have no engine.
pub async fn open_unrecorded(
    snapshot: SnapshotId,
    sources: &Sources,
    cache: &Cache,
) -> Result<Snapshot, OpenError> {
    open(snapshot, sources, cache, (None, &NoHooks)).await
}

/// Reads the manifest and makes a snapshot of it; pages come when they are asked for.
pub(crate) async fn open(
    snapshot: SnapshotId,
    sources: &Sources,
    cache: &Cache,
    (records, hooks): (Option<&Records>, &dyn Hooks),
) -> Result<Snapshot, OpenError> {
    let unrecorded = |source| OpenError::Catalog { snapshot, source };
    if let Some(records) = records
        && records.is_deleted(snapshot).map_err(unrecorded)?
    {
        return Err(OpenError::Deleted { snapshot, by: Deletion::default() });
    }
    let found = find(snapshot, sources, cache, records).await?;
    hooks.before_opened(snapshot);
    if let Some(records) = records {
        records.opened(found.snapshot.domain(), &found.manifest).map_err(unrecorded)?;
    }
    Ok(found.snapshot)
}

/// A snapshot that was found in the store, and is not recorded yet.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) snapshot: Snapshot,
    pub(crate) manifest: LocalManifest,
}

/// Reads the manifest and makes a snapshot of it, which is recorded nowhere.
pub(crate) async fn find(
    snapshot: SnapshotId,
    sources: &Sources,
    cache: &Cache,
    records: Option<&Records>,
) -> Result<Found, OpenError> {
    let unread = |source| OpenError::Store { snapshot, source };
    // All at once: a guest waits. Nobody waits for the working set here.
    let of = sources.clone();
    let search = tokio::spawn(async move { of.newest_working_set(snapshot).await.ok().flatten() });
    let search = AbortOnDropHandle::new(search);
    let (read, deletion) = tokio::join!(sources.manifest(snapshot, Class::Fault), sources.deletion(snapshot));
    if let Some(by) = deletion.map_err(unread)? {
        return Err(OpenError::Deleted { snapshot, by });
    }
    let stored = read.map_err(unread)?;
    if let Some(withdrawal) = stored.withdrawn() {
        let by = sources.withdrawn_by(snapshot, withdrawal).await.map_err(unread)?;
        return Err(OpenError::Deleted { snapshot, by });
    }
    let (publication, domain) = stored
        .publication(snapshot, None, cache.keys())
        .map_err(|source| OpenError::Manifest { snapshot, source })?;
    let layers = handles_of(&publication, &domain, cache)?;
    let named = Named::new(publication.manifest().clone(), layers);
    let opened = Snapshot::named(parts_of(&named, domain, records), named, true, SealFacts::default());
    opened.working_set().searching(search);
    opened.editions().note(publication.edition(), publication.stored());
    Ok(Found { snapshot: opened, manifest: LocalManifest::from(&publication) })
}

/// Handles of the layers of a snapshot of this domain that something can run from, with the tables that the manifest has.
pub(crate) fn handles_of(
    publication: &Publication,
    domain: &DomainName,
    cache: &Cache,
) -> Result<Vec<Arc<Layer>>, OpenError> {
    let manifest = publication.manifest();
    let snapshot = manifest.snapshot();
    if manifest.volumes().is_empty() {
        return Err(OpenError::NoMemory { snapshot });
    }
    let shared = DomainName::shared();
    let mut layers: Vec<Arc<Layer>> = Vec::with_capacity(manifest.layers().len());
    for (name, stored) in manifest.layers().iter().zip(publication.stored()) {
        let of_layer = name.domain.name();
        if of_layer != domain && *of_layer != shared {
            let (domain, of_layer) = (domain.clone(), of_layer.clone());
            return Err(OpenError::Domain { snapshot, domain, of_layer });
        }
        let layer =
            cache.open_stored(name, stored).map_err(|source| OpenError::Cache { snapshot, source })?;
        layers.push(layer);
    }
    object_tables::take(publication, &layers).map_err(|source| OpenError::Table { snapshot, source })?;
    Ok(layers)
}

/// A snapshot that is known, unless it is lost.
pub(crate) fn known_and_there(known: Arc<Snapshot>) -> Result<Arc<Snapshot>, OpenError> {
    if known.is_lost() {
        let reason = known.status().failure.unwrap_or_default();
        return Err(OpenError::Lost { snapshot: known.id(), reason });
    }
    Ok(known)
}

/// Parts of a snapshot that has names.
pub(crate) fn parts_of(named: &Named, domain: DomainName, records: Option<&Records>) -> SnapshotParts {
    let manifest = named.manifest();
    let volume = |volume: &VolumeManifest| Volume {
        name: volume.name.clone(),
        page_kind: volume.page_kind,
        view: Arc::new(LiveView::new(named.view(volume))),
    };
    SnapshotParts {
        id: manifest.snapshot(),
        parent_id: manifest.parent(),
        domain,
        generation: manifest.generation(),
        created_unix_ms: manifest.created_unix_ms(),
        volumes: manifest.volumes().iter().map(volume).collect(),
        blobs: manifest.blobs().clone(),
        records: records.cloned(),
    }
}
