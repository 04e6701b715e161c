//! Reads and writes little-endian formats: every read is bounded and every error gives its position.

use serde::Deserialize;
use thiserror::Error;

use crate::geometry::u64_of;

/// Bytes of the longest varint: 64 bits in groups of 7.
const VARINT_BYTES_MAX: u32 = 10;

/// The fault of an encoding, its field, and its byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{field} at byte {offset}: {problem}")]
pub struct WireError {
    /// The field that could not be read.
    pub field: &'static str,
    /// Start of the field.
    pub offset: usize,
    /// The fault.
    pub problem: Problem,
}

/// Faults of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// The input ends within the field.
    #[error("the input ends too early")]
    Truncated,
    /// The input goes on after its last field.
    #[error("{bytes} bytes follow the last field")]
    Trailing {
        /// Number of bytes that follow.
        bytes: usize,
    },
    /// A number is not in its shortest form, or does not fit 64 bits.
    #[error("the number is not in its one form")]
    NotCanonical,
    /// A number is larger than its limit.
    #[error("{value} is more than {max}")]
    TooLarge {
        /// The number found.
        value: u64,
        /// The largest number allowed.
        max: u64,
    },
    /// The thing is of a version that this program does not read.
    #[error(transparent)]
    Version(UnknownVersion),
    /// A code stands for something that this program does not know.
    #[error("code {found} is unknown to this rekindle, which reads {known}: run a newer one")]
    UnknownCode {
        /// The code found.
        found: u8,
        /// The codes that are read, with what they stand for.
        known: &'static str,
    },
    /// The value contradicts the format or another field.
    #[error("{0}")]
    Invalid(&'static str),
}

/// A version of a stored thing that this program does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("version {found} is unknown to this rekindle, which reads {}: run a newer one", versions(*newest))]
pub struct UnknownVersion {
    /// The version found.
    pub found: u32,
    /// The newest version that is read; all before it are.
    pub newest: u32,
}

impl UnknownVersion {
    /// Checks that `found` is one of the versions from 1 to `newest`.
    pub const fn check(found: u32, newest: u32) -> Result<(), Self> {
        if found >= 1 && found <= newest { Ok(()) } else { Err(Self { found, newest }) }
    }
}

/// The version of a record that is JSON, whatever else is in it.
#[derive(Debug, Deserialize)]
pub(crate) struct Versioned {
    /// The version.
    pub(crate) version: u32,
}

fn versions(newest: u32) -> String {
    if newest == 1 { "version 1".to_owned() } else { format!("versions 1 to {newest}") }
}

/// Reads fields one after another from bytes that are not trusted.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
    field_offset: usize,
}

impl<'a> Reader<'a> {
    /// A reader of `bytes` from their start.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0, field_offset: 0 }
    }

    /// Start of the next field.
    #[must_use]
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// Number of bytes left.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.bytes.len() - self.offset
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, field: &'static str, count: usize) -> Result<&'a [u8], WireError> {
        self.field_offset = self.offset;
        self.take(field, count)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WireError> {
        let bytes = self.bytes(field, N)?;
        Ok(bytes.try_into().expect("as many bytes were asked for"))
    }

    /// The next `count` bytes, as a reader of its own that counts positions as this one does.
    pub fn part(&mut self, field: &'static str, count: usize) -> Result<Self, WireError> {
        let start = self.offset;
        self.bytes(field, count)?;
        Ok(Self { bytes: &self.bytes[..self.offset], offset: start, field_offset: start })
    }

    /// The next byte.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, WireError> {
        self.array(field).map(u8::from_le_bytes)
    }

    /// The next two bytes as a number.
    pub fn u16(&mut self, field: &'static str) -> Result<u16, WireError> {
        self.array(field).map(u16::from_le_bytes)
    }

    /// The next four bytes as a number.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, WireError> {
        self.array(field).map(u32::from_le_bytes)
    }

    /// The next eight bytes as a number.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, WireError> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// The next number in groups of 7 bits, lowest first, in its shortest form.
    pub fn varint(&mut self, field: &'static str) -> Result<u64, WireError> {
        self.field_offset = self.offset;
        let mut value = 0_u64;
        for group in 0..VARINT_BYTES_MAX {
            let [byte] = self.take(field, 1)?.try_into().expect("one byte was asked for");
            let bits = u64::from(byte & 0x7f);
            let shifted = bits << (group * 7);
            if shifted >> (group * 7) != bits || (byte == 0 && group > 0) {
                return Err(self.error(field, Problem::NotCanonical));
            }
            value |= shifted;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.error(field, Problem::NotCanonical))
    }

    /// The next varint, at most `max`.
    pub fn varint_u32(&mut self, field: &'static str, max: u32) -> Result<u32, WireError> {
        let value = self.varint_at_most(field, max.into())?;
        Ok(u32::try_from(value).expect("the largest value allowed has 32 bits"))
    }

    /// The next varint as a size in memory, at most `max`.
    pub fn varint_usize(&mut self, field: &'static str, max: usize) -> Result<usize, WireError> {
        let value = self.varint_at_most(field, u64_of(max))?;
        Ok(usize::try_from(value).expect("the largest value allowed is a size in memory"))
    }

    /// The next varint, at most `max`.
    pub fn varint_at_most(&mut self, field: &'static str, max: u64) -> Result<u64, WireError> {
        let value = self.varint(field)?;
        if value <= max { Ok(value) } else { Err(self.error(field, Problem::TooLarge { value, max })) }
    }

    /// The next bytes: their length as a varint, at most `bytes_max`, then the bytes.
    pub fn length_prefixed(&mut self, field: &'static str, bytes_max: usize) -> Result<&'a [u8], WireError> {
        let count = self.varint_usize(field, bytes_max)?;
        self.bytes(field, count)
    }

    /// Reads the bytes that must stand here.
    pub fn expect_bytes(&mut self, field: &'static str, expected: &[u8]) -> Result<(), WireError> {
        let found = self.bytes(field, expected.len())?;
        if found == expected { Ok(()) } else { Err(self.invalid(field, "the input is of another format")) }
    }

    /// Reads a version and matches it: `forms` are those of version 1 and on, and the one it has is returned.
    pub fn version<F: Copy>(&mut self, field: &'static str, forms: &[F]) -> Result<F, WireError> {
        let found = self.u16(field)?;
        let form = found.checked_sub(1).and_then(|before| forms.get(usize::from(before)));
        let newest = u32::try_from(forms.len()).expect("a format has few versions");
        let unknown = UnknownVersion { found: found.into(), newest };
        form.copied().ok_or(self.error(field, Problem::Version(unknown)))
    }

    /// The next text: its length as a varint, at most `bytes_max`, then UTF-8.
    pub fn text(&mut self, field: &'static str, bytes_max: usize) -> Result<&'a str, WireError> {
        let bytes = self.length_prefixed(field, bytes_max)?;
        std::str::from_utf8(bytes).map_err(|_| self.error(field, Problem::Invalid("the text is not UTF-8")))
    }

    /// Checks that nothing follows the last field.
    pub fn finish(self) -> Result<(), WireError> {
        match self.remaining() {
            0 => Ok(()),
            bytes => Err(WireError {
                field: "end of input",
                offset: self.offset,
                problem: Problem::Trailing { bytes },
            }),
        }
    }

    /// An error about the field read last.
    #[must_use]
    pub const fn error(&self, field: &'static str, problem: Problem) -> WireError {
        WireError { field, offset: self.field_offset, problem }
    }

    /// An error about the field read last: its value cannot be, for this reason.
    #[must_use]
    pub const fn invalid(&self, field: &'static str, reason: &'static str) -> WireError {
        self.error(field, Problem::Invalid(reason))
    }

    fn take(&mut self, field: &'static str, count: usize) -> Result<&'a [u8], WireError> {
        let end = self.offset.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(self.error(field, Problem::Truncated))?;
        let taken = &self.bytes[self.offset..end];
        self.offset = end;
        Ok(taken)
    }
}

/// Writes fields one after another.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// A writer that has written nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    /// Number of bytes written.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True if nothing was written.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Writes bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Writes a byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// Writes a number in two bytes.
    pub fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    /// Writes a number in four bytes.
    pub fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    /// Writes a number in eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    /// Writes a number in groups of 7 bits, lowest first.
    pub fn varint(&mut self, value: u64) {
        let mut rest = value;
        loop {
            let [low, ..] = rest.to_le_bytes();
            rest >>= 7;
            if rest == 0 {
                return self.u8(low & 0x7f);
            }
            self.u8(low | 0x80);
        }
    }

    /// Writes a size in memory as a varint.
    pub fn varint_usize(&mut self, value: usize) {
        self.varint(u64_of(value));
    }

    /// Writes bytes after their length as a varint.
    pub fn length_prefixed(&mut self, bytes: &[u8]) {
        self.varint_usize(bytes.len());
        self.bytes(bytes);
    }

    /// Writes text: its length as a varint, then its bytes.
    pub fn text(&mut self, text: &str) {
        self.length_prefixed(text.as_bytes());
    }

    /// The bytes written.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn varint_bytes(value: u64) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.varint(value);
        writer.into_bytes()
    }

    proptest! {
        #[test]
        fn a_varint_is_read_back(value: u64, shift in 0_u32..64) {
            let value = value >> shift;
            let bytes = varint_bytes(value);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.varint("number"), Ok(value));
            prop_assert_eq!(reader.finish(), Ok(()));
        }

        #[test]
        fn whatever_varint_is_read_has_no_other_form(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            let mut reader = Reader::new(&bytes);
            if let Ok(value) = reader.varint("number") {
                prop_assert_eq!(&varint_bytes(value)[..], &bytes[..reader.offset()]);
            }
        }
    }

    #[test]
    fn an_overlong_varint_is_refused() {
        let not_canonical = |bytes: &[u8]| Reader::new(bytes).varint("number").map_err(|error| error.problem);
        assert_eq!(not_canonical(&[0x80, 0x00]), Err(Problem::NotCanonical));
        assert_eq!(not_canonical(&[0xff, 0x80, 0x00]), Err(Problem::NotCanonical));
        let mut eleven_groups = [0xff; 11];
        eleven_groups[10] = 1;
        assert_eq!(not_canonical(&eleven_groups), Err(Problem::NotCanonical));
        assert_eq!(
            not_canonical(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]),
            Err(Problem::NotCanonical)
        );
        assert_eq!(not_canonical(&varint_bytes(u64::MAX)), Ok(u64::MAX));
    }

    #[test]
    fn an_error_names_the_field_and_where_it_starts() {
        let mut reader = Reader::new(&[1, 2, 0x80, 0x80]);
        assert_eq!(reader.u16("first"), Ok(0x0201));
        let error = reader.varint("second").expect_err("no last group");
        assert_eq!(error, WireError { field: "second", offset: 2, problem: Problem::Truncated });
        assert_eq!(error.to_string(), "second at byte 2: the input ends too early");
    }

    #[test]
    fn a_length_past_the_end_is_refused_without_overflow() {
        let mut reader = Reader::new(&[1, 2, 3]);
        assert!(reader.u8("first").is_ok());
        assert_eq!(reader.bytes("rest", usize::MAX).map_err(|error| error.problem), Err(Problem::Truncated));
        assert_eq!(reader.remaining(), 2);
    }

    #[test]
    fn a_number_past_its_limit_is_refused() {
        let bytes = varint_bytes(u64::from(u32::MAX) + 5);
        let too_large = Err(Problem::TooLarge { value: u64::from(u32::MAX) + 5, max: u32::MAX.into() });
        assert_eq!(Reader::new(&bytes).varint_u32("n", u32::MAX).map_err(|error| error.problem), too_large);
        assert_eq!(Reader::new(&[65]).varint_usize("n", 65), Ok(65));
        assert!(Reader::new(&[65]).varint_usize("n", 64).is_err());
    }

    #[test]
    fn text_that_is_not_utf8_is_refused() {
        assert_eq!(Reader::new(&[1, b'a']).text("name", 1), Ok("a"));
        assert!(Reader::new(&[1, 0xff]).text("name", 1).is_err());
        assert!(Reader::new(&[2, b'a', b'b']).text("name", 1).is_err());
    }

    #[test]
    fn a_version_that_is_not_known_is_refused_by_name_with_those_that_are_read() {
        let read =
            |found: u16, forms: &[char]| Reader::new(&found.to_le_bytes()).version("thing version", forms);
        assert_eq!(read(1, &['a', 'b']), Ok('a'));
        assert_eq!(read(2, &['a', 'b']), Ok('b'));
        let refused = |found, forms| read(found, forms).expect_err("it is unknown").to_string();
        assert_eq!(
            refused(3, &['a', 'b']),
            "thing version at byte 0: version 3 is unknown to this rekindle, which reads versions 1 to 2: run a newer one"
        );
        assert!(refused(0, &['a']).contains("version 0 is unknown to this rekindle, which reads version 1:"));
        assert_eq!(UnknownVersion::check(1, 1), Ok(()));
        assert_eq!(UnknownVersion::check(0, 1), Err(UnknownVersion { found: 0, newest: 1 }));
    }

    #[test]
    fn bytes_after_the_last_field_are_refused() {
        let error = Reader::new(&[0, 0]).finish().expect_err("two bytes follow");
        assert_eq!(error.problem, Problem::Trailing { bytes: 2 });
    }
}
