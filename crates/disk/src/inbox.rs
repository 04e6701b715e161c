//! Bytes that a client has sent and that were not handled yet.

use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;

use super::limits;
use super::nbd::request::{REQUEST_BYTES, Request};

/// Bytes read from a connection: requests, each with its data.
#[derive(Debug)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; 2 * limits::READ_AHEAD_BYTES], start: 0, end: 0 }
    }

    /// The next request; none where the client has closed the connection between two of them.
    pub(super) fn request(&mut self, stream: &UnixStream) -> io::Result<Option<Request>> {
        if self.start == self.end && !self.read_some(stream, REQUEST_BYTES)? {
            return Ok(None);
        }
        self.fill(stream, REQUEST_BYTES)?;
        let bytes = self.bytes[self.start..].first_chunk().expect("it was filled to that");
        let request = Request::decode(bytes);
        let request = request
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a client's request is none"))?;
        self.start += REQUEST_BYTES;
        Ok(Some(request))
    }

    /// The next `count` bytes.
    pub(super) fn data(&mut self, stream: &UnixStream, count: usize) -> io::Result<&[u8]> {
        self.fill(stream, count)?;
        let start = self.start;
        self.start += count;
        Ok(&self.bytes[start..self.start])
    }

    /// Throws the next `count` bytes away.
    pub(super) fn skip(&mut self, stream: &UnixStream, count: usize) -> io::Result<()> {
        let mut left = count;
        while left > 0 {
            if self.start == self.end && !self.read_some(stream, 1)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let here = left.min(self.end - self.start);
            self.start += here;
            left -= here;
        }
        Ok(())
    }

    /// True if a request is here with all its data.
    pub(super) fn has_request(&self) -> bool {
        let here = &self.bytes[self.start..self.end];
        let request = here.first_chunk().and_then(Request::decode);
        request.is_some_and(|request| {
            here.len() - REQUEST_BYTES >= usize::try_from(request.data_bytes()).expect("64 bits")
        })
    }

    /// Forgets the memory of a large request that is done.
    pub(super) fn shrink(&mut self) {
        if self.start == self.end && self.bytes.len() > limits::BUFFER_BYTES_KEPT {
            *self = Self::new();
        }
    }

    /// Reads until `count` bytes are here.
    fn fill(&mut self, stream: &UnixStream, count: usize) -> io::Result<()> {
        while self.end - self.start < count {
            if !self.read_some(stream, count)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Reads once towards `count` bytes from the start on; false at the end of the stream. Of a long stretch no byte more
    /// is read than it has, and the buffer rather grows a little than that bytes are moved.
    fn read_some(&mut self, stream: &UnixStream, count: usize) -> io::Result<bool> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        let until = self.start + count.max(limits::READ_AHEAD_BYTES);
        if until > self.bytes.len() && self.start > limits::READ_AHEAD_BYTES {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let until = self.start + count.max(limits::READ_AHEAD_BYTES);
        if until > self.bytes.len() {
            self.bytes.resize(until, 0);
        }
        loop {
            match (&mut &*stream).read(&mut self.bytes[self.end..until]) {
                Ok(read) => {
                    self.end += read;
                    return Ok(read > 0);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
