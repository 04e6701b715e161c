//! Facts of a snapshot without names: everything but its pages.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::identity::SnapshotId;
use crate::limits::{MANIFEST_PAGES_MAX, MANIFEST_VOLUMES_MAX};
use crate::manifest::{
    VolumeShape, read_blobs, read_parent, read_shape, write_blobs, write_parent, write_shape,
};
use crate::wire::{Reader, WireError, Writer};

/// Facts of a captured snapshot, without its pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapturedFacts {
    /// The snapshot it is a change of.
    pub parent: Option<SnapshotId>,
    /// Number of pauses before it in its line.
    pub generation: u64,
    /// When it was made, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Its volumes, memory first.
    pub volumes: Vec<VolumeShape>,
    /// Device state and metadata by name.
    pub blobs: BTreeMap<String, Bytes>,
}

impl CapturedFacts {
    /// Writes the one encoding.
    pub fn write(&self, writer: &mut Writer) {
        write_parent(writer, self.parent);
        writer.varint(self.generation);
        writer.varint(self.created_unix_ms);
        writer.varint_usize(self.volumes.len());
        for volume in &self.volumes {
            write_shape(writer, &volume.name, volume.page_kind, volume.pages);
        }
        write_blobs(writer, &self.blobs);
    }

    /// Reads what [`CapturedFacts::write`] wrote; all counts and sizes are bounded.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let parent = read_parent(reader)?;
        let generation = reader.varint("generation")?;
        let created_unix_ms = reader.varint("time of pause")?;
        let count = reader.varint_usize("volumes", MANIFEST_VOLUMES_MAX)?;
        let volumes = (0..count).map(|_| read_shape(reader, MANIFEST_PAGES_MAX)).collect::<Result<_, _>>()?;
        Ok(Self { parent, generation, created_unix_ms, volumes, blobs: read_blobs(reader)? })
    }
}
