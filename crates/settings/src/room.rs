//! An amount of a disk, as settings say it: a size, a share, or none.

use std::fmt;

use bytesize::ByteSize;

/// An amount of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// None: no bound.
    None,
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the disk.
    Share(u8),
}

impl Room {
    /// Its bytes on a disk of this size; none without a bound.
    pub fn on_disk_of(self, disk_bytes: u64) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Bytes(bytes) => Some(bytes),
            Self::Share(percent) => Some(disk_bytes / 100 * u64::from(percent)),
        }
    }
}

impl fmt::Display for Room {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => out.write_str("0"),
            Self::Bytes(bytes) => ByteSize::b(*bytes).fmt(out),
            Self::Share(percent) => write!(out, "{percent}%"),
        }
    }
}
