//! Numbers that look random and are the same in every run.

/// A source of such numbers (xorshift64*, Vigna 2014).
pub(crate) struct Random(u64);

impl Random {
    /// The source that starts at `seed`, which is not 0.
    pub(crate) const fn new(seed: u64) -> Self {
        assert!(seed != 0, "a seed of 0 would give zeroes only");
        Self(seed)
    }

    /// The next 64 bits.
    pub(crate) const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: u32) -> u32 {
        let scaled = (u128::from(self.next()) * u128::from(limit)) >> 64;
        u32::try_from(scaled).expect("the product's upper half is below the limit")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_repeat_from_the_same_seed_and_stay_below_the_limit() {
        let take = || {
            let mut random = Random::new(7);
            (0..100).map(|_| random.below(10)).collect::<Vec<_>>()
        };
        assert_eq!(take(), take());
        assert!(take().iter().all(|&number| number < 10));
    }
}
