//! A published snapshot, opened by its name on a node that may have nothing of it yet.

use std::io;
use std::sync::Arc;

use crate::cache::Cache;
use crate::identity::{Domain, SnapshotId};
use crate::layer::Layer;
use crate::manifest::Publication;
use crate::snapshot::{Snapshot, SnapshotParts, Volume};
use crate::store::{Store, StoreError};
use crate::view::{LiveView, View};
use crate::wire::WireError;

/// Why a published snapshot cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The manifest could not be had; `NotFound` means that the snapshot was never published, or deleted.
    #[error("manifest of snapshot {snapshot}: {source}")]
    Store {
        /// The snapshot.
        snapshot: SnapshotId,
        /// What the store said.
        source: StoreError,
    },
    /// The manifest is damaged or not one.
    #[error("manifest of snapshot {snapshot} cannot be read: {source}")]
    Manifest {
        /// The snapshot.
        snapshot: SnapshotId,
        /// What is wrong with it.
        source: WireError,
    },
    /// The object under this name is another snapshot's manifest.
    #[error("the manifest stored for snapshot {snapshot} is that of {found}")]
    OtherSnapshot {
        /// The snapshot asked for.
        snapshot: SnapshotId,
        /// The one found.
        found: SnapshotId,
    },
    /// The manifest is of a snapshot without any volume, which nothing can run from.
    #[error("snapshot {snapshot} has no memory")]
    NoMemory {
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// The manifest names a layer of a domain that this engine may not read.
    #[error("snapshot {snapshot} names a layer of domain {domain:?}, which is neither {own:?} nor shared")]
    Domain {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The layer's domain.
        domain: String,
        /// This engine's.
        own: String,
    },
    /// The local disk failed.
    #[error("local file for snapshot {snapshot}: {source}")]
    Cache {
        /// The snapshot.
        snapshot: SnapshotId,
        /// What the system said.
        source: io::Error,
    },
}

/// Reads the manifest and makes a snapshot of it; pages come when they are asked for.
pub(crate) async fn open(
    snapshot: SnapshotId,
    store: &Store,
    cache: &Cache,
    own: &Domain,
) -> Result<Snapshot, OpenError> {
    let bytes = store.get_manifest(snapshot).await.map_err(|source| OpenError::Store { snapshot, source })?;
    let publication =
        Publication::decode(&bytes).map_err(|source| OpenError::Manifest { snapshot, source })?;
    let manifest = publication.manifest();
    if manifest.snapshot() != snapshot {
        return Err(OpenError::OtherSnapshot { snapshot, found: manifest.snapshot() });
    }
    if manifest.volumes().is_empty() {
        return Err(OpenError::NoMemory { snapshot });
    }
    let shared = Domain::shared();
    let mut layers: Vec<Arc<Layer>> = Vec::with_capacity(manifest.layers().len());
    for (name, stored) in manifest.layers().iter().zip(publication.stored()) {
        if name.domain != *own && name.domain != shared {
            let (domain, own) = (name.domain.name().to_owned(), own.name().to_owned());
            return Err(OpenError::Domain { snapshot, domain, own });
        }
        let layer =
            cache.open_stored(name, stored).map_err(|source| OpenError::Cache { snapshot, source })?;
        layers.push(layer);
    }
    let layers: Arc<[Arc<Layer>]> = layers.into();
    let volumes = manifest
        .volumes()
        .iter()
        .map(|volume| Volume {
            name: volume.name.clone(),
            page_kind: volume.page_kind,
            view: Arc::new(LiveView::new(View::flat(volume.map.clone(), Arc::clone(&layers)))),
        })
        .collect();
    let parts = SnapshotParts {
        id: snapshot,
        parent_id: manifest.parent(),
        generation: manifest.generation(),
        created_unix_ms: manifest.created_unix_ms(),
        volumes,
        blobs: manifest.blobs().clone(),
    };
    Ok(Snapshot::published(parts, Arc::new(manifest.clone())))
}
