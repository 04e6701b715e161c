//! Parts of a manifest that every version writes alike: the snapshot's place in its line, volumes with their maps, blobs.

use std::collections::BTreeMap;

use bytes::Bytes;
use rekindle_kernel::page::PageKind;

use super::{LayerName, Manifest, SnapshotFacts, VolumeManifest, VolumeShape};
use crate::identity::{SnapshotId, VolumeName, check_name};
use crate::limits::{
    BLOB_BYTES_MAX, MANIFEST_BLOBS_MAX, MANIFEST_GENERATION_MAX, MANIFEST_PAGES_MAX, MANIFEST_RUNS_MAX,
    MANIFEST_VOLUMES_MAX, NAME_BYTES_MAX,
};
use crate::page_map::{PageMap, RunToken};
use crate::wire::{Reader, WireError, Writer};

/// A snapshot and its place in its line.
pub(super) struct Line {
    snapshot: SnapshotId,
    parent: Option<SnapshotId>,
    generation: u64,
    created_unix_ms: u64,
}

impl Line {
    pub(super) fn read(reader: &mut Reader<'_>, snapshot: SnapshotId) -> Result<Self, WireError> {
        let parent = read_parent(reader)?;
        if parent == Some(snapshot) {
            return Err(reader.invalid("parent", "the snapshot is its own parent"));
        }
        let generation = reader.varint_at_most("generation", MANIFEST_GENERATION_MAX)?;
        if parent.is_some() != (generation > 0) {
            let reason = "only a snapshot without parent is the first of its line";
            return Err(reader.invalid("generation", reason));
        }
        Ok(Self { snapshot, parent, generation, created_unix_ms: reader.varint("time of pause")? })
    }

    /// Reads volumes and blobs. The number of layers says how runs are written.
    pub(super) fn manifest(
        self,
        reader: &mut Reader<'_>,
        layers: Vec<LayerName>,
        token: impl Fn(usize) -> RunToken,
    ) -> Result<Manifest, WireError> {
        let Self { snapshot, parent, generation, created_unix_ms } = self;
        let volumes = read_volumes(reader, &layers, token(layers.len()))?;
        let facts = SnapshotFacts { snapshot, created_unix_ms, blobs: read_blobs(reader)? };
        let manifest = Manifest { facts, parent, generation, layers, volumes };
        if manifest.runs_count() > MANIFEST_RUNS_MAX.into() {
            return Err(reader.invalid("map runs", "the maps have more runs than a manifest can have"));
        }
        Ok(manifest)
    }
}

pub(crate) fn write_parent(writer: &mut Writer, parent: Option<SnapshotId>) {
    writer.u8(parent.is_some().into());
    if let Some(parent) = parent {
        writer.bytes(parent.as_bytes());
    }
}

pub(crate) fn write_shape(writer: &mut Writer, name: &VolumeName, kind: PageKind, pages: u32) {
    writer.text(name.as_str());
    writer.u8(code_of(kind));
    writer.varint(pages.into());
}

pub(crate) fn write_blobs(writer: &mut Writer, blobs: &BTreeMap<String, Bytes>) {
    writer.varint_usize(blobs.len());
    for (name, bytes) in blobs {
        writer.text(name);
        writer.length_prefixed(bytes);
    }
}

pub(crate) fn read_parent(reader: &mut Reader<'_>) -> Result<Option<SnapshotId>, WireError> {
    match reader.u8("parent")? {
        0 => Ok(None),
        1 => reader.array("parent").map(SnapshotId::from_bytes).map(Some),
        _ => Err(reader.invalid("parent", "it is neither there nor absent")),
    }
}

fn read_volumes(
    reader: &mut Reader<'_>,
    layers: &[LayerName],
    token: RunToken,
) -> Result<Vec<VolumeManifest>, WireError> {
    let layer_pages: Vec<u32> = layers.iter().map(|layer| layer.pages).collect();
    let count = reader.varint_usize("volumes", MANIFEST_VOLUMES_MAX)?;
    let mut volumes: Vec<VolumeManifest> = Vec::with_capacity(count);
    let mut pages_max = MANIFEST_PAGES_MAX;
    for _ in 0..count {
        let VolumeShape { name, page_kind, pages } = read_shape(reader, pages_max)?;
        if volumes.iter().any(|known| known.name == name) {
            return Err(reader.invalid("volume name", "two volumes have one name"));
        }
        pages_max -= pages;
        let map = PageMap::decode(reader, pages, &layer_pages, token)?;
        volumes.push(VolumeManifest { name, page_kind, map });
    }
    let is_live = |slot| volumes.iter().any(|volume| volume.map.live_pages(slot) > 0);
    if (0..layers.len()).map(super::slot_at).all(is_live) {
        Ok(volumes)
    } else {
        Err(reader.invalid("layers", "no page lies in one of the layers"))
    }
}

pub(crate) fn read_shape(reader: &mut Reader<'_>, pages_max: u32) -> Result<VolumeShape, WireError> {
    let name = reader.text("volume name", NAME_BYTES_MAX)?;
    let name = name.parse().map_err(|_| reader.invalid("volume name", "the text names no volume"))?;
    let page_kind = kind_of(reader.u8("volume page kind")?)
        .ok_or(reader.invalid("volume page kind", "there is no such kind of page"))?;
    Ok(VolumeShape { name, page_kind, pages: reader.varint_u32("volume pages", pages_max)? })
}

pub(crate) fn read_blobs(reader: &mut Reader<'_>) -> Result<BTreeMap<String, Bytes>, WireError> {
    let mut blobs: BTreeMap<String, Bytes> = BTreeMap::new();
    for _ in 0..reader.varint_usize("blobs", MANIFEST_BLOBS_MAX)? {
        let name = reader.text("blob name", NAME_BYTES_MAX)?;
        check_name(name).map_err(|_| reader.invalid("blob name", "the text names no blob"))?;
        if blobs.last_key_value().is_some_and(|(last, _)| last.as_str() >= name) {
            return Err(reader.invalid("blob name", "names do not ascend"));
        }
        let bytes = reader.length_prefixed("blob", BLOB_BYTES_MAX)?;
        blobs.insert(name.to_owned(), Bytes::copy_from_slice(bytes));
    }
    Ok(blobs)
}

const fn code_of(kind: PageKind) -> u8 {
    match kind {
        PageKind::Small => 0,
        PageKind::Huge => 1,
    }
}

const fn kind_of(code: u8) -> Option<PageKind> {
    match code {
        0 => Some(PageKind::Small),
        1 => Some(PageKind::Huge),
        _ => None,
    }
}
