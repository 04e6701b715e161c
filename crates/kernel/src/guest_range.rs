//! A range of addresses in the address space of the process whose memory is served.

use crate::number::word;
use crate::page::PAGE_BYTES;

/// Bytes `start..start + bytes` of some process's address space; a number, never dereferenced here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuestRange {
    /// Address of the first byte.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl GuestRange {
    /// The range from `start`, `bytes` long.
    pub const fn new(start: u64, bytes: u64) -> Self {
        Self { start, bytes }
    }

    /// The small page that holds `address`.
    pub const fn page_at(address: u64) -> Self {
        Self { start: address & !(word(PAGE_BYTES) - 1), bytes: word(PAGE_BYTES) }
    }

    /// The address after the last byte, at most the highest address.
    pub const fn end(self) -> u64 {
        self.start.saturating_add(self.bytes)
    }

    /// True if `address` lies in the range.
    pub const fn contains(self, address: u64) -> bool {
        address >= self.start && address < self.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_would_pass_the_last_address_ends_there() {
        let range = GuestRange::new(u64::MAX - 1, 4096);
        assert_eq!(range.end(), u64::MAX);
        assert!(range.contains(u64::MAX - 1));
        assert!(!range.contains(0));
    }

    #[test]
    fn the_page_of_an_address_starts_below_it() {
        assert_eq!(GuestRange::page_at(0x1fff), GuestRange::new(0x1000, 4096));
        assert_eq!(GuestRange::page_at(0x2000), GuestRange::new(0x2000, 4096));
    }
}
