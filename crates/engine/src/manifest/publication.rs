//! A manifest with its layers' places in the store: the object whose presence says that a snapshot is published.

use std::fmt;

use bytes::Bytes;
use uuid::Uuid;

use super::Manifest;
use crate::geometry::u64_of;
use crate::identity::SnapshotId;
use crate::limits::{LAYER_TABLE_BYTES_MAX, MANIFEST_TABLES_BYTES_MAX};

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
    /// Tables of the layers' objects, as far as they are in the manifest.
    tables: Vec<Option<Bytes>>,
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
    /// An edition of `manifest`, whose layers are stored so, in its order; it has no tables.
    #[must_use]
    pub fn new(edition: Edition, manifest: Manifest, stored: Vec<StoredLayer>) -> Self {
        assert_eq!(manifest.layers().len(), stored.len(), "each layer of a published manifest is stored");
        assert!(stored.iter().all(StoredLayer::is_possible), "a stored layer has the length of its parts");
        let tables = vec![None; stored.len()];
        Self { edition, manifest, stored, tables }
    }

    /// The same with tables of its layers' objects, each as its place says, in the order of the layers: a reader need not
    /// ask for those.
    #[must_use]
    pub fn with_tables(self, tables: Vec<Option<Bytes>>) -> Self {
        assert_eq!(self.stored.len(), tables.len(), "there is a table or none for each layer");
        let found =
            self.stored.iter().zip(&tables).filter_map(|(stored, table)| Some((stored, table.as_ref()?)));
        assert!(found.clone().all(|(stored, table)| stored.is_table(table)), "a table is that of its object");
        let bytes: usize = found.map(|(_, table)| table.len()).sum();
        assert!(bytes <= MANIFEST_TABLES_BYTES_MAX, "tables are within their limit");
        Self { tables, ..self }
    }

    /// Tables of the layers' objects, in their order, as far as they are in the manifest.
    #[must_use]
    pub fn tables(&self) -> &[Option<Bytes>] {
        &self.tables
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

    /// True if these are the bytes of its table.
    #[must_use]
    pub fn is_table(&self, bytes: &[u8]) -> bool {
        *blake3::hash(bytes).as_bytes() == self.table_digest && u64_of(bytes.len()) == self.table_bytes
    }
}
