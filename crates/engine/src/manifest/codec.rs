//! Publications as bytes.
//!
//! Layout, little-endian: magic `RKMF`, version u16, length of the body u64, its CRC-64/NVME u64, the body, the tag. The
//! body: the snapshot, the edition, the list of layers with their places, its place in its line, the volumes with their maps,
//! the blobs, the tables of objects; counts and lengths are varints. Version 3 has no tables. Version 2 has no edition either,
//! and a byte 0 at the end of the body instead of the tag; version 1 is in [`super::version_1`].

use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use uuid::Uuid;

use super::layer_list::{DomainForm, read_layers, write_layers};
use super::line::{Line, write_blobs, write_parent, write_shape};
use super::tables::{Place, read_tables, write_tables};
use super::version_1::read_version_1;
use super::{Edition, Manifest, ObjectName, Publication, StoredLayer};
use crate::geometry::u64_of;
use crate::identity::{Domain, DomainName, LayerId, SnapshotId};
use crate::key_ring::{DomainKey, KeyRing};
use crate::limits::MANIFEST_BYTES_MAX;
use crate::page_map::RunToken;
use crate::tag::{self, TaggedError, check_tag, write_tag};
use crate::wire::{Reader, WireError, Writer};

const MAGIC: &[u8] = b"RKMF";
/// The form of each version of a publication, from 1 on.
const FORMS: [Form; 4] = [Form::PlacesAtEnd, Form::LayersAtFront, Form::Tagged, Form::WithTables];
/// The form of each version of a manifest in the catalog, from 1 on.
const LOCAL_FORMS: [Form; 3] = [Form::PlacesAtEnd, Form::LayersAtFront, Form::Tagged];

#[derive(Clone, Copy)]
enum Form {
    PlacesAtEnd,
    LayersAtFront,
    Tagged,
    WithTables,
}

/// The end of a manifest.
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
        let mut body = write_body(self.manifest(), Some(self.edition()), self.stored(), write_stored);
        write_tables(&mut body, self.tables());
        let bytes = write_tag(with_checksum(MAGIC, 4, &body.into_bytes()), key);
        assert!(bytes.len() <= MANIFEST_BYTES_MAX, "a manifest within its limits is never too long");
        bytes
    }

    /// Reads a publication of any version; of the newest, refuses every encoding that [`Publication::encode`] does not
    /// write, and one that none of `keys` has tagged.
    pub fn decode(bytes: &[u8], keys: &KeyRing) -> Result<Self, TaggedError> {
        Ok(Self::decode_of_domain(bytes, keys)?.0)
    }

    /// The same, with the domain whose key has tagged it. One of an older version, which has no tag, is of the ring's own.
    pub(crate) fn decode_of_domain(bytes: &[u8], keys: &KeyRing) -> Result<(Self, DomainName), TaggedError> {
        let read = read_manifest(MAGIC, bytes, End::Tagged(keys), read_stored)?;
        let domain = read.tagged_by.as_ref().unwrap_or(keys.own().domain()).name().clone();
        let publication = Self::new(read.edition.unwrap_or(Edition::FIRST), read.manifest, read.places);
        let has_tables = !read.tables.is_empty();
        Ok((if has_tables { publication.with_tables(read.tables) } else { publication }, domain))
    }
}

/// A snapshot, and the objects that its manifest names, each with its layer.
type NamedObjects = (SnapshotId, Vec<(LayerId, ObjectName)>);

impl Publication {
    /// The objects that a manifest in the store names, also one of a domain whose key is not here: its tag is not checked.
    pub fn named_objects(bytes: &[u8]) -> Result<NamedObjects, WireError> {
        let (form, mut body, _) = checked_body(MAGIC, &FORMS, bytes)?;
        let (snapshot, layers, places) = match form {
            Form::PlacesAtEnd => {
                let (manifest, places) = read_version_1(&mut body, read_stored)?;
                (manifest.snapshot(), manifest.layers().to_vec(), places)
            }
            Form::LayersAtFront | Form::Tagged | Form::WithTables => {
                let snapshot = SnapshotId::from_bytes(body.array("snapshot")?);
                let domains = match form {
                    Form::PlacesAtEnd | Form::LayersAtFront => DomainForm::Named,
                    Form::Tagged | Form::WithTables => {
                        body.varint("edition")?;
                        DomainForm::Keyed
                    }
                };
                let (layers, places) = read_layers(&mut body, domains, read_stored)?;
                (snapshot, layers, places)
            }
        };
        let named = layers.iter().zip(&places).map(|(layer, place)| (layer.id, place.object));
        Ok((snapshot, named.collect()))
    }
}

/// A body behind its magic, version, length and checksum; the tag is missing.
pub(super) fn with_checksum(magic: &[u8], version: u16, body: &[u8]) -> Writer {
    let mut object = Writer::new();
    object.bytes(magic);
    object.u16(version);
    object.u64(u64_of(body.len()));
    object.u64(crc_fast::checksum(CrcAlgorithm::Crc64Nvme, body));
    object.bytes(body);
    object
}

/// Reads the front of what [`with_checksum`] wrote, in this version or an older one: its form, a reader of its body, and
/// a reader of what follows the body.
fn checked_body<'a>(
    magic: &[u8],
    forms: &[Form],
    bytes: &'a [u8],
) -> Result<(Form, Reader<'a>, Reader<'a>), WireError> {
    let mut reader = Reader::new(bytes);
    if bytes.len() > MANIFEST_BYTES_MAX {
        return Err(reader.invalid("manifest", "it is longer than a manifest can be"));
    }
    reader.expect_bytes("manifest magic", magic)?;
    let form = reader.version("manifest version", forms)?;
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
) -> Writer {
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
    writer
}

/// A manifest that was read, with what is stored with it.
pub(super) struct Read<P> {
    pub(super) edition: Option<Edition>,
    /// The domain of its tag, if it has one.
    pub(super) tagged_by: Option<Domain>,
    pub(super) manifest: Manifest,
    pub(super) places: Vec<P>,
    /// Tables of the objects at those places; empty in a version without tables.
    pub(super) tables: Vec<Option<Bytes>>,
}

/// Reads a manifest of any version, and the places of its layers as `read_place` reads them.
pub(super) fn read_manifest<P: Place>(
    magic: &[u8],
    bytes: &[u8],
    end: End<'_>,
    read_place: impl Fn(&mut Reader<'_>) -> Result<P, WireError>,
) -> Result<Read<P>, TaggedError> {
    let forms = match end {
        End::Untagged => &LOCAL_FORMS[..],
        End::Tagged(_) => &FORMS[..],
    };
    let (form, mut body, mut after) = checked_body(magic, forms, bytes)?;
    let tagged_by = match (form, end) {
        // Before anything in the body is used.
        (Form::Tagged | Form::WithTables, End::Tagged(keys)) => Some(check_tag(&mut after, bytes, keys)?),
        (Form::PlacesAtEnd | Form::LayersAtFront | Form::Tagged | Form::WithTables, _) => None,
    };
    let untold =
        |(manifest, places)| Read { edition: None, tagged_by: None, manifest, places, tables: Vec::new() };
    let read = match form {
        Form::PlacesAtEnd => untold(read_version_1(&mut body, read_place)?),
        Form::LayersAtFront => {
            let snapshot = SnapshotId::from_bytes(body.array("snapshot")?);
            let read = read_layers_first(&mut body, snapshot, DomainForm::Named, read_place)?;
            read_no_tag(&mut body)?;
            untold(read)
        }
        Form::Tagged | Form::WithTables => {
            let snapshot = SnapshotId::from_bytes(body.array("snapshot")?);
            let edition = read_edition(&mut body, end)?;
            let (manifest, places) = read_layers_first(&mut body, snapshot, DomainForm::Keyed, read_place)?;
            let tables = match form {
                Form::WithTables => read_tables(&mut body, &places)?,
                Form::PlacesAtEnd | Form::LayersAtFront | Form::Tagged => Vec::new(),
            };
            Read { edition, tagged_by, manifest, places, tables }
        }
    };
    if let (Form::Tagged, End::Untagged) = (form, end) {
        read_no_tag(&mut after)?;
    }
    body.finish()?;
    after.finish()?;
    Ok(read)
}

/// Reads an edition, which a manifest in the store has, and one on this node's disk perhaps.
fn read_edition(reader: &mut Reader<'_>, end: End<'_>) -> Result<Option<Edition>, WireError> {
    let edition = Edition::of(reader.varint("edition")?);
    match (edition, end) {
        (None, End::Tagged(_)) => Err(reader.invalid("edition", "the first one has number 1")),
        (edition, End::Tagged(_) | End::Untagged) => Ok(edition),
    }
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
