//! The reasons that publishing fails.

use crate::catalog::CatalogError;
use crate::collectable::LayerCopy;
use crate::identity::SnapshotId;
use crate::key_ring::NoKeyOfDomain;
use crate::local_file::LayerError;
use crate::stop::Stopped;
use crate::store::StoreError;

/// Reason that a snapshot was not published; the objects uploaded so far stay and are not uploaded again.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer's object is not in the store any more, and this node cannot upload it again.
    #[error(
        "{0}, and this disk does not have the whole layer to upload it again: bring the object back, or delete the snapshot"
    )]
    Gone(StoreError),
    /// A collector is about to delete a layer's object, and this node cannot upload it again.
    #[error(
        "{0} is on a collector's list, and this disk does not have the whole layer to upload it again: publishing goes on \
         when the list is gone"
    )]
    Condemned(LayerCopy),
    /// The snapshot was deleted by another node.
    #[error("snapshot {0} was deleted by another node, and is not published again: delete it here too")]
    Deleted(SnapshotId),
    /// A layer could not be read on this disk.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A frame could not be compressed.
    #[error("compressing a frame: {0}")]
    Encode(#[from] std::io::Error),
    /// Its domain has no key here.
    #[error(transparent)]
    Key(#[from] NoKeyOfDomain),
    /// The catalog could not be written.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The engine ends; the next one finds the snapshot unpublished.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}
