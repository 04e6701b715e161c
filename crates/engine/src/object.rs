//! A layer as it lies in the store: compressed frames one after the other, then the table of their places.
//!
//! Layout, little-endian: frames | table. Table: magic `RKLT`, version u16, length-prefixed layer index, then per
//! frame the varint of its encoded length. A frame as long as its pages is stored raw, a shorter one is zstd.

use std::ops::Range;

use crate::frame::{FrameNumber, frame_bytes};
use crate::layer_index::LayerIndex;
use crate::limits;
use crate::manifest::StoredLayer;
use crate::sync::OnceLock;
use crate::wire::{Reader, WireError, Writer};

const MAGIC: [u8; 4] = *b"RKLT";
const VERSION: u16 = 1;

/// Place of each frame of a stored layer, with the index that its name commits to.
#[derive(Debug, PartialEq, Eq)]
pub struct ObjectTable {
    index: LayerIndex,
    /// Frame `n` is at bytes `ends[n - 1]..ends[n]` of the object.
    ends: Box<[u64]>,
}

/// One object of a layer in the store.
#[derive(Debug)]
pub struct StoredObject {
    place: StoredLayer,
    table: OnceLock<ObjectTable>,
}

/// Reason that an encoded frame is not the right one.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// It does not decompress.
    #[error("does not decompress: {0}")]
    Zstd(#[from] std::io::Error),
    /// It decompresses to another length.
    #[error("decompresses to {found} bytes instead of {expected}")]
    Length {
        /// Bytes found.
        found: usize,
        /// Bytes of the frame's pages.
        expected: usize,
    },
}

impl StoredObject {
    /// The object at `place`, of which nothing was fetched yet.
    pub fn at(place: StoredLayer) -> Self {
        Self { place, table: OnceLock::new() }
    }

    /// Its place.
    pub fn place(&self) -> &StoredLayer {
        &self.place
    }

    /// Its table, once it was fetched.
    pub fn table(&self) -> Option<&ObjectTable> {
        self.table.get()
    }

    /// Remembers its table, which the caller has checked.
    pub fn set_table(&self, table: ObjectTable) -> &ObjectTable {
        self.table.get_or_init(|| table)
    }
}

impl ObjectTable {
    /// The table of an object whose frames have these encoded lengths in bytes, in order.
    pub fn new(index: LayerIndex, lengths: &[u64]) -> Self {
        assert_eq!(lengths.len(), index.frames(), "one length per frame");
        let ends = lengths
            .iter()
            .scan(0_u64, |end, length| {
                *end += length;
                Some(*end)
            })
            .collect();
        Self { index, ends }
    }

    /// The layer's index.
    pub fn index(&self) -> &LayerIndex {
        &self.index
    }

    /// Bytes of all frames together: where the table begins in the object.
    pub fn frames_bytes(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The bytes of the object that hold `frame`.
    pub fn frame_range(&self, frame: FrameNumber) -> Range<u64> {
        let position = frame.index();
        let start = if position == 0 { 0 } else { self.ends[position - 1] };
        start..self.ends[position]
    }

    /// The bytes of the table.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.bytes(&MAGIC);
        out.u16(VERSION);
        out.length_prefixed(&self.index.encode());
        let mut start = 0;
        for end in &self.ends {
            out.varint(end - start);
            start = *end;
        }
        out.into_bytes()
    }

    /// Reads a table; `frames_bytes` is what the object holds besides it.
    pub fn decode(bytes: &[u8], frames_bytes: u64) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        reader.expect_bytes("object table magic", &MAGIC)?;
        reader.expect_u16("object table version", VERSION)?;
        let index =
            LayerIndex::decode(reader.length_prefixed("layer index", limits::LAYER_INDEX_BYTES_MAX)?)?;
        let mut ends = Vec::with_capacity(index.frames());
        let mut end = 0_u64;
        for position in 0..index.frames() {
            let raw = frame_bytes(FrameNumber::new(position), index.page_count());
            let length = reader.varint_at_most("encoded frame length", crate::geometry::u64_of(raw))?;
            end += length;
            ends.push(end);
        }
        if end != frames_bytes {
            return Err(reader.invalid("encoded frame lengths", "they do not add up to the object"));
        }
        reader.finish()?;
        Ok(Self { index, ends: ends.into() })
    }
}

/// Encodes one frame for the store.
pub fn encode_frame(raw: &[u8]) -> std::io::Result<Vec<u8>> {
    let packed = zstd::bulk::compress(raw, limits::ZSTD_LEVEL)?;
    Ok(if packed.len() < raw.len() { packed } else { raw.to_vec() })
}

/// Decodes one frame of `expected` bytes. Its content is not verified here.
pub fn decode_frame(encoded: &[u8], expected: usize) -> Result<Vec<u8>, FrameError> {
    if encoded.len() == expected {
        return Ok(encoded.to_vec());
    }
    let raw = zstd::bulk::decompress(encoded, expected)?;
    if raw.len() == expected { Ok(raw) } else { Err(FrameError::Length { found: raw.len(), expected }) }
}
