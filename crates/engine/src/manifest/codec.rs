//! Publications as bytes.
//!
//! Layout, little-endian: magic `RKMF`, version u16, length of the body u64, its CRC-64/NVME u64, the body, the tag. The
//! body: the snapshot, the edition, the list of layers with their places, its place in its line, the volumes with their maps, the
//! blobs; counts and lengths are varints. Version 2 has no edition, and a byte 0 at the end of the body instead of the tag;
//! version 1 is in [`super::version_1`].

use std::collections::BTreeMap;

use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use rekindle_kernel::page::PageKind;
use uuid::Uuid;

use super::layer_list::{DomainForm, read_layers, write_layers};
use super::version_1::read_version_1;
use super::{
    Edition, LayerName, Manifest, ObjectName, Publication, SnapshotFacts, StoredLayer, VolumeManifest,
    VolumeShape,
};
use crate::geometry::u64_of;
use crate::identity::{SnapshotId, VolumeName, check_name};
use crate::key_ring::{DomainKey, KeyRing};
use crate::limits::{
    BLOB_BYTES_MAX, MANIFEST_BLOBS_MAX, MANIFEST_BYTES_MAX, MANIFEST_GENERATION_MAX, MANIFEST_PAGES_MAX,
    MANIFEST_RUNS_MAX, MANIFEST_VOLUMES_MAX, NAME_BYTES_MAX,
};
use crate::page_map::{PageMap, RunToken};
use crate::tag::{self, TaggedError, check_tag, write_tag};
use crate::wire::{Reader, WireError, Writer};

const MAGIC: &[u8] = b"RKMF";
const VERSION: u16 = 3;
/// The form of each version, from 1 on.
const FORMS: [Form; 3] = [Form::PlacesAtEnd, Form::LayersAtFront, Form::Tagged];

#[derive(Clone, Copy)]
enum Form {
    PlacesAtEnd,
    LayersAtFront,
    Tagged,
}

/// What a manifest ends in.
#[derive(Clone, Copy)]
pub(super) enum End<'a> {
    /// It is on this node's disk, and has no tag.
    Untagged,
    /// It is in the store, and has a tag by one of these keys, from version 3 on.
    Tagged(&'a KeyRing),
}

impl Publication {
    /// The one encoding of the publication that `key` tags.
    #[must_use]
    pub fn encode(&self, key: &DomainKey) -> Vec<u8> {
        let body = write_body(self.manifest(), Some(self.edition()), self.stored(), write_stored);
        let bytes = write_tag(with_checksum(MAGIC, &body), key);
        assert!(bytes.len() <= MANIFEST_BYTES_MAX, "a manifest within its limits is never too long");
        bytes
    }

    /// Reads a publication of any version; of the newest, refuses every encoding that [`Publication::encode`] does not
    /// write, and one that none of `keys` has tagged.
    pub fn decode(bytes: &[u8], keys: &KeyRing) -> Result<Self, TaggedError> {
        let read = read_manifest(MAGIC, bytes, End::Tagged(keys), read_stored)?;
        Ok(Self::new(read.edition.unwrap_or(Edition::FIRST), read.manifest, read.places))
    }
}

/// A body behind its magic, version, length and checksum; the tag is missing.
pub(super) fn with_checksum(magic: &[u8], body: &[u8]) -> Writer {
    let mut object = Writer::new();
    object.bytes(magic);
    object.u16(VERSION);
    object.u64(u64_of(body.len()));
    object.u64(crc_fast::checksum(CrcAlgorithm::Crc64Nvme, body));
    object.bytes(body);
    object
}

/// Reads the front of what [`with_checksum`] wrote, in this version or an older one: its form, a reader of its body, and
/// a reader of what follows the body.
fn checked_body<'a>(magic: &[u8], bytes: &'a [u8]) -> Result<(Form, Reader<'a>, Reader<'a>), WireError> {
    let mut reader = Reader::new(bytes);
    if bytes.len() > MANIFEST_BYTES_MAX {
        return Err(reader.invalid("manifest", "it is longer than a manifest can be"));
    }
    reader.expect_bytes("manifest magic", magic)?;
    let form = reader.version("manifest version", &FORMS)?;
    let length = reader.u64("manifest length")?;
    let rest = reader.remaining().saturating_sub(size_of::<u64>());
    let body = usize::try_from(length).ok().filter(|length| *length <= rest);
    let body = body.ok_or(reader.invalid("manifest length", "it is not the length of what follows"))?;
    let checksum = reader.u64("manifest checksum")?;
    let wrong = reader.invalid("manifest checksum", "it is not that of what follows");
    let start = reader.offset();
    if checksum != crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &bytes[start..start + body]) {
        return Err(wrong);
    }
    Ok((form, reader.part("manifest", body)?, reader))
}

/// The body of a manifest and the places of its layers, as `write_place` writes them.
pub(super) fn write_body<P>(
    manifest: &Manifest,
    edition: Option<Edition>,
    places: &[P],
    write_place: impl Fn(&mut Writer, &P),
) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.bytes(manifest.snapshot().as_bytes());
    writer.varint(edition.map_or(0, Edition::number));
    write_layers(&mut writer, manifest.layers(), places, write_place);
    write_parent(&mut writer, manifest.parent());
    writer.varint(manifest.generation());
    writer.varint(manifest.created_unix_ms());
    writer.varint_usize(manifest.volumes().len());
    let token = RunToken::of_layers(manifest.layers().len());
    for volume in manifest.volumes() {
        write_shape(&mut writer, &volume.name, volume.page_kind, volume.map.pages());
        volume.map.encode(&mut writer, token);
    }
    write_blobs(&mut writer, manifest.blobs());
    writer.into_bytes()
}

/// A manifest that was read, with what is stored with it.
pub(super) struct Read<P> {
    pub(super) edition: Option<Edition>,
    pub(super) manifest: Manifest,
    pub(super) places: Vec<P>,
}

/// Reads a manifest of any version, and the places of its layers as `read_place` reads them.
pub(super) fn read_manifest<P>(
    magic: &[u8],
    bytes: &[u8],
    end: End<'_>,
    read_place: impl Fn(&mut Reader<'_>) -> Result<P, WireError>,
) -> Result<Read<P>, TaggedError> {
    let (form, mut body, mut after) = checked_body(magic, bytes)?;
    let read = match (form, end) {
        (Form::PlacesAtEnd, _) => {
            let (manifest, places) = read_version_1(&mut body, read_place)?;
            Read { edition: None, manifest, places }
        }
        (Form::LayersAtFront, _) => {
            let snapshot = SnapshotId::from_bytes(body.array("snapshot")?);
            let (manifest, places) = read_layers_first(&mut body, snapshot, DomainForm::Named, read_place)?;
            read_no_tag(&mut body)?;
            Read { edition: None, manifest, places }
        }
        (Form::Tagged, End::Untagged) => {
            read_no_tag(&mut after)?;
            let snapshot = SnapshotId::from_bytes(body.array("snapshot")?);
            let edition = Edition::of(body.varint("edition")?);
            let (manifest, places) = read_layers_first(&mut body, snapshot, DomainForm::Keyed, read_place)?;
            Read { edition, manifest, places }
        }
        (Form::Tagged, End::Tagged(keys)) => {
            // Before anything in the body is used.
            check_tag(&mut after, bytes, keys)?;
            let snapshot = SnapshotId::from_bytes(body.array("snapshot")?);
            let edition = Edition::of(body.varint("edition")?);
            let edition = Some(edition.ok_or(body.invalid("edition", "the first one has number 1"))?);
            let (manifest, places) = read_layers_first(&mut body, snapshot, DomainForm::Keyed, read_place)?;
            Read { edition, manifest, places }
        }
    };
    body.finish()?;
    after.finish()?;
    Ok(read)
}

fn read_layers_first<P>(
    reader: &mut Reader<'_>,
    snapshot: SnapshotId,
    domains: DomainForm,
    read_place: impl Fn(&mut Reader<'_>) -> Result<P, WireError>,
) -> Result<(Manifest, Vec<P>), WireError> {
    let (layers, places) = read_layers(reader, domains, read_place)?;
    let line = Line::read(reader, snapshot)?;
    Ok((line.manifest(reader, layers, RunToken::of_layers)?, places))
}

fn read_no_tag(reader: &mut Reader<'_>) -> Result<(), WireError> {
    match reader.u8("manifest tag")? {
        tag::NONE => Ok(()),
        _ => Err(reader.invalid("manifest tag", "there is one where none can be")),
    }
}

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

pub(super) fn write_stored(writer: &mut Writer, layer: &StoredLayer) {
    writer.bytes(layer.object.publisher.as_bytes());
    writer.bytes(layer.object.upload.as_bytes());
    writer.bytes(&layer.table_digest);
    writer.varint(layer.table_bytes);
    writer.varint(layer.object_bytes);
}

pub(super) fn read_stored(reader: &mut Reader<'_>) -> Result<StoredLayer, WireError> {
    let publisher = SnapshotId::from_bytes(reader.array("layer publisher")?);
    let upload = Uuid::from_bytes(reader.array("layer upload")?);
    let layer = StoredLayer {
        object: ObjectName { publisher, upload },
        table_digest: reader.array("layer table digest")?,
        table_bytes: reader.varint("layer table length")?,
        object_bytes: reader.varint("layer object length")?,
    };
    let impossible =
        reader.invalid("layer object length", "the object has no room for its table, or it is too long");
    layer.is_possible().then_some(layer).ok_or(impossible)
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
