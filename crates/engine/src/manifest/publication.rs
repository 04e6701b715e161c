//! A manifest with its layers' places in the store: the object whose presence says that a snapshot is published.

use std::fmt;

use uuid::Uuid;

use super::Manifest;
use crate::identity::SnapshotId;
use crate::limits::LAYER_TABLE_BYTES_MAX;

/// The number of a publication among those of its snapshot: a later one replaces those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edition(u64);

impl Edition {
    /// The first one; also that of each manifest that does not say its edition.
    pub const FIRST: Self = Self(1);

    /// The edition of this number; there is none of number 0.
    #[must_use]
    pub const fn of(number: u64) -> Option<Self> {
        if number == 0 { None } else { Some(Self(number)) }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The one after it.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("fewer editions than that are ever put"))
    }
}

/// A manifest whose every layer is in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    edition: Edition,
    manifest: Manifest,
    stored: Vec<StoredLayer>,
}

/// Place and parts of a layer's object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredLayer {
    /// The name of the one upload that wrote it.
    pub object: ObjectName,
    /// The BLAKE3 hash of its table.
    pub table_digest: [u8; 32],
    /// The length of its table, which ends it.
    pub table_bytes: u64,
    /// Its whole length.
    pub object_bytes: u64,
}

/// The name of one upload of one layer: no two uploads share one, so no object is written twice under one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// The snapshot that uploaded it.
    pub publisher: SnapshotId,
    /// The upload that made it.
    pub upload: Uuid,
}

impl ObjectName {
    /// The name of a new upload by `publisher`.
    #[must_use]
    pub fn new(publisher: SnapshotId) -> Self {
        Self { publisher, upload: Uuid::now_v7() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.publisher, self.upload)
    }
}

impl Publication {
    /// An edition of `manifest`, whose layers are stored so, in its order.
    #[must_use]
    pub fn new(edition: Edition, manifest: Manifest, stored: Vec<StoredLayer>) -> Self {
        assert_eq!(manifest.layers().len(), stored.len(), "each layer of a published manifest is stored");
        assert!(stored.iter().all(StoredLayer::is_possible), "a stored layer has the length of its parts");
        Self { edition, manifest, stored }
    }

    /// Its edition.
    #[must_use]
    pub const fn edition(&self) -> Edition {
        self.edition
    }

    /// The manifest.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Places of its layers in the store, in its order.
    #[must_use]
    pub fn stored(&self) -> &[StoredLayer] {
        &self.stored
    }

    /// The manifest, and where its layers are stored.
    #[must_use]
    pub fn into_parts(self) -> (Manifest, Vec<StoredLayer>) {
        (self.manifest, self.stored)
    }
}

impl StoredLayer {
    /// True if an object can have such a length with such a table at its end.
    pub(super) const fn is_possible(&self) -> bool {
        self.table_bytes <= self.object_bytes && self.table_bytes <= LAYER_TABLE_BYTES_MAX
    }
}
