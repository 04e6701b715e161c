//! The duties of every decoder of bytes we did not write: it ends without a panic and knows one encoding of each value.
//!
//! The same entries serve the fuzz targets and the test that replays their corpus with damage.

mod samples;

use std::collections::BTreeMap;
use std::fmt::Debug;

use crc_fast::CrcAlgorithm;
use rekindle_engine::geometry::GuestPages;
use rekindle_engine::handover;
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::layer_index::LayerIndex;
use rekindle_engine::limits;
use rekindle_engine::manifest::{LocalManifest, Manifest, Publication};
use rekindle_engine::object::ObjectTable;
use rekindle_engine::packed_set::{Chunk, PackedHead};
use rekindle_engine::snapshot_record::SnapshotRecord;
use rekindle_engine::tag::write_tag;
use rekindle_engine::wire::Writer;
use rekindle_engine::working_set::WorkingSet;

/// One decoder of a stored format or of a peer's message.
#[derive(Debug)]
pub struct Decoder {
    /// Its name: that of its fuzz target and of the directory of its corpus.
    pub name: &'static str,
    /// The version that is written; it is read, and every one before it.
    pub newest: u16,
    /// The version in which a value that was read in some version is written anew: the newest, unless a name commits to
    /// the bytes.
    pub rewritten_as: fn(u16) -> u16,
    /// Decodes and checks what every decoder owes. Bytes that are accepted are written anew.
    pub rewritten: fn(&[u8]) -> Option<Vec<u8>>,
    /// The encoder's output today, under names for the files of the corpus.
    pub samples: fn() -> BTreeMap<&'static str, Vec<u8>>,
}

/// All of them.
pub const DECODERS: [Decoder; 8] = [
    Decoder {
        name: "publication",
        newest: 4,
        rewritten_as: |_| 4,
        rewritten: publication,
        samples: samples::publication,
    },
    Decoder {
        name: "layer_index",
        newest: 2,
        rewritten_as: as_it_was,
        rewritten: layer_index,
        samples: samples::layer_index,
    },
    Decoder {
        name: "object_table",
        newest: 3,
        rewritten_as: with_a_codec,
        rewritten: object_table,
        samples: samples::object_table,
    },
    Decoder {
        name: "handover",
        newest: 1,
        rewritten_as: |_| 1,
        rewritten: handover,
        samples: samples::handover,
    },
    Decoder {
        name: "working_set",
        newest: 2,
        rewritten_as: |_| 2,
        rewritten: working_set,
        samples: samples::working_set,
    },
    Decoder {
        name: "packed_set",
        newest: 1,
        rewritten_as: |_| 1,
        rewritten: packed_set,
        samples: samples::packed_set,
    },
    Decoder {
        name: "local_manifest",
        newest: 3,
        rewritten_as: |_| 3,
        rewritten: local_manifest,
        samples: samples::local_manifest,
    },
    Decoder {
        name: "snapshot_record",
        newest: 3,
        rewritten_as: |_| 3,
        rewritten: snapshot_record,
        samples: samples::snapshot_record,
    },
];

/// A layer's name commits to the very bytes of its index.
fn as_it_was(version: u16) -> u16 {
    version
}

/// A table is written as the newest version that has its index.
fn with_a_codec(version: u16) -> u16 {
    version.max(2)
}

/// Bytes of a manifest before its body: magic, version, length, checksum.
const MANIFEST_FRONT_BYTES: usize = 22;
/// The version from which on a tag follows a manifest's body.
const MANIFEST_TAGGED_FROM: u8 = 3;
/// Place of the length in it.
const MANIFEST_LENGTH_AT: usize = 6;
/// Place of the version in every format of ours: after a magic of four bytes.
const VERSION_AT: usize = 4;

/// The keys of the corpus.
#[must_use]
pub fn keys() -> KeyRing {
    KeyRing::of_name("shared")
}

/// Writes a value that was read anew: the same bytes, or, where those are of an older version, bytes that are read equal.
fn written_anew<T: PartialEq + Debug, E: PartialEq + Debug>(
    bytes: &[u8],
    value: &T,
    encode: impl Fn(&T) -> Vec<u8>,
    decode: impl Fn(&[u8]) -> Result<T, E>,
) -> Vec<u8> {
    let written = encode(value);
    if written[..VERSION_AT + 2] == bytes[..VERSION_AT + 2] {
        assert_eq!(written, bytes, "a value has one encoding");
    } else {
        assert_eq!(decode(&written).as_ref(), Ok(value), "an older encoding is that of the same value");
    }
    written
}

/// Decodes a publication.
pub fn publication(bytes: &[u8]) -> Option<Vec<u8>> {
    let keys = keys();
    let publication = Publication::decode(bytes, &keys).ok()?;
    check_maps(publication.manifest());
    let encode = |publication: &Publication| publication.encode(keys.own());
    Some(written_anew(bytes, &publication, encode, |bytes| Publication::decode(bytes, &keys)))
}

/// Decodes a manifest as a catalog has it.
pub fn local_manifest(bytes: &[u8]) -> Option<Vec<u8>> {
    let local = LocalManifest::decode(bytes).ok()?;
    check_maps(local.manifest());
    Some(written_anew(bytes, &local, LocalManifest::encode, LocalManifest::decode))
}

fn check_maps(manifest: &Manifest) {
    for volume in manifest.volumes() {
        let pages: u64 = volume.map.runs().map(|(run, _)| u64::from(run.count())).sum();
        assert_eq!(pages, u64::from(volume.map.pages()), "a map covers its volume once");
    }
}

/// The bytes with the length, the checksum and the tag that a manifest with this body has, so that damage gets past them.
#[must_use]
pub fn manifest_resealed(bytes: &[u8]) -> Vec<u8> {
    let (keys, mut resealed) = (keys(), bytes.to_vec());
    let is_tagged = bytes.get(VERSION_AT).is_some_and(|version| *version >= MANIFEST_TAGGED_FROM);
    let tag_bytes = if !is_tagged {
        0
    } else if bytes.starts_with(b"RKML") {
        1
    } else {
        tagged(&[], &keys).len()
    };
    let end = bytes.len().saturating_sub(tag_bytes);
    let Some(body) = bytes.get(MANIFEST_FRONT_BYTES..end) else { return resealed };
    let length = u64::try_from(body.len()).expect("a size in memory has 64 bits");
    let checksum = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, body);
    let front = [length.to_le_bytes(), checksum.to_le_bytes()].concat();
    resealed[MANIFEST_LENGTH_AT..MANIFEST_FRONT_BYTES].copy_from_slice(&front);
    if tag_bytes > 1 {
        resealed.truncate(end);
        resealed = tagged(&resealed, &keys);
    }
    resealed
}

fn tagged(bytes: &[u8], keys: &KeyRing) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.bytes(bytes);
    write_tag(writer, keys.own())
}

/// Decodes a snapshot's record.
pub fn snapshot_record(bytes: &[u8]) -> Option<Vec<u8>> {
    let record = SnapshotRecord::decode(bytes).ok()?;
    Some(written_anew(bytes, &record, SnapshotRecord::encode, SnapshotRecord::decode))
}

/// Decodes a layer index.
pub fn layer_index(bytes: &[u8]) -> Option<Vec<u8>> {
    let index = LayerIndex::decode(bytes).ok()?;
    let pages: u32 = index.pages().runs().map(GuestPages::count).sum();
    assert_eq!(pages, index.page_count(), "the runs are the pages");
    Some(written_anew(bytes, &index, LayerIndex::encode, LayerIndex::decode))
}

/// Decodes the table of a layer object, after 8 bytes that say how long the frames before it are.
pub fn object_table(bytes: &[u8]) -> Option<Vec<u8>> {
    let (length, encoded) = bytes.split_first_chunk()?;
    let frames_bytes = u64::from_le_bytes(*length);
    let table = ObjectTable::decode(encoded, frames_bytes).ok()?;
    assert_eq!(table.frames_bytes(), frames_bytes, "the frames fill the object up to the table");
    let decode = |bytes: &[u8]| ObjectTable::decode(bytes, frames_bytes);
    Some([&length[..], &written_anew(encoded, &table, ObjectTable::encode, decode)].concat())
}

/// Pages of the volume that hand-over messages are checked against.
const HANDOVER_PAGES: u32 = 1 << 20;

/// Decodes the message by which a VMM hands its memory over. It is not ours to write.
pub fn handover(bytes: &[u8]) -> Option<Vec<u8>> {
    let regions = handover::regions_of(bytes, HANDOVER_PAGES).ok().flatten()?;
    assert_eq!(regions.pages(), HANDOVER_PAGES, "the regions are the volume");
    for region in regions.iter() {
        let first = region.pages().start();
        assert_eq!(regions.page_at(region.start), Some(first), "an address leads to its page");
        assert_eq!(
            regions.range_of(regions.unit_of(first)).start,
            region.start,
            "and the page to its address"
        );
    }
    Some(bytes.to_vec())
}

/// Bytes of a working set of version 1 before what its checksum is of: magic, version, checksum.
const WORKING_SET_FRONT_BYTES: usize = 14;
/// The version from which on a tag follows a working set instead.
const WORKING_SET_TAGGED_FROM: u8 = 2;
/// Place of the checksum in it.
const WORKING_SET_CHECKSUM_AT: usize = 6;

/// Decodes a working set, as it is and with the checksum that it should have.
pub fn working_set(bytes: &[u8]) -> Option<Vec<u8>> {
    let (keys, mut resealed) = (keys(), bytes.to_vec());
    if bytes.get(VERSION_AT).is_some_and(|version| *version >= WORKING_SET_TAGGED_FROM) {
        resealed.truncate(bytes.len().saturating_sub(tagged(&[], &keys).len()));
        resealed = tagged(&resealed, &keys);
    } else if let Some(body) = bytes.get(WORKING_SET_FRONT_BYTES..) {
        let checksum = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, body);
        resealed[WORKING_SET_CHECKSUM_AT..WORKING_SET_FRONT_BYTES].copy_from_slice(&checksum.to_le_bytes());
    }
    checked_working_set(&resealed);
    checked_working_set(bytes)
}

fn checked_working_set(bytes: &[u8]) -> Option<Vec<u8>> {
    let keys = keys();
    let set = WorkingSet::decode(bytes, &keys).ok()?;
    assert!(set.pages() <= limits::WORKING_SET_PAGES_MAX, "it is bounded");
    let mut runs = set.runs().to_vec();
    runs.sort_by_key(|run| run.start());
    assert!(runs.windows(2).all(|pair| pair[0].end() <= pair[1].start()), "a page comes once");
    let encode = |set: &WorkingSet| set.encode(keys.own());
    Some(written_anew(bytes, &set, encode, |bytes| WorkingSet::decode(bytes, &keys)))
}

/// Decodes the head of a packed working set, as it is and with the tag that it should have.
pub fn packed_set(bytes: &[u8]) -> Option<Vec<u8>> {
    let keys = keys();
    let body = &bytes[..bytes.len().saturating_sub(tagged(&[], &keys).len())];
    checked_packed_set(&tagged(body, &keys));
    checked_packed_set(bytes)
}

fn checked_packed_set(bytes: &[u8]) -> Option<Vec<u8>> {
    let keys = keys();
    let head = PackedHead::decode(bytes, &keys).ok()?;
    let pages = |chunk: &Chunk| chunk.parts.iter().map(|part| part.bits.count()).sum::<u32>();
    let pages: u32 = head.chunks().iter().map(pages).sum();
    assert!(pages <= limits::WORKING_SET_PAGES_MAX, "it is bounded");
    assert_eq!(PackedHead::bytes_of_head(bytes), Some(bytes.len()), "its first bytes say its length");
    let encode = |head: &PackedHead| head.encode(keys.own());
    Some(written_anew(bytes, &head, encode, |bytes| PackedHead::decode(bytes, &keys)))
}
