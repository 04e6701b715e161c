//! A manifest in this node's catalog: with the places in the store of those of its layers whose place is known.
//!
//! Layout: magic `RKML`, then as a publication, but for a byte 0 or 1 before each layer's place, and no place after 0.

use super::codec::{checked_body, read_manifest, read_stored, with_checksum, write_manifest, write_stored};
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
        let mut body = Writer::new();
        write_manifest(&mut body, &self.manifest);
        for stored in &self.stored {
            body.u8(stored.is_some().into());
            if let Some(stored) = stored {
                write_stored(&mut body, stored);
            }
        }
        with_checksum(MAGIC, &body.into_bytes())
    }

    /// Reads what [`LocalManifest::encode`] wrote, and refuses all else.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = checked_body(MAGIC, bytes)?;
        let manifest = read_manifest(&mut reader)?;
        let stored = manifest.layers().iter().map(|_| read_place(&mut reader)).collect::<Result<_, _>>()?;
        reader.finish()?;
        Ok(Self::new(manifest, stored))
    }
}

impl From<&Publication> for LocalManifest {
    fn from(publication: &Publication) -> Self {
        let stored = publication.stored().iter().cloned().map(Some).collect();
        Self::new(publication.manifest().clone(), stored)
    }
}

fn read_place(reader: &mut Reader<'_>) -> Result<Option<StoredLayer>, WireError> {
    match reader.u8("layer place")? {
        0 => Ok(None),
        1 => read_stored(reader).map(Some),
        _ => Err(reader.invalid("layer place", "it is neither known nor unknown")),
    }
}
