//! The content of a page of the process guest: a pure function of a seed and the page's number.

use rekindle_kernel::PAGE_BYTES;
use serde::{Deserialize, Serialize};

/// The content of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// Every byte is zero.
    Zero,
    /// Content that an operation with seed `seed` writes into page `page`: the seed and the page number, then random
    /// words, then words that repeat every 64 bytes.
    Written {
        /// The seed of the operation that wrote it.
        seed: u64,
        /// The page it was written for.
        page: u32,
    },
}

const WORD_BYTES: usize = 8;
/// Bytes before the repeating half, seed and page number included.
const RANDOM_BYTES: usize = PAGE_BYTES / 2;
/// Period in bytes of the second half.
const REPEATED_BYTES: usize = 64;
/// The step of the counter behind the random words: 2^64 over the golden ratio (Steele, Lea, Flood 2014).
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

impl Content {
    /// The bytes of a page with this content.
    pub fn bytes(self) -> [u8; PAGE_BYTES] {
        let mut bytes = [0; PAGE_BYTES];
        self.fill_bytes(&mut bytes);
        bytes
    }

    /// Fills `page` with this content.
    pub fn fill_bytes(self, page: &mut [u8; PAGE_BYTES]) {
        match self {
            Self::Zero => page.fill(0),
            Self::Written { seed, page: number } => fill_written(seed, number, page),
        }
    }

    /// The first byte of a page with this content.
    pub fn first_byte(self) -> u8 {
        match self {
            Self::Zero => 0,
            Self::Written { seed, .. } => seed.to_le_bytes()[0],
        }
    }

    /// The content of a page, if its bytes are one.
    pub fn recognise(page: &[u8; PAGE_BYTES]) -> Option<Self> {
        let (words, _) = page.as_chunks::<WORD_BYTES>();
        let number = u32::try_from(u64::from_le_bytes(words[1])).ok()?;
        let written = Self::Written { seed: u64::from_le_bytes(words[0]), page: number };
        [written, Self::Zero].into_iter().find(|content| content.bytes() == *page)
    }
}

/// A checksum of a page's bytes, as the guest answers it: CRC-64/NVMe.
pub fn checksum(page: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, page)
}

fn fill_written(seed: u64, number: u32, page: &mut [u8; PAGE_BYTES]) {
    let mut counter = mix(seed ^ mix(u64::from(number)));
    let mut random = || {
        counter = counter.wrapping_add(STEP);
        mix(counter).to_le_bytes()
    };
    let (random_half, repeated_half) = page.split_at_mut(RANDOM_BYTES);
    let (words, _) = random_half.as_chunks_mut::<WORD_BYTES>();
    words.iter_mut().for_each(|word| *word = random());
    words[0] = seed.to_le_bytes();
    words[1] = u64::from(number).to_le_bytes();
    let mut repeated = [0; REPEATED_BYTES];
    repeated.as_chunks_mut::<WORD_BYTES>().0.iter_mut().for_each(|word| *word = random());
    repeated_half.as_chunks_mut::<REPEATED_BYTES>().0.fill(repeated);
}

/// The finaliser of SplitMix64: every output bit depends on every input bit.
#[inline(always)]
pub(super) fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_recognised_as_itself_and_as_nothing_else() {
        let written = Content::Written { seed: 7, page: 9 };
        for content in [written, Content::Zero, Content::Written { seed: u64::MAX, page: u32::MAX }] {
            let bytes = content.bytes();
            assert_eq!(Content::recognise(&bytes), Some(content));
            assert_eq!(bytes[0], content.first_byte());
            let mut other = bytes;
            other[PAGE_BYTES - 1] ^= 1;
            assert_eq!(Content::recognise(&other), None);
            assert_ne!(checksum(&bytes), checksum(&other));
        }
        assert_eq!(Content::recognise(&[0x55; PAGE_BYTES]), None);
    }

    #[test]
    fn half_of_a_page_is_random_and_half_repeats() {
        let bytes = Content::Written { seed: 1, page: 2 }.bytes();
        let (random, repeated) = bytes.split_at(RANDOM_BYTES);
        assert_eq!(repeated[..repeated.len() - REPEATED_BYTES], repeated[REPEATED_BYTES..]);
        let mut words: Vec<_> = random.as_chunks::<WORD_BYTES>().0.to_vec();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), RANDOM_BYTES / WORD_BYTES);
    }
}
