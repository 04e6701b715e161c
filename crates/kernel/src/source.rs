//! The source of a copy that the kernel does: an address and a length, never read here.

use std::marker::PhantomData;
use std::sync::atomic::AtomicU64;

use crate::page::HUGE_PAGE_BYTES;

/// Readable bytes of this process that live for `'a`, as the source of an install into a guest.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    address: usize,
    bytes: usize,
    owner: PhantomData<&'a [u8]>,
}

/// Two MiB that are never written. As the compiler sees them as mutable they take no room in the program file, and as
/// they are only read they share the kernel's zero page.
#[repr(align(4096))]
struct Zeroes([AtomicU64; HUGE_PAGE_BYTES / 8]);

static ZEROES: Zeroes = Zeroes([const { AtomicU64::new(0) }; HUGE_PAGE_BYTES / 8]);

/// The first of at least [`HUGE_PAGE_BYTES`] bytes that are zero and stay zero.
pub(crate) fn zeroes_address() -> *const u8 {
    ZEROES.0.as_ptr().cast()
}

impl Source<'static> {
    /// `bytes` zeroes, at most [`HUGE_PAGE_BYTES`].
    ///
    /// # Panics
    /// If `bytes` is larger.
    pub fn zeroes(bytes: usize) -> Self {
        assert!(bytes <= HUGE_PAGE_BYTES, "a source of zeroes is at most one huge page long");
        Self { address: zeroes_address().expose_provenance(), bytes, owner: PhantomData }
    }
}

impl<'a> Source<'a> {
    /// The bytes at `address`, which the caller knows to be mapped for `'a`.
    pub(crate) fn of_mapped(address: *const u8, bytes: usize) -> Self {
        Self { address: address.expose_provenance(), bytes, owner: PhantomData }
    }

    /// Length in bytes.
    pub fn bytes(self) -> usize {
        self.bytes
    }

    /// The `bytes` bytes from `offset`.
    ///
    /// # Panics
    /// If they are not all in this source.
    pub fn slice(self, offset: usize, bytes: usize) -> Self {
        let end = offset.checked_add(bytes).expect("a slice ends where addresses do");
        assert!(end <= self.bytes, "a slice lies in its source");
        Self { address: self.address + offset, bytes, owner: PhantomData }
    }

    /// Address of the bytes.
    pub(crate) fn address(self) -> usize {
        self.address
    }
}

impl<'a> From<&'a [u8]> for Source<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::of_mapped(bytes.as_ptr(), bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_that_part_of_its_source() {
        let bytes = [7_u8; 100];
        let source = Source::from(&bytes[..]);
        let slice = source.slice(10, 20);
        assert_eq!(slice.bytes(), 20);
        assert_eq!(slice.address(), source.address() + 10);
        assert_eq!(source.slice(100, 0).bytes(), 0);
    }

    #[test]
    #[should_panic(expected = "a slice lies in its source")]
    fn a_slice_past_its_source_is_refused() {
        Source::from(&[0_u8; 8][..]).slice(4, 5);
    }

    #[test]
    #[should_panic(expected = "a slice ends where addresses do")]
    fn a_slice_whose_end_overflows_is_refused() {
        Source::from(&[0_u8; 8][..]).slice(usize::MAX, 2);
    }

    #[test]
    #[should_panic(expected = "at most one huge page")]
    fn more_zeroes_than_there_are_is_refused() {
        Source::zeroes(HUGE_PAGE_BYTES + 1);
    }

    #[test]
    fn the_zeroes_take_no_room_of_their_own() {
        assert_eq!(zeroes_address().addr() % 4096, 0);
        assert_eq!(Source::zeroes(HUGE_PAGE_BYTES).bytes(), HUGE_PAGE_BYTES);
    }
}
