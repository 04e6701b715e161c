//! The stored form of a working set with its pages: which they are, then their bytes, packed together.
//!
//! Layout, little-endian: the head, then the chunks, one after the other. Head: magic `RKWP`, version u16, u32 bytes of the
//! head, the working set as it is stored alone from its snapshot to its last run, varint number of layers and 32 bytes of
//! name for each, varint number of chunks, and for each a byte for its codec, varint bytes, varint number of parts; a part
//! has varints of its layer's number in the list and of its frame, a byte for the pages of the frame, and a u64 with a bit
//! for each of them that is packed; last the tag. A chunk is, uncompressed, the proofs of its parts and then their pages.
//!
//! No byte of a page is believed for the tag: each is proven to be of its frame.

use std::collections::HashSet;
use std::ops::Range;

use crate::frame::{FRAME_PAGES, FrameNumber};
use crate::frame_codec::FrameCodec;
use crate::geometry::{PAGE_BYTES, u64_of, usize_of};
use crate::identity::LayerId;
use crate::key_ring::{DomainKey, KeyRing};
use crate::limits::{
    MANIFEST_LAYERS_MAX, MANIFEST_PAGES_MAX, PACKED_CHUNK_PAGES_MAX, PACKED_HEAD_BYTES_MAX,
    WORKING_SET_PAGES_MAX,
};
use crate::page_tree::{PageBits, ProvenPages, proof_bytes};
use crate::tag::{TaggedError, check_tag, write_tag};
use crate::wire::{Problem, Reader, WireError, Writer};
use crate::working_set::WorkingSet;

const MAGIC: &[u8] = b"RKWP";
/// The form of each version, from 1 on.
const FORMS: [(); 1] = [()];
/// Bytes of the head that say its length.
pub(crate) const PREFIX_BYTES: usize = 10;

/// The head of a packed working set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedHead {
    set: WorkingSet,
    layers: Vec<LayerId>,
    chunks: Vec<Chunk>,
}

/// Parts that are compressed together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Their codec.
    pub codec: FrameCodec,
    /// Bytes that they take in the object.
    pub bytes: u32,
    /// The parts.
    pub parts: Vec<PackedPart>,
}

/// Pages of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedPart {
    /// The position of the frame's layer in the list of layers.
    pub layer: usize,
    /// The frame.
    pub frame: FrameNumber,
    /// Number of the frame's pages.
    pub frame_pages: u32,
    /// Those that are packed.
    pub bits: PageBits,
}

impl PackedPart {
    fn proof_bytes(&self) -> usize {
        proof_bytes(self.frame_pages, self.bits)
    }

    fn pages_bytes(&self) -> usize {
        usize_of(self.bits.count()) * PAGE_BYTES
    }

    /// Bytes that it takes in its chunk, uncompressed.
    #[must_use]
    pub fn raw_bytes(&self) -> usize {
        self.proof_bytes() + self.pages_bytes()
    }
}

impl Chunk {
    /// Bytes of its parts, uncompressed.
    #[must_use]
    pub fn raw_bytes(&self) -> usize {
        self.parts.iter().map(PackedPart::raw_bytes).sum()
    }

    /// Its parts with their pages, of its uncompressed bytes.
    pub(crate) fn proven<'a>(
        &'a self,
        raw: &'a [u8],
    ) -> impl Iterator<Item = (&'a PackedPart, ProvenPages<'a>)> {
        let proofs: usize = self.parts.iter().map(PackedPart::proof_bytes).sum();
        let (mut proofs, mut pages) = raw.split_at(proofs);
        self.parts.iter().map(move |part| {
            let proof = proofs.split_off(..part.proof_bytes()).expect("as long as all proofs");
            let pages = pages.split_off(..part.pages_bytes()).expect("as long as all pages");
            (part, ProvenPages { bits: part.bits, pages, proof })
        })
    }
}

impl PackedHead {
    /// The head of an object with these chunks, whose parts are of `layers`.
    #[must_use]
    pub fn new(set: WorkingSet, layers: Vec<LayerId>, chunks: Vec<Chunk>) -> Self {
        Self { set, layers, chunks }
    }

    /// The working set.
    #[must_use]
    pub const fn set(&self) -> &WorkingSet {
        &self.set
    }

    /// The layers that pages are of.
    #[must_use]
    pub fn layers(&self) -> &[LayerId] {
        &self.layers
    }

    /// The chunks.
    #[must_use]
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The part of the object that each chunk is, behind a head of so many bytes.
    pub(crate) fn places(&self, head_bytes: u64) -> Vec<Range<u64>> {
        let mut end = head_bytes;
        let place = |chunk: &Chunk| {
            let start = end;
            end += u64::from(chunk.bytes);
            start..end
        };
        self.chunks.iter().map(place).collect()
    }

    /// Bytes of the head that begins like this; none if this does not begin one.
    #[must_use]
    pub fn bytes_of_head(prefix: &[u8]) -> Option<usize> {
        let mut reader = Reader::new(prefix);
        reader.expect_bytes("packed working set magic", MAGIC).ok()?;
        reader.version("packed working set version", &FORMS).ok()?;
        let bytes = usize::try_from(reader.u32("head bytes").ok()?).ok()?;
        (PREFIX_BYTES..=PACKED_HEAD_BYTES_MAX).contains(&bytes).then_some(bytes)
    }

    /// The one encoding of the head that `key` tags.
    #[must_use]
    pub fn encode(&self, key: &DomainKey) -> Vec<u8> {
        // Its length has a fixed length itself, so the first encoding tells it.
        let length = self.encode_as(0, key).len();
        let bytes = self.encode_as(u32::try_from(length).expect("a head is short"), key);
        assert!(bytes.len() <= PACKED_HEAD_BYTES_MAX, "a head within its limits is never too long");
        bytes
    }

    fn encode_as(&self, length: u32, key: &DomainKey) -> Vec<u8> {
        let mut body = Writer::new();
        body.bytes(MAGIC);
        body.u16(1);
        body.u32(length);
        self.set.write(&mut body);
        body.varint_usize(self.layers.len());
        self.layers.iter().for_each(|layer| body.bytes(layer.as_bytes()));
        body.varint_usize(self.chunks.len());
        for chunk in &self.chunks {
            body.u8(chunk.codec.code());
            body.varint(chunk.bytes.into());
            body.varint_usize(chunk.parts.len());
            for part in &chunk.parts {
                body.varint_usize(part.layer);
                body.varint_usize(part.frame.index());
                body.u8(u8::try_from(part.frame_pages).expect("a frame has 64 pages at most"));
                body.u64(part.bits.bits());
            }
        }
        write_tag(body, key)
    }

    /// Reads a head; refuses every encoding that [`PackedHead::encode`] does not write, and one that none of `keys` has
    /// tagged.
    pub fn decode(bytes: &[u8], keys: &KeyRing) -> Result<Self, TaggedError> {
        let mut reader = Reader::new(bytes);
        if bytes.len() > PACKED_HEAD_BYTES_MAX {
            return Err(reader.invalid("packed working set", "its head is longer than one can be").into());
        }
        reader.expect_bytes("packed working set magic", MAGIC)?;
        reader.version("packed working set version", &FORMS)?;
        if usize::try_from(reader.u32("head bytes")?).ok() != Some(bytes.len()) {
            return Err(reader.invalid("head bytes", "they are others").into());
        }
        let set = WorkingSet::read(&mut reader)?;
        let layers = read_layers(&mut reader)?;
        let chunks = read_chunks(&mut reader, layers.len())?;
        check_tag(&mut reader, bytes, keys)?;
        reader.finish()?;
        Ok(Self { set, layers, chunks })
    }
}

fn read_layers(reader: &mut Reader<'_>) -> Result<Vec<LayerId>, WireError> {
    let count = reader.varint_usize("layers", MANIFEST_LAYERS_MAX)?;
    let mut layers = Vec::new();
    for _ in 0..count {
        let layer = LayerId::from_bytes(reader.array("layer")?);
        if layers.contains(&layer) {
            return Err(reader.invalid("layer", "it is named twice"));
        }
        layers.push(layer);
    }
    Ok(layers)
}

fn read_chunks(reader: &mut Reader<'_>, layers: usize) -> Result<Vec<Chunk>, WireError> {
    let count = reader.varint_usize("chunks", usize_of(WORKING_SET_PAGES_MAX))?;
    let (mut chunks, mut frames) = (Vec::new(), HashSet::new());
    let mut left = WORKING_SET_PAGES_MAX;
    for _ in 0..count {
        let code = reader.u8("chunk codec")?;
        let unknown = Problem::UnknownCode { found: code, known: FrameCodec::KNOWN };
        let codec = FrameCodec::of_code(code).ok_or(reader.error("chunk codec", unknown))?;
        let bytes = reader.varint_u32("chunk bytes", u32::MAX)?;
        let parts = reader.varint_usize("chunk parts", usize_of(PACKED_CHUNK_PAGES_MAX))?;
        let mut chunk = Chunk { codec, bytes, parts: Vec::new() };
        let mut pages = 0;
        for _ in 0..parts {
            let part = read_part(reader, layers)?;
            if !frames.insert((part.layer, part.frame.index())) {
                return Err(reader.invalid("part", "its frame has another one"));
            }
            pages += part.bits.count();
            chunk.parts.push(part);
        }
        left = left.checked_sub(pages).ok_or(reader.invalid("chunk", "there are too many pages"))?;
        if !(1..=PACKED_CHUNK_PAGES_MAX).contains(&pages) {
            return Err(reader.invalid("chunk", "it has no pages, or more than a chunk may have"));
        }
        if !codec.allows(u64::from(bytes), u64_of(chunk.raw_bytes())) {
            return Err(reader.invalid("chunk bytes", "its pages cannot have this length"));
        }
        chunks.push(chunk);
    }
    Ok(chunks)
}

fn read_part(reader: &mut Reader<'_>, layers: usize) -> Result<PackedPart, WireError> {
    let last = layers.checked_sub(1).ok_or(reader.invalid("part", "no layer is named"))?;
    let layer = reader.varint_usize("part layer", last)?;
    let frame_max = usize_of((MANIFEST_PAGES_MAX - 1) / FRAME_PAGES);
    let frame = FrameNumber::new(reader.varint_usize("part frame", frame_max)?);
    let frame_pages = u32::from(reader.u8("frame pages")?);
    if !(1..=FRAME_PAGES).contains(&frame_pages) {
        return Err(reader.invalid("frame pages", "no frame has so many"));
    }
    let bits = PageBits::new(reader.u64("packed pages")?).filter(|bits| bits.are_within(frame_pages));
    let bits = bits.ok_or(reader.invalid("packed pages", "there are none, or they are not in the frame"))?;
    Ok(PackedPart { layer, frame, frame_pages, bits })
}
