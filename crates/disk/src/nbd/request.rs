//! Requests: from 28 bytes to a command that can be carried out.

use std::fmt;
use std::ops::Range;

use super::{Agreement, NbdError};
use crate::Access;
use crate::limits::{EXTENTS_MAX, REQUEST_BYTES_MAX};

/// Bytes of a request without its data.
pub(crate) const REQUEST_BYTES: usize = 28;

const MAGIC: u32 = 0x2560_9513;

const FLAG_FUA: u16 = 1 << 0;
const FLAG_NO_HOLE: u16 = 1 << 1;
const FLAG_DF: u16 = 1 << 2;
const FLAG_REQ_ONE: u16 = 1 << 3;
const FLAG_FAST_ZERO: u16 = 1 << 4;

/// A request as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) kind: Kind,
    flags: u16,
    pub(crate) cookie: u64,
    offset: u64,
    length: u32,
}

/// Kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    WriteZeroes,
    BlockStatus,
    /// Nothing that is offered here.
    Unknown,
}

/// A request that was checked: its range lies in the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// In one chunk, or in as many as suit.
    Read {
        range: Range<u64>,
        chunks: Chunks,
    },
    Write {
        range: Range<u64>,
    },
    /// Everything that was answered is safe already.
    Flush,
    Discard {
        range: Range<u64>,
    },
    Zero {
        range: Range<u64>,
        room: Room,
    },
    Status {
        range: Range<u64>,
        extents_max: usize,
    },
}

/// Number of chunks that the answer of a read may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chunks {
    One,
    Any,
}

/// Treatment of the memory behind bytes that are made zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    GivenBack,
    Kept,
}

impl Request {
    /// The request in these bytes; none if they are not one, and nothing that follows can be understood.
    pub(crate) fn decode(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (flags, rest) = rest.split_first_chunk::<2>()?;
        let (kind, rest) = rest.split_first_chunk::<2>()?;
        let (cookie, rest) = rest.split_first_chunk::<8>()?;
        let (offset, rest) = rest.split_first_chunk::<8>()?;
        let (length, _) = rest.split_first_chunk::<4>()?;
        let kind = match u16::from_be_bytes(*kind) {
            0 => Kind::Read,
            1 => Kind::Write,
            2 => Kind::Disconnect,
            3 => Kind::Flush,
            4 => Kind::Trim,
            6 => Kind::WriteZeroes,
            7 => Kind::BlockStatus,
            _ => Kind::Unknown,
        };
        (u32::from_be_bytes(*magic) == MAGIC).then_some(Self {
            kind,
            flags: u16::from_be_bytes(*flags),
            cookie: u64::from_be_bytes(*cookie),
            offset: u64::from_be_bytes(*offset),
            length: u32::from_be_bytes(*length),
        })
    }

    /// Bytes of data that follow it.
    pub(crate) fn data_bytes(&self) -> u32 {
        match self.kind {
            Kind::Write => self.length,
            Kind::Read
            | Kind::Disconnect
            | Kind::Flush
            | Kind::Trim
            | Kind::WriteZeroes
            | Kind::BlockStatus
            | Kind::Unknown => 0,
        }
    }

    /// The command, for a disk of `bytes` bytes.
    pub(crate) fn command(
        &self,
        bytes: u64,
        access: Access,
        agreement: Agreement,
    ) -> Result<Command, NbdError> {
        self.check_flags(agreement)?;
        match self.kind {
            Kind::Read => {
                self.check_length()?;
                let chunks = if self.flags & FLAG_DF != 0 { Chunks::One } else { Chunks::Any };
                Ok(Command::Read { range: self.range(bytes, NbdError::Invalid)?, chunks })
            }
            Kind::Write => {
                check_writable(access)?;
                self.check_length()?;
                Ok(Command::Write { range: self.range(bytes, NbdError::NoSpace)? })
            }
            Kind::Flush => Ok(Command::Flush),
            Kind::Trim => {
                check_writable(access)?;
                Ok(Command::Discard { range: self.range(bytes, NbdError::Invalid)? })
            }
            Kind::WriteZeroes => {
                check_writable(access)?;
                let room = if self.flags & FLAG_NO_HOLE != 0 { Room::Kept } else { Room::GivenBack };
                if room == Room::Kept && self.flags & FLAG_FAST_ZERO != 0 {
                    return Err(NbdError::NotSupported);
                }
                Ok(Command::Zero { range: self.range(bytes, NbdError::NoSpace)?, room })
            }
            Kind::BlockStatus => {
                if self.length == 0 || !agreement.allocation {
                    return Err(NbdError::Invalid);
                }
                let one = self.flags & FLAG_REQ_ONE != 0;
                let extents_max = if one { 1 } else { EXTENTS_MAX };
                Ok(Command::Status { range: self.range(bytes, NbdError::Invalid)?, extents_max })
            }
            Kind::Disconnect | Kind::Unknown => Err(NbdError::Invalid),
        }
    }

    fn check_flags(&self, agreement: Agreement) -> Result<(), NbdError> {
        let own = match self.kind {
            Kind::Read if agreement.structured => FLAG_DF,
            Kind::WriteZeroes => FLAG_NO_HOLE | FLAG_FAST_ZERO,
            Kind::BlockStatus => FLAG_REQ_ONE,
            Kind::Read | Kind::Write | Kind::Disconnect | Kind::Flush | Kind::Trim | Kind::Unknown => 0,
        };
        if self.flags & !(own | FLAG_FUA) == 0 { Ok(()) } else { Err(NbdError::Invalid) }
    }

    fn check_length(&self) -> Result<(), NbdError> {
        if self.length <= REQUEST_BYTES_MAX { Ok(()) } else { Err(NbdError::Invalid) }
    }

    fn range(&self, bytes: u64, beyond: NbdError) -> Result<Range<u64>, NbdError> {
        match self.offset.checked_add(u64::from(self.length)) {
            Some(end) if end <= bytes => Ok(self.offset..end),
            Some(_) | None => Err(beyond),
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Trim => "discard",
            Kind::WriteZeroes => "zeroing",
            Kind::BlockStatus => "query",
            Kind::Flush => return out.write_str("flush"),
            Kind::Disconnect => return out.write_str("end of the connection"),
            Kind::Unknown => return out.write_str("request of an unknown kind"),
        };
        write!(out, "{what} of {} bytes at byte {}", self.length, self.offset)
    }
}

fn check_writable(access: Access) -> Result<(), NbdError> {
    match access {
        Access::ReadWrite => Ok(()),
        Access::ReadOnly => Err(NbdError::NotPermitted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_told_in_words_with_its_range() {
        let request = |kind: u16| {
            let mut bytes = [0; REQUEST_BYTES];
            bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
            bytes[6..8].copy_from_slice(&kind.to_be_bytes());
            bytes[16..24].copy_from_slice(&8192_u64.to_be_bytes());
            bytes[24..].copy_from_slice(&512_u32.to_be_bytes());
            Request::decode(&bytes).expect("it is one").to_string()
        };
        assert_eq!(request(1), "write of 512 bytes at byte 8192");
        assert_eq!(request(3), "flush");
    }
}
