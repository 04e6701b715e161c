//! The lossless conversions between sizes in memory and the kernel's 64-bit words.

/// A size or address as the kernel's 64-bit word.
#[expect(
    clippy::as_conversions,
    reason = "usize is 64 bits wide on the one architecture this crate compiles for"
)]
pub(crate) const fn word(size: usize) -> u64 {
    size as u64
}

/// A kernel's 64-bit word as a size or address.
#[expect(
    clippy::as_conversions,
    reason = "usize is 64 bits wide on the one architecture this crate compiles for"
)]
pub(crate) const fn size(word: u64) -> usize {
    word as usize
}

/// A 32-bit kernel constant as the 64-bit word it is used as.
#[expect(clippy::as_conversions, reason = "widening; From is not const")]
pub(crate) const fn wide(constant: u32) -> u64 {
    constant as u64
}
