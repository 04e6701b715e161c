//! A manifest in this node's catalog: with the places in the store of those of its layers whose place is known.
//!
//! Layout: magic `RKML`, then as a publication, but for a byte 0 or 1 before each layer's place, and no place after 0;
//! with an edition 0 where none is known, and with a byte 0 instead of a tag.

use super::codec::{End, read_manifest, read_stored, with_checksum, write_body, write_stored};
use super::{Edition, Manifest, Publication, StoredLayer};
use crate::limits::MANIFEST_BYTES_MAX;
use crate::tag::{self, TaggedError};
use crate::wire::{Reader, WireError, Writer};

const MAGIC: &[u8] = b"RKML";

/// A manifest whose layers are on this node or in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalManifest {
    edition: Option<Edition>,
    manifest: Manifest,
    stored: Vec<Option<StoredLayer>>,
}

impl LocalManifest {
    /// `manifest` with the edition of it that is known to be in the store, and where its layers are stored, in its order.
    #[must_use]
    pub fn new(edition: Option<Edition>, manifest: Manifest, stored: Vec<Option<StoredLayer>>) -> Self {
        assert_eq!(manifest.layers().len(), stored.len(), "something is known of each layer");
        let possible = stored.iter().flatten().all(StoredLayer::is_possible);
        assert!(possible, "a stored layer has the length of its parts");
        Self { edition, manifest, stored }
    }

    /// The edition that is known to be in the store, or was perhaps put there.
    #[must_use]
    pub const fn edition(&self) -> Option<Edition> {
        self.edition
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
        let body = write_body(&self.manifest, self.edition, &self.stored, write_place);
        let mut writer = with_checksum(MAGIC, 3, &body.into_bytes());
        writer.u8(tag::NONE);
        assert!(writer.len() <= MANIFEST_BYTES_MAX, "a manifest within its limits is never too long");
        writer.into_bytes()
    }

    /// Reads a manifest of any version; of the newest, refuses all that [`LocalManifest::encode`] does not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, TaggedError> {
        let read = read_manifest(MAGIC, bytes, End::Untagged, read_place)?;
        Ok(Self::new(read.edition, read.manifest, read.places))
    }
}

impl From<&Publication> for LocalManifest {
    fn from(publication: &Publication) -> Self {
        let stored = publication.stored().iter().cloned().map(Some).collect();
        Self::new(Some(publication.edition()), publication.manifest().clone(), stored)
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
