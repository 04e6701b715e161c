//! A layer as it lies in the store: compressed frames one after the other, then the table of their places.
//!
//! Layout, little-endian: frames | table. Table: magic `RKLT`, version u16, length-prefixed layer index, then per
//! frame its codec u8 and the varint of its encoded length. Version 3 has an index of version 2, those before it one of
//! version 1. In version 1 no codec is written: a frame as long as its pages is raw, a shorter one is zstd.

use std::ops::Range;

use crate::frame::{FrameNumber, frame_bytes};
use crate::geometry::u64_of;
use crate::layer_index::{IndexForm, LayerIndex};
use crate::limits;
use crate::manifest::StoredLayer;
use crate::sync::OnceLock;
use crate::wire::{Problem, Reader, WireError, Writer};

pub use crate::frame_codec::{EncodedFrame, FrameCodec, FrameError};

const MAGIC: [u8; 4] = *b"RKLT";
/// The form of each version, from 1 on.
const FORMS: [Form; 3] = [Form::CodecToldByLength, Form::CodecNamed, Form::KeyedDigests];

#[derive(Clone, Copy)]
enum Form {
    CodecToldByLength,
    CodecNamed,
    KeyedDigests,
}

impl Form {
    /// The form of the index in it.
    const fn index(self) -> IndexForm {
        match self {
            Self::CodecToldByLength | Self::CodecNamed => IndexForm::DigestsWithoutKey,
            Self::KeyedDigests => IndexForm::KeyedDigests,
        }
    }
}

/// Place of each frame of a stored layer, with the index that its name commits to.
#[derive(Debug, PartialEq, Eq)]
pub struct ObjectTable {
    index: LayerIndex,
    places: FramePlaces,
}

/// Place of each frame in one object of a layer.
#[derive(Debug, PartialEq, Eq)]
pub struct FramePlaces {
    /// Frame `n` is at bytes `ends[n - 1]..ends[n]` of the object.
    ends: Box<[u64]>,
    codecs: Box<[FrameCodec]>,
}

/// A frame of a table that is being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredFrame {
    /// Its codec.
    pub codec: FrameCodec,
    /// Its encoded length in bytes.
    pub bytes: u64,
}

/// One object of a layer in the store.
#[derive(Debug)]
pub struct StoredObject {
    place: StoredLayer,
    frames: OnceLock<FramePlaces>,
}

impl StoredObject {
    /// The object at `place`, of which nothing was fetched yet.
    pub fn at(place: StoredLayer) -> Self {
        Self { place, frames: OnceLock::new() }
    }

    /// Its place.
    pub fn place(&self) -> &StoredLayer {
        &self.place
    }

    /// The places of its frames, once its table was there.
    pub fn frames(&self) -> Option<&FramePlaces> {
        self.frames.get()
    }

    /// Remembers the places of its frames, from a table that the caller has checked.
    pub fn set_frames(&self, frames: FramePlaces) {
        self.frames.get_or_init(|| frames);
    }

    /// The bytes of its table, if the places of its frames are known; `index` is its layer's. None also if it has its table
    /// in an older form.
    pub(crate) fn table(&self, index: &LayerIndex) -> Option<Vec<u8>> {
        let bytes = self.frames()?.table(index);
        self.place.is_table(&bytes).then_some(bytes)
    }
}

impl FramePlaces {
    /// The places of frames that lie one after the other.
    pub(crate) fn of(frames: &[StoredFrame]) -> Self {
        let ends = frames
            .iter()
            .scan(0_u64, |end, frame| {
                *end += frame.bytes;
                Some(*end)
            })
            .collect();
        Self { ends, codecs: frames.iter().map(|frame| frame.codec).collect() }
    }

    /// The bytes of the object that hold `frame`.
    pub fn frame_range(&self, frame: FrameNumber) -> Range<u64> {
        let position = frame.index();
        let start = if position == 0 { 0 } else { self.ends[position - 1] };
        start..self.ends[position]
    }

    /// The codec of `frame`.
    pub fn codec(&self, frame: FrameNumber) -> FrameCodec {
        self.codecs[frame.index()]
    }

    /// The bytes of the table of an object with these frames.
    fn table(&self, index: &LayerIndex) -> Vec<u8> {
        let mut out = Writer::new();
        out.bytes(&MAGIC);
        out.u16(match index.form() {
            IndexForm::DigestsWithoutKey => 2,
            IndexForm::KeyedDigests => 3,
        });
        out.length_prefixed(&index.encode());
        let mut start = 0;
        for (end, codec) in self.ends.iter().zip(&self.codecs) {
            out.u8(codec.code());
            out.varint(end - start);
            start = *end;
        }
        out.into_bytes()
    }
}

impl ObjectTable {
    /// The table of an object that has these frames, in order.
    pub fn new(index: LayerIndex, frames: &[StoredFrame]) -> Self {
        assert_eq!(frames.len(), index.frames(), "the object has each frame of its layer");
        Self { index, places: FramePlaces::of(frames) }
    }

    /// The layer's index.
    pub fn index(&self) -> &LayerIndex {
        &self.index
    }

    /// Places of the layer's frames.
    pub fn places(&self) -> &FramePlaces {
        &self.places
    }

    /// The index and the places.
    pub fn into_parts(self) -> (LayerIndex, FramePlaces) {
        (self.index, self.places)
    }

    /// Bytes of all frames together: where the table begins in the object.
    pub fn frames_bytes(&self) -> u64 {
        self.places.ends.last().copied().unwrap_or(0)
    }

    /// The bytes of the table.
    pub fn encode(&self) -> Vec<u8> {
        self.places.table(&self.index)
    }

    /// Reads a table; `frames_bytes` is what the object holds besides it.
    pub fn decode(bytes: &[u8], frames_bytes: u64) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        reader.expect_bytes("object table magic", &MAGIC)?;
        let form = reader.version("object table version", &FORMS)?;
        let index =
            LayerIndex::decode(reader.length_prefixed("layer index", limits::LAYER_INDEX_BYTES_MAX)?)?;
        if index.form() != form.index() {
            return Err(reader.invalid("layer index", "it is of another version than its table"));
        }
        let (ends, codecs) = read_frames(&mut reader, form, &index)?;
        if ends.last() != Some(&frames_bytes) {
            return Err(reader.invalid("encoded frame lengths", "they do not add up to the object"));
        }
        reader.finish()?;
        Ok(Self { index, places: FramePlaces { ends: ends.into(), codecs: codecs.into() } })
    }
}

/// The frames of a table, in order: their codecs, and where each ends.
fn read_frames(
    reader: &mut Reader<'_>,
    form: Form,
    index: &LayerIndex,
) -> Result<(Vec<u64>, Vec<FrameCodec>), WireError> {
    let (mut ends, mut codecs) = (Vec::with_capacity(index.frames()), Vec::with_capacity(index.frames()));
    let mut end = 0_u64;
    for position in 0..index.frames() {
        let raw = u64_of(frame_bytes(FrameNumber::new(position), index.page_count()));
        let named = match form {
            Form::CodecToldByLength => None,
            Form::CodecNamed | Form::KeyedDigests => Some(read_codec(reader)?),
        };
        let length = reader.varint_at_most("encoded frame length", raw)?;
        let codec = named.unwrap_or(FrameCodec::told_by_length(length, raw));
        if !codec.allows(length, raw) {
            return Err(reader.invalid("encoded frame length", "no frame of its codec is as long"));
        }
        end += length;
        ends.push(end);
        codecs.push(codec);
    }
    Ok((ends, codecs))
}

fn read_codec(reader: &mut Reader<'_>) -> Result<FrameCodec, WireError> {
    let found = reader.u8("frame codec")?;
    let unknown = Problem::UnknownCode { found, known: FrameCodec::KNOWN };
    FrameCodec::of_code(found).ok_or(reader.error("frame codec", unknown))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::FrameDigest;
    use crate::page_set::PageSet;
    use crate::ranked_set::RankedSet;

    /// The table of a layer of 65 pages, whose second frame is of one page.
    fn table(second: StoredFrame) -> ObjectTable {
        let digests = vec![FrameDigest::without_key(b"first"), FrameDigest::without_key(b"second")];
        let index = LayerIndex::new(RankedSet::new(&PageSet::full(65)), digests);
        ObjectTable::new(index, &[StoredFrame { codec: FrameCodec::Zstd, bytes: 700 }, second])
    }

    #[test]
    fn a_table_says_codec_and_place_of_each_frame() {
        let written = table(StoredFrame { codec: FrameCodec::Raw, bytes: 4096 });
        let read = ObjectTable::decode(&written.encode(), 4796).expect("just written");
        assert_eq!(read, written);
        let frames = [0, 1]
            .map(FrameNumber::new)
            .map(|frame| (read.places().codec(frame), read.places().frame_range(frame)));
        assert_eq!(frames, [(FrameCodec::Zstd, 0..700), (FrameCodec::Raw, 700..4796)]);
    }

    #[test]
    fn a_frame_of_an_unknown_codec_or_of_a_length_its_codec_does_not_have_is_refused() {
        let written = table(StoredFrame { codec: FrameCodec::Zstd, bytes: 9 }).encode();
        // Codec and length of the last frame end the table.
        let refused = |codec: u8, length: u8| {
            let (rest, _) = written.split_at(written.len() - 2);
            let bytes = [rest, &[codec, length]].concat();
            ObjectTable::decode(&bytes, 700 + u64::from(length)).expect_err("no table has it").to_string()
        };
        let unknown = refused(2, 9);
        assert!(unknown.starts_with("frame codec at byte"), "{unknown}");
        assert!(
            unknown.contains("code 2 is unknown to this rekindle, which reads 0 (raw) and 1 (zstd)"),
            "{unknown}"
        );
        assert!(refused(0, 9).contains("no frame of its codec is as long"));
    }

    #[test]
    fn a_table_of_an_unknown_version_is_refused_by_name() {
        let mut bytes = table(StoredFrame { codec: FrameCodec::Zstd, bytes: 9 }).encode();
        bytes[4] = 4;
        let refused = ObjectTable::decode(&bytes, 709).expect_err("it is newer").to_string();
        assert!(refused.contains("object table version at byte 4: version 4 is unknown"), "{refused}");
        assert!(refused.contains("which reads versions 1 to 3"), "{refused}");
    }
}
