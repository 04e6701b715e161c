//! Unfinished uploads in the catalog: for each layer the object and the id of its upload, and each part that the store has.
//!
//! Records, little-endian. Upload, under the layer's id: version u16, publisher 16 bytes, upload 16 bytes, part length
//! u64, id as text. Part, under the layer's id and the number u32 (big-endian): version u16, digest of its bytes, tag as
//! text, number of frames, and per frame that ends in it its codec u8 and the varint of its encoded length.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::catalog::{Catalog, CatalogError, Change, Kind, WriteError};
use crate::frame_codec::FrameCodec;
use crate::geometry::{u64_of, usize_of};
use crate::identity::{LayerId, SnapshotId};
use crate::limits;
use crate::manifest::ObjectName;
use crate::object::StoredFrame;
use crate::store_upload::PartTag;
use crate::wire::{Reader, WireError, Writer};

/// The uploads that a catalog remembers. Clones are the same ones.
#[derive(Clone, Debug)]
pub struct UploadRecords(Catalog);

/// An upload that was begun and not finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BegunUpload {
    /// The object that it writes.
    pub(crate) object: ObjectName,
    /// The store's id of it.
    pub(crate) id: String,
    /// Length of each part but the last.
    pub(crate) part_bytes: usize,
}

/// A part that the store has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SentPart {
    /// The store's name of it.
    pub(crate) tag: PartTag,
    /// The BLAKE3 hash of its bytes.
    pub(crate) digest: [u8; 32],
    /// The frames that end in it.
    pub(crate) frames: Vec<StoredFrame>,
}

/// An unfinished upload with its parts by number.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnfinishedUpload {
    pub(crate) upload: BegunUpload,
    pub(crate) parts: BTreeMap<u32, SentPart>,
}

/// The only version of both records.
const FORMS: [(); 1] = [()];
const VERSION: u16 = 1;

impl UploadRecords {
    pub(crate) fn of(catalog: Catalog) -> Self {
        Self(catalog)
    }

    /// Records that an upload was begun, in place of any earlier one of the layer.
    pub(crate) fn begun(&self, layer: LayerId, upload: &BegunUpload) -> Result<(), CatalogError> {
        let mut changes = self.removal(layer)?;
        changes.push(Change::Put { kind: Kind::Upload, key: key_of(layer, None), value: upload.encode() });
        self.write(&changes)
    }

    /// Records that the store has a part.
    pub(crate) fn sent(&self, layer: LayerId, number: u32, part: &SentPart) -> Result<(), CatalogError> {
        let key = key_of(layer, Some(number));
        self.write(&[Change::Put { kind: Kind::Upload, key, value: part.encode() }])
    }

    /// The unfinished upload of a layer. A record that cannot be understood is none: it is begun anew.
    pub(crate) fn unfinished(&self, layer: LayerId) -> Result<Option<UnfinishedUpload>, CatalogError> {
        let entries = self.0.under(Kind::Upload, layer.as_bytes())?;
        let Some((_, value)) = entries.iter().find(|(key, _)| number_in(key).is_none()) else {
            return Ok(None);
        };
        let Ok(upload) = BegunUpload::decode(value) else { return Ok(None) };
        let parts = entries.iter().filter_map(|(key, value)| {
            let number = number_in(key)?;
            SentPart::decode(value).ok().map(|part| (number, part))
        });
        Ok(Some(UnfinishedUpload { parts: parts.collect(), upload }))
    }

    /// The unfinished uploads by their layers.
    pub(crate) fn begun_uploads(&self) -> Result<Vec<(LayerId, BegunUpload)>, CatalogError> {
        let entries = self.0.all(Kind::Upload)?;
        let begun = entries.iter().filter_map(|(key, value)| {
            let layer = LayerId::from_bytes(key.as_slice().try_into().ok()?);
            Some((layer, BegunUpload::decode(value).ok()?))
        });
        Ok(begun.collect())
    }

    /// Forgets the upload of a layer.
    pub(crate) fn forget(&self, layer: LayerId) -> Result<(), CatalogError> {
        match self.removal(layer)? {
            nothing if nothing.is_empty() => Ok(()),
            changes => self.0.write_with_last_room(&changes).map_err(WriteError::either_way),
        }
    }

    fn removal(&self, layer: LayerId) -> Result<Vec<Change>, CatalogError> {
        let entries = self.0.under(Kind::Upload, layer.as_bytes())?;
        let remove = |(key, _)| Change::Remove { kind: Kind::Upload, key };
        Ok(entries.into_iter().map(remove).collect())
    }

    /// Makes changes that are right whether they are found made after a crash or not: a part that is not recorded is sent
    /// again, and an upload that is recorded for nothing is given up by the next start.
    fn write(&self, changes: &[Change]) -> Result<(), CatalogError> {
        self.0.write(changes).map_err(WriteError::either_way)
    }
}

/// The key of a layer's upload, or of a part of it. Keys of parts are sorted by number.
fn key_of(layer: LayerId, part: Option<u32>) -> Vec<u8> {
    let mut key = layer.as_bytes().to_vec();
    key.extend(part.into_iter().flat_map(u32::to_be_bytes));
    key
}

/// The number of the part with this key; none for the key of an upload.
fn number_in(key: &[u8]) -> Option<u32> {
    let number = key.get(size_of::<LayerId>()..)?;
    Some(u32::from_be_bytes(number.try_into().ok()?))
}

impl BegunUpload {
    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u16(VERSION);
        out.bytes(self.object.publisher.as_bytes());
        out.bytes(self.object.upload.as_bytes());
        out.u64(u64_of(self.part_bytes));
        out.text(&self.id);
        out.into_bytes()
    }

    fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        reader.version("upload record version", &FORMS)?;
        let publisher = SnapshotId::from_bytes(reader.array("publisher")?);
        let upload = Uuid::from_bytes(reader.array("upload")?);
        let part_bytes = reader.u64("part length")?;
        let part_bytes = u32::try_from(part_bytes).ok().filter(|bytes| *bytes > 0);
        let part_bytes = part_bytes.ok_or(reader.invalid("part length", "no part has it"))?;
        let id = reader.text("upload id", limits::UPLOAD_ID_BYTES_MAX)?.to_owned();
        reader.finish()?;
        Ok(Self { object: ObjectName { publisher, upload }, id, part_bytes: usize_of(part_bytes) })
    }
}

impl SentPart {
    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u16(VERSION);
        out.bytes(&self.digest);
        out.text(&self.tag.0);
        out.varint_usize(self.frames.len());
        for frame in &self.frames {
            out.u8(frame.codec.code());
            out.varint(frame.bytes);
        }
        out.into_bytes()
    }

    fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        reader.version("part record version", &FORMS)?;
        let digest = reader.array("part digest")?;
        let tag = PartTag(reader.text("part tag", limits::UPLOAD_ID_BYTES_MAX)?.to_owned());
        // Each frame takes two bytes or more.
        let count = reader.varint_usize("frames", reader.remaining() / 2)?;
        let mut frames = Vec::with_capacity(count);
        for _ in 0..count {
            let code = reader.u8("frame codec")?;
            let codec = FrameCodec::of_code(code);
            let codec = codec.ok_or(reader.invalid("frame codec", "this rekindle does not know it"))?;
            frames.push(StoredFrame { codec, bytes: reader.varint("encoded frame length")? });
        }
        reader.finish()?;
        Ok(Self { tag, digest, frames })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload() -> BegunUpload {
        let object =
            ObjectName { publisher: SnapshotId::from_bytes([1; 16]), upload: Uuid::from_bytes([2; 16]) };
        BegunUpload { object, id: "an id".to_owned(), part_bytes: 8 << 20 }
    }

    fn part() -> SentPart {
        let frames = vec![
            StoredFrame { codec: FrameCodec::Zstd, bytes: 700 },
            StoredFrame { codec: FrameCodec::Raw, bytes: 4096 },
        ];
        SentPart { tag: PartTag("a tag".to_owned()), digest: [3; 32], frames }
    }

    #[test]
    fn records_are_read_back_and_those_cut_short_or_of_an_unknown_version_are_refused() {
        let (upload, part) = (upload(), part());
        assert_eq!(BegunUpload::decode(&upload.encode()), Ok(upload.clone()));
        assert_eq!(SentPart::decode(&part.encode()), Ok(part.clone()));
        let newer = |mut bytes: Vec<u8>| {
            bytes[0] += 1;
            bytes
        };
        assert!(BegunUpload::decode(&newer(upload.encode())).is_err());
        assert!(SentPart::decode(&newer(part.encode())).is_err());
        let short = |bytes: Vec<u8>| bytes[..bytes.len() - 1].to_vec();
        assert!(BegunUpload::decode(&short(upload.encode())).is_err());
        assert!(SentPart::decode(&short(part.encode())).is_err());
    }

    #[test]
    fn an_upload_is_remembered_with_its_parts_until_another_one_of_its_layer_begins_or_it_is_forgotten() {
        let directory = tempfile::tempdir().expect("a directory");
        let catalog = Catalog::open(&directory.path().join("catalog.redb")).expect("a disk");
        let records = UploadRecords::of(catalog);
        let (layer, other) = (LayerId::from_bytes([7; 32]), LayerId::from_bytes([8; 32]));
        let unfinished = |layer| records.unfinished(layer).expect("a disk");
        assert_eq!(unfinished(layer), None);
        for layer in [layer, other] {
            records.begun(layer, &upload()).expect("a disk");
            records.sent(layer, 300, &part()).expect("a disk");
            records.sent(layer, 2, &part()).expect("a disk");
        }
        let parts = BTreeMap::from([(2, part()), (300, part())]);
        assert_eq!(unfinished(layer), Some(UnfinishedUpload { upload: upload(), parts }));
        let again = BegunUpload { id: "another".to_owned(), ..upload() };
        records.begun(layer, &again).expect("a disk");
        let parts = BTreeMap::new();
        assert_eq!(unfinished(layer), Some(UnfinishedUpload { upload: again.clone(), parts }));
        records.forget(layer).expect("a disk");
        assert_eq!(unfinished(layer), None);
        assert_eq!(records.begun_uploads().expect("a disk"), [(other, upload())]);
    }
}
