//! The way a frame's bytes are stored. Each frame of an object has its own, which the object's table names.

use crate::limits;

/// The codec of a stored frame.
///
/// A difference to another frame, and a sealed frame, will be further ones: a program that does not know a codec refuses
/// the table that names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameCodec {
    /// The frame's pages as they are.
    Raw,
    /// A zstd frame, shorter than the pages.
    Zstd,
}

/// A frame as it is stored.
#[derive(Clone, Debug)]
pub struct EncodedFrame {
    /// The codec it was encoded with.
    pub codec: FrameCodec,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Reason that an encoded frame is not the right one.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// It does not decompress.
    #[error("does not decompress: {0}")]
    Zstd(#[from] std::io::Error),
    /// It decodes to another length.
    #[error("decodes to {found} bytes instead of {expected}")]
    Length {
        /// Bytes found.
        found: usize,
        /// Bytes of the frame's pages.
        expected: usize,
    },
}

impl FrameCodec {
    /// The codes that are read, for errors.
    pub(crate) const KNOWN: &'static str = "0 (raw) and 1 (zstd)";

    /// The byte that stands for it.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
        }
    }

    /// The codec that a byte stands for.
    pub(crate) const fn of_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The codec of a frame of the first version of tables, which told it by the length alone.
    pub(crate) const fn told_by_length(encoded: u64, raw: u64) -> Self {
        if encoded == raw { Self::Raw } else { Self::Zstd }
    }

    /// True if a frame whose pages have `raw` bytes can have this encoded length.
    pub(crate) const fn allows(self, encoded: u64, raw: u64) -> bool {
        match self {
            Self::Raw => encoded == raw,
            Self::Zstd => encoded < raw,
        }
    }

    /// Decodes a frame whose pages have `expected` bytes. Its content is not verified here.
    pub fn decode(self, encoded: &[u8], expected: usize) -> Result<Vec<u8>, FrameError> {
        let raw = match self {
            Self::Raw => encoded.to_vec(),
            Self::Zstd => zstd::bulk::decompress(encoded, expected)?,
        };
        if raw.len() == expected { Ok(raw) } else { Err(FrameError::Length { found: raw.len(), expected }) }
    }
}

impl EncodedFrame {
    /// Encodes one frame for the store, with the codec that makes it shortest.
    pub fn of(raw: &[u8]) -> std::io::Result<Self> {
        let packed = zstd::bulk::compress(raw, limits::ZSTD_LEVEL)?;
        Ok(if packed.len() < raw.len() {
            Self { codec: FrameCodec::Zstd, bytes: packed }
        } else {
            Self { codec: FrameCodec::Raw, bytes: raw.to_vec() }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::u64_of;

    #[test]
    fn a_frame_is_decoded_by_its_codec_and_never_by_its_length() {
        let compressible = vec![7; 4096];
        let mut noise = vec![0; 4096];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        for (raw, codec) in [(&compressible, FrameCodec::Zstd), (&noise, FrameCodec::Raw)] {
            let encoded = EncodedFrame::of(raw).expect("zstd has memory");
            assert_eq!(encoded.codec, codec);
            assert!(codec.allows(u64_of(encoded.bytes.len()), u64_of(raw.len())));
            assert_eq!(&encoded.codec.decode(&encoded.bytes, raw.len()).expect("just encoded"), raw);
        }
        // As long as its pages, but not them.
        assert!(matches!(FrameCodec::Zstd.decode(&noise, noise.len()), Err(FrameError::Zstd(_))));
        let short = FrameCodec::Raw.decode(&noise[1..], noise.len());
        assert!(matches!(short, Err(FrameError::Length { found: 4095, expected: 4096 })));
    }

    #[test]
    fn a_code_stands_for_the_codec_that_has_it() {
        let known: Vec<u8> = (0..=u8::MAX)
            .filter(|code| FrameCodec::of_code(*code).is_some_and(|codec| codec.code() == *code))
            .collect();
        assert_eq!(known, [0, 1]);
        assert!(known.iter().all(|code| FrameCodec::KNOWN.contains(&code.to_string())));
    }
}
