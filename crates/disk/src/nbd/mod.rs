//! The NBD protocol: fixed newstyle handshake, structured replies, block status.
//!
//! Source of every number: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>; all big-endian.

pub(super) mod handshake;
pub(super) mod options;
pub(super) mod outbox;
pub(super) mod request;

/// The one export's name, for clients that name none.
pub(super) const EXPORT_NAME: &[u8] = b"";

/// The one context of block status.
pub(super) const ALLOCATION: &[u8] = b"base:allocation";

/// The number under which it is known to clients.
pub(super) const ALLOCATION_ID: u32 = 1;

/// Options that a client and this server agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Agreement {
    /// Reads are answered in chunks.
    pub(super) structured: bool,
    /// The allocation of the disk may be asked for.
    pub(super) allocation: bool,
}

/// An error in an answer to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NbdError {
    NotPermitted,
    Io,
    NoMemory,
    Invalid,
    NoSpace,
    NotSupported,
}

impl NbdError {
    pub(super) const fn number(self) -> u32 {
        match self {
            Self::NotPermitted => 1,
            Self::Io => 5,
            Self::NoMemory => 12,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::NotSupported => 95,
        }
    }
}

impl From<&std::io::Error> for NbdError {
    fn from(error: &std::io::Error) -> Self {
        match rustix::io::Errno::from_io_error(error) {
            Some(rustix::io::Errno::NOSPC) => Self::NoSpace,
            Some(rustix::io::Errno::NOMEM) => Self::NoMemory,
            Some(rustix::io::Errno::PERM) => Self::NotPermitted,
            Some(_) | None => Self::Io,
        }
    }
}
