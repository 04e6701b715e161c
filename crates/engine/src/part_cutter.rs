//! Cuts the bytes of an object into parts of one length, without copying them.

use bytes::{Buf as _, Bytes};
use object_store::PutPayload;

use crate::object::StoredFrame;

/// Cuts an object, from one of its parts on.
#[derive(Debug)]
pub(crate) struct PartCutter {
    part_bytes: usize,
    /// Bytes that come first and belong to the part before.
    skipped: usize,
    /// Number of the part that is being filled.
    number: u32,
    pieces: Vec<Bytes>,
    bytes: usize,
    frames: Vec<StoredFrame>,
}

/// A part of an object.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// Its number, from 0 on.
    pub(crate) number: u32,
    /// Its bytes.
    pub(crate) payload: PutPayload,
    /// The frames that end in it.
    pub(crate) frames: Vec<StoredFrame>,
}

impl PartCutter {
    /// Cuts parts of `part_bytes`, the first of which has this number; `skipped` bytes before it are dropped.
    pub(crate) fn new(part_bytes: usize, number: u32, skipped: usize) -> Self {
        Self { part_bytes, skipped, number, pieces: Vec::new(), bytes: 0, frames: Vec::new() }
    }

    /// Adds the next bytes, which are those of `frame` if there is one; the parts that are full by that.
    pub(crate) fn push(&mut self, mut bytes: Bytes, mut frame: Option<StoredFrame>) -> Vec<Part> {
        let skipped = self.skipped.min(bytes.len());
        self.skipped -= skipped;
        bytes.advance(skipped);
        let mut full = Vec::new();
        loop {
            let piece = bytes.split_to(bytes.len().min(self.part_bytes - self.bytes));
            self.bytes += piece.len();
            self.pieces.push(piece);
            if bytes.is_empty() {
                self.frames.extend(frame.take());
            }
            if self.bytes < self.part_bytes {
                return full;
            }
            full.push(self.take());
            if bytes.is_empty() {
                return full;
            }
        }
    }

    /// The last part, which may be shorter; none if the object ends with a full one.
    pub(crate) fn end(mut self) -> Option<Part> {
        (self.bytes > 0).then(|| self.take())
    }

    fn take(&mut self) -> Part {
        let payload = std::mem::take(&mut self.pieces).into_iter().collect();
        let part = Part { number: self.number, payload, frames: std::mem::take(&mut self.frames) };
        self.number += 1;
        self.bytes = 0;
        part
    }
}

impl Part {
    /// The BLAKE3 hash of its bytes.
    pub(crate) fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for piece in &self.payload {
            hasher.update(piece);
        }
        *hasher.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame_codec::FrameCodec;
    use crate::geometry::u64_of;

    /// The parts of an object that has frames of these lengths and one byte after them, from one of its parts on.
    fn cut(lengths: &[usize], part_bytes: usize, number: u32, first: usize, skipped: usize) -> Vec<Part> {
        let mut cutter = PartCutter::new(part_bytes, number, skipped);
        let mut parts = Vec::new();
        for (frame, length) in lengths.iter().enumerate().skip(first) {
            let content = Bytes::from(vec![u8::try_from(frame).expect("few frames"); *length]);
            let stored = StoredFrame { codec: FrameCodec::Zstd, bytes: u64_of(*length) };
            parts.extend(cutter.push(content, Some(stored)));
        }
        parts.extend(cutter.push(Bytes::from_static(b"t"), None));
        parts.extend(cutter.end());
        parts
    }

    fn content(parts: &[Part]) -> Vec<u8> {
        parts.iter().flat_map(|part| part.payload.iter().flatten().copied().collect::<Vec<_>>()).collect()
    }

    proptest! {
        #[test]
        fn parts_are_the_object_in_equal_pieces_and_can_be_cut_again_from_any_of_them(
            lengths in prop::collection::vec(1_usize..40, 0..20),
            part_bytes in 1_usize..50,
        ) {
            let parts = cut(&lengths, part_bytes, 0, 0, 0);
            let whole: Vec<u8> = lengths.iter().enumerate()
                .flat_map(|(frame, length)| vec![u8::try_from(frame).expect("few"); *length])
                .chain(*b"t")
                .collect();
            prop_assert_eq!(content(&parts), whole);
            let (last, full) = parts.split_last().expect("one byte at least");
            prop_assert!(full.iter().all(|part| part.payload.content_length() == part_bytes));
            prop_assert!(last.payload.content_length() <= part_bytes);
            let mut frames_before = 0;
            for (number, part) in parts.iter().enumerate() {
                let before: usize = lengths[..frames_before].iter().sum();
                let again =
                    cut(&lengths, part_bytes, part.number, frames_before, number * part_bytes - before);
                prop_assert_eq!(again.len(), parts.len() - number);
                for (again, part) in again.iter().zip(&parts[number..]) {
                    prop_assert_eq!(
                        (again.number, again.digest(), &again.frames),
                        (part.number, part.digest(), &part.frames)
                    );
                }
                frames_before += part.frames.len();
            }
        }
    }
}
