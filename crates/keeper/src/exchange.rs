//! One request and its answer over a connection to the keeper, within a time limit.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rekindle_kernel::fd_passing;
use rekindle_kernel::wakeup::wait_readable;
use rustix::io::Errno;
use uuid::Uuid;

use super::error::{KeeperError, Refusal};
use super::wire::{ANSWER_BYTES_MAX, Answer, Identified, PROTOCOL};

/// Asks for the keeper's identity.
pub(super) const IDENTIFY: &[u8] = b"{\"request\":\"identify\"}\n";

/// Identity of a keeper. Another instance means that everything that was held is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeeperIdentity {
    /// Its process id.
    pub pid: u32,
    /// Chosen at random when it started.
    pub instance: Uuid,
}

/// True if an answer came, or the connection ended.
pub(super) fn has_come(stream: &UnixStream) -> bool {
    let looked = wait_readable([Some(stream.as_fd())], Some(Duration::ZERO));
    looked.is_ok_and(|[found]| found.readable || found.hung_up)
}

/// Sends a request and takes its answer, until `deadline`; after that nothing more is on its way.
pub(super) fn exchange(
    stream: &UnixStream,
    line: &[u8],
    fds: &[BorrowedFd<'_>],
    deadline: Instant,
) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    stream.set_write_timeout(Some(left_until(deadline)))?;
    // A keeper that refuses to read on has said why, so what it said is read even where writing failed.
    let sent = fd_passing::send(stream, line, fds);
    receive_line(stream, deadline).map_err(|error| sent.err().unwrap_or(error))
}

fn receive_line(stream: &UnixStream, deadline: Instant) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut answer, mut fds) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; 16 << 10];
    while !answer.ends_with(b"\n") {
        stream.set_read_timeout(Some(left_until(deadline)))?;
        let (bytes, more) = fd_passing::receive(stream, &mut buffer, fd_passing::FDS_MAX)?;
        if bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&buffer[..bytes]);
        fds.extend(more);
        if answer.len() > ANSWER_BYTES_MAX || fds.len() > fd_passing::FDS_MAX {
            return Err(invalid("an answer is too long"));
        }
    }
    Ok((answer, fds))
}

/// The time left, as a limit of a socket, which cannot be nothing.
fn left_until(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

/// A new connection, and who is at its other end.
pub(super) fn identified(
    socket: &Path,
    deadline: Instant,
) -> Result<(UnixStream, KeeperIdentity), KeeperError> {
    let failed = |source| KeeperError::Unreachable { socket: socket.to_owned(), source };
    let stream = UnixStream::connect(socket).map_err(failed)?;
    let (answer, _) =
        exchange(&stream, IDENTIFY, &[], deadline).map_err(|error| match listener(&stream) {
            Some(pid) if is_late(&error) => KeeperError::silent(pid),
            Some(_) | None => failed(error),
        })?;
    let answer = serde_json::from_slice(&answer).map_err(|error| failed(invalid(error)))?;
    let Identified { pid, instance, protocol } = match answer {
        Answer::Done(identified) => identified,
        Answer::Refused(refusal) => return Err(refused("identify itself", refusal)),
    };
    if protocol != PROTOCOL {
        return Err(KeeperError::Protocol { socket: socket.to_owned(), theirs: protocol, ours: PROTOCOL });
    }
    Ok((stream, KeeperIdentity { pid, instance }))
}

/// The process that listens at the other end.
fn listener(stream: &UnixStream) -> Option<u32> {
    let peer = rustix::net::sockopt::socket_peercred(stream).ok()?;
    u32::try_from(peer.pid.as_raw_pid()).ok()
}

/// True if the connection was at fault, rather than a keeper that takes too long or too few descriptors here.
pub(super) fn is_broken(error: &io::Error) -> bool {
    let is_short = error.raw_os_error() == Some(Errno::MFILE.raw_os_error());
    !is_short && !is_late(error) && error.kind() != io::ErrorKind::InvalidData
}

/// True if a limit was over.
pub(super) fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

pub(super) fn refused(request: &'static str, refusal: Refusal) -> KeeperError {
    KeeperError::Refused { request, refusal }
}

pub(super) fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
