//! Choices that a seed decides.

/// A generator of choices: SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Choices of a new seed, or of the one in `REKINDLE_SEED`; says which.
    pub(crate) fn of_this_run(what: &str) -> Self {
        let seed = match std::env::var("REKINDLE_SEED") {
            Ok(seed) => seed.parse().expect("REKINDLE_SEED is a number"),
            Err(_) => uuid::Uuid::now_v7().as_u64_pair().1,
        };
        eprintln!("{what}: REKINDLE_SEED={seed} replays this run");
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// An index of something that has `count` members.
    pub(crate) fn index(&mut self, count: usize) -> usize {
        let count = u64::try_from(count).expect("64 bits");
        usize::try_from(self.below(count)).expect("64 bits")
    }

    /// A number below a hundred.
    pub(crate) fn percent(&mut self) -> u8 {
        u8::try_from(self.below(100)).expect("below a hundred")
    }
}
