//! A manifest in this node's catalog: with the places in the store of those of its layers whose place is known.
//!
//! Layout: magic `RKML`, then as a publication, but for a byte 0 or 1 before each layer's place, and no place after 0.

use super::codec::{read_body, read_stored, with_checksum, write_body, write_stored};
use super::{Manifest, Publication, StoredLayer};
use crate::wire::{Reader, WireError, Writer};

const MAGIC: &[u8] = b"RKML";

/// A manifest whose layers are on this node or in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalManifest {
    manifest: Manifest,
    stored: Vec<Option<StoredLayer>>,
}

impl LocalManifest {
    /// `manifest` with where its layers are stored, in its order.
    #[must_use]
    pub fn new(manifest: Manifest, stored: Vec<Option<StoredLayer>>) -> Self {
        assert_eq!(manifest.layers().len(), stored.len(), "something is known of each layer");
        let possible = stored.iter().flatten().all(StoredLayer::is_possible);
        assert!(possible, "a stored layer has the length of its parts");
        Self { manifest, stored }
    }

    /// The manifest.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Places of its layers in the store, in its order.
    #[must_use]
    pub fn stored(&self) -> &[Option<StoredLayer>] {
        &self.stored
    }

    /// The one encoding.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        with_checksum(MAGIC, &write_body(&self.manifest, &self.stored, write_place))
    }

    /// Reads a manifest of any version; of the newest, refuses all that [`LocalManifest::encode`] does not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let (manifest, stored) = read_body(MAGIC, bytes, read_place)?;
        Ok(Self::new(manifest, stored))
    }
}

impl From<&Publication> for LocalManifest {
    fn from(publication: &Publication) -> Self {
        let stored = publication.stored().iter().cloned().map(Some).collect();
        Self::new(publication.manifest().clone(), stored)
    }
}

fn write_place(writer: &mut Writer, place: &Option<StoredLayer>) {
    writer.u8(place.is_some().into());
    if let Some(stored) = place {
        write_stored(writer, stored);
    }
}

fn read_place(reader: &mut Reader<'_>) -> Result<Option<StoredLayer>, WireError> {
    match reader.u8("layer place")? {
        0 => Ok(None),
        1 => read_stored(reader).map(Some),
        _ => Err(reader.invalid("layer place", "it is neither known nor unknown")),
    }
}
