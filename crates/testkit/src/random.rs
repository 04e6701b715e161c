//! Pseudo-random numbers that follow from a seed, the same on every machine.

/// A sequence of pseudo-random numbers.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number of the sequence: SplitMix64.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u32) -> u32 {
        u32::try_from(self.number() % u64::from(end)).expect("below a u32")
    }

    /// A position in a sequence of `length` items, at least one.
    pub fn position(&mut self, length: usize) -> usize {
        usize::try_from(self.number() % u64::try_from(length).expect("64 bits")).expect("below a usize")
    }

    /// True in `share` percent of the calls.
    pub fn percent(&mut self, share: u32) -> bool {
        self.below(100) < share
    }

    /// Fills `into` with bytes that do not compress.
    pub fn fill(&mut self, into: &mut [u8]) {
        for chunk in into.chunks_mut(8) {
            chunk.copy_from_slice(&self.number().to_le_bytes()[..chunk.len()]);
        }
    }
}
