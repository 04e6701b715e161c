//! Answers in the bytes that are sent, gathered until it is worth a system call.

use super::{ALLOCATION_ID, NbdError};
use crate::content::Extent;
use crate::limits::BUFFER_BYTES_KEPT;

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;

const CHUNK_DONE: u16 = 1;

const CHUNK_NONE: u16 = 0;
const CHUNK_DATA: u16 = 1;
const CHUNK_HOLE: u16 = 2;
const CHUNK_STATUS: u16 = 5;
const CHUNK_ERROR: u16 = 0x8001;

const STATUS_HOLE: u32 = 1;
const STATUS_ZERO: u32 = 2;

/// Answers that are not sent yet.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Longer than what is used, so that room for data is made zero only once.
    bytes: Vec<u8>,
    used: usize,
}

/// A place in the outbox to return to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place(usize);

/// Position of a chunk in its answer: the last or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    Last,
    NotLast,
}

impl Outbox {
    /// The bytes to be sent.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    /// Forgets what was sent, and the memory of large answers.
    pub(crate) fn clear(&mut self) {
        self.used = 0;
        if self.bytes.len() > BUFFER_BYTES_KEPT {
            self.bytes = Vec::new();
        }
    }

    /// Start of the next answer.
    pub(crate) fn place(&self) -> Place {
        Place(self.used)
    }

    /// Takes back everything since `place`.
    pub(crate) fn return_to(&mut self, place: Place) {
        self.used = place.0;
    }

    /// An answer without data.
    pub(crate) fn simple(&mut self, cookie: u64, error: Option<NbdError>) {
        self.put(&SIMPLE_MAGIC.to_be_bytes());
        self.put(&error.map_or(0, NbdError::number).to_be_bytes());
        self.put(&cookie.to_be_bytes());
    }

    /// Room for data, as it is read; holds any bytes until then.
    pub(crate) fn data(&mut self, count: usize) -> &mut [u8] {
        let start = self.used;
        self.used += count;
        if self.used > self.bytes.len() {
            self.bytes.resize(self.used, 0);
        }
        &mut self.bytes[start..self.used]
    }

    /// The front of a chunk of `count` bytes of data from `offset` on; the data comes next.
    pub(crate) fn data_chunk(&mut self, cookie: u64, position: Position, offset: u64, count: u32) {
        self.chunk(cookie, position, CHUNK_DATA, 8 + count);
        self.put(&offset.to_be_bytes());
    }

    /// A chunk that says that `count` bytes from `offset` on are zero.
    pub(crate) fn hole_chunk(&mut self, cookie: u64, position: Position, offset: u64, count: u32) {
        self.chunk(cookie, position, CHUNK_HOLE, 12);
        self.put(&offset.to_be_bytes());
        self.put(&count.to_be_bytes());
    }

    /// A last chunk without content.
    pub(crate) fn empty_chunk(&mut self, cookie: u64) {
        self.chunk(cookie, Position::Last, CHUNK_NONE, 0);
    }

    /// A last chunk that says why there is no answer.
    pub(crate) fn error_chunk(&mut self, cookie: u64, error: NbdError) {
        self.chunk(cookie, Position::Last, CHUNK_ERROR, 6);
        self.put(&error.number().to_be_bytes());
        self.put(&0_u16.to_be_bytes());
    }

    /// The allocation of stretches.
    pub(crate) fn status_chunk(&mut self, cookie: u64, extents: &[Extent]) {
        let bytes = u32::try_from(4 + 8 * extents.len()).expect("extents are limited");
        self.chunk(cookie, Position::Last, CHUNK_STATUS, bytes);
        self.put(&ALLOCATION_ID.to_be_bytes());
        for extent in extents {
            let flags = if extent.is_zero { STATUS_HOLE | STATUS_ZERO } else { 0 };
            let bytes = u32::try_from(extent.bytes).expect("an extent is not longer than its request");
            self.put(&bytes.to_be_bytes());
            self.put(&flags.to_be_bytes());
        }
    }

    fn chunk(&mut self, cookie: u64, position: Position, kind: u16, bytes: u32) {
        let flags = match position {
            Position::Last => CHUNK_DONE,
            Position::NotLast => 0,
        };
        self.put(&CHUNK_MAGIC.to_be_bytes());
        self.put(&flags.to_be_bytes());
        self.put(&kind.to_be_bytes());
        self.put(&cookie.to_be_bytes());
        self.put(&bytes.to_be_bytes());
    }

    fn put(&mut self, bytes: &[u8]) {
        self.data(bytes.len()).copy_from_slice(bytes);
    }
}
