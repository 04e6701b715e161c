//! Damage to bytes, as by a bad disk, a broken peer or an attacker; the same for the same seed.

use crate::random::Random;

/// A source of damage that follows from its seed alone.
#[derive(Debug, Clone)]
pub struct Damage(Random);

impl Damage {
    /// The damage of this seed.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(Random::new(seed))
    }

    /// A copy of `bytes` with one to four kinds of damage; `others` are inputs to splice it with.
    #[must_use]
    pub fn to(&mut self, bytes: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
        let mut damaged = bytes.to_vec();
        for _ in 0..=self.below(4) {
            match self.below(7) {
                0 => self.flip_bits(&mut damaged),
                1 => self.overwrite(&mut damaged),
                2 => damaged.truncate(self.below(damaged.len() + 1)),
                3 => self.insert(&mut damaged),
                4 => self.remove(&mut damaged),
                5 => self.repeat(&mut damaged),
                _ => self.splice(&mut damaged, others),
            }
        }
        damaged
    }

    /// A number below `limit`, or 0 if that is 0.
    fn below(&mut self, limit: usize) -> usize {
        if limit == 0 { 0 } else { self.0.position(limit) }
    }

    fn flip_bits(&mut self, bytes: &mut [u8]) {
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            let bit = self.below(8);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << bit;
            }
        }
    }

    /// Writes extreme values where a length, a count or a token may be.
    fn overwrite(&mut self, bytes: &mut [u8]) {
        let value = [0x00, 0x01, 0x7f, 0x80, 0xfe, 0xff][self.below(6)];
        let (start, end) = self.range(bytes.len(), 12);
        bytes[start..end].fill(value);
    }

    fn insert(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len() + 1);
        let inserted: Vec<u8> = (0..=self.below(8)).map(|_| self.0.number().to_le_bytes()[0]).collect();
        bytes.splice(at..at, inserted);
    }

    fn remove(&mut self, bytes: &mut Vec<u8>) {
        let (start, end) = self.range(bytes.len(), 40);
        bytes.splice(start..end, []);
    }

    fn repeat(&mut self, bytes: &mut Vec<u8>) {
        let (start, end) = self.range(bytes.len(), 40);
        let repeated = bytes[start..end].to_vec();
        bytes.splice(end..end, repeated);
    }

    /// Replaces the end by that of another input.
    fn splice(&mut self, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
        let chosen = self.below(others.len());
        if let Some(other) = others.get(chosen) {
            bytes.truncate(self.below(bytes.len() + 1));
            bytes.extend_from_slice(&other[self.below(other.len() + 1)..]);
        }
    }

    /// A range of at most `longest` bytes within `bytes` bytes.
    fn range(&mut self, bytes: usize, longest: usize) -> (usize, usize) {
        let start = self.below(bytes);
        (start, start + self.below(longest.min(bytes - start) + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_does_the_same_damage() {
        let others = [vec![7; 90], vec![]];
        let history = |seed| {
            let mut damage = Damage::seeded(seed);
            (0..500).map(|_| damage.to(&[1, 2, 3, 4, 5], &others)).collect::<Vec<_>>()
        };
        assert_eq!(history(3), history(3));
        assert_ne!(history(3), history(4));
    }

    #[test]
    fn no_bytes_can_be_damaged_too() {
        let mut damage = Damage::seeded(1);
        assert!((0..500).any(|_| !damage.to(&[], &[]).is_empty()));
    }
}
