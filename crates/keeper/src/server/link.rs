//! A client's connection: a request that arrives in parts, and answers that go whole or not at all.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rekindle_kernel::fd_passing;
use rustix::io::Errno;
use serde::Serialize;

use crate::error::Refusal;
use crate::wire::{Answer, FDS_PER_KEY_MAX, REQUEST_BYTES_MAX, REQUEST_LIMIT};

/// A connection. The received part of a request is bounded, and goes when the client goes.
#[derive(Debug)]
pub(super) struct Link {
    stream: UnixStream,
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    begun: Option<Instant>,
    used: Instant,
    /// The process at its other end.
    peer: u32,
    /// True once a whole request came over it.
    has_asked: bool,
}

/// Result of one read.
#[derive(Debug)]
pub(super) enum Arrival {
    /// The request is not whole yet.
    Part,
    /// A request and its descriptors.
    Whole(Vec<u8>, Vec<OwnedFd>),
    /// Bytes that cannot become a request any more.
    Wrong(Refusal),
    /// The client is gone.
    Gone,
}

/// An answer to a client in one message.
#[derive(Debug)]
pub(super) struct Letter<'a> {
    line: Vec<u8>,
    fds: Vec<BorrowedFd<'a>>,
}

impl Link {
    pub(super) fn new(stream: UnixStream, peer: u32) -> Self {
        let (begun, used, has_asked) = (None, Instant::now(), false);
        Self { stream, bytes: Vec::new(), fds: Vec::new(), begun, used, peer, has_asked }
    }

    /// Reads once.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> Arrival {
        self.used = Instant::now();
        match fd_passing::receive(&self.stream, buffer, fd_passing::FDS_MAX) {
            Ok((0, _)) => return Arrival::Gone,
            Ok((bytes, fds)) => {
                self.bytes.extend_from_slice(&buffer[..bytes]);
                self.fds.extend(fds);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Arrival::Part,
            Err(error) if error.raw_os_error() == Some(Errno::MFILE.raw_os_error()) => {
                return too_much("descriptors open in the keeper", open_files());
            }
            Err(_) => return Arrival::Gone,
        }
        self.begun.get_or_insert(self.used);
        if self.fds.len() > 2 * FDS_PER_KEY_MAX {
            return too_much("descriptors beside a request", 2 * FDS_PER_KEY_MAX);
        }
        if self.bytes.len() > REQUEST_BYTES_MAX {
            return too_much("bytes of a request", REQUEST_BYTES_MAX);
        }
        match self.bytes.iter().position(|byte| *byte == b'\n') {
            None => Arrival::Part,
            Some(end) if end + 1 == self.bytes.len() => {
                self.begun = None;
                self.has_asked = true;
                Arrival::Whole(std::mem::take(&mut self.bytes), std::mem::take(&mut self.fds))
            }
            Some(_) => Arrival::Wrong(Refusal::Malformed { why: "one request at a time".to_owned() }),
        }
    }

    /// Sends a letter; an error if not all of it goes at once, as where the client does not read its answers.
    pub(super) fn send(&self, letter: &Letter<'_>) -> io::Result<()> {
        fd_passing::send(&self.stream, &letter.line, &letter.fds)
    }

    /// Time left for the request that has begun to arrive; none if none has.
    pub(super) fn time_left(&self, now: Instant) -> Option<Duration> {
        self.begun.map(|begun| (begun + REQUEST_LIMIT).saturating_duration_since(now))
    }

    /// The process at its other end.
    pub(super) fn peer(&self) -> u32 {
        self.peer
    }

    /// Order in which links are kept: those that carried a request before all others, then the one that was heard of
    /// last.
    pub(super) fn worth(&self) -> (bool, Instant) {
        (self.has_asked, self.used)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl<'a> Letter<'a> {
    pub(super) fn done<T: Serialize>(what: T) -> Self {
        Self::of(&Answer::Done(what), Vec::new())
    }

    pub(super) fn done_with<T: Serialize>(what: T, fds: Vec<BorrowedFd<'a>>) -> Self {
        Self::of(&Answer::Done(what), fds)
    }

    pub(super) fn refused(refusal: Refusal) -> Self {
        Self::of(&Answer::<()>::Refused(refusal), Vec::new())
    }

    fn of<T: Serialize>(answer: &Answer<T>, fds: Vec<BorrowedFd<'a>>) -> Self {
        let mut line = serde_json::to_vec(answer).expect("answers are plain data with text for keys");
        line.push(b'\n');
        Self { line, fds }
    }
}

fn too_much(what: &str, max: usize) -> Arrival {
    Arrival::Wrong(Refusal::TooMuch { what: what.to_owned(), max: u64::try_from(max).unwrap_or(u64::MAX) })
}

fn open_files() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}
