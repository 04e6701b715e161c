//! Sends and receives open files over a unix stream socket, and identifies the process at its other end.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Most descriptors in one message (SCM_MAX_FD, net/scm.h).
pub const FDS_MAX: usize = 253;

const ROOM: usize = rustix::cmsg_space!(ScmRights(FDS_MAX));

/// Sends all of `bytes`, at least one, and `fds`, at most [`FDS_MAX`], with the first byte.
pub fn send(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.is_empty() || fds.len() > FDS_MAX {
        let why = "descriptors travel beside at least one byte, at most 253 at a time";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let mut room = [MaybeUninit::uninit(); ROOM];
    let mut control = SendAncillaryBuffer::new(&mut room);
    if !fds.is_empty() {
        let fits = control.push(SendAncillaryMessage::ScmRights(fds));
        assert!(fits, "the room is made for as many descriptors as were checked for");
    }
    let mut sent = 0;
    while sent < bytes.len() {
        let slices = [IoSlice::new(&bytes[sent..])];
        match rustix::net::sendmsg(stream, &slices, &mut control, SendFlags::NOSIGNAL) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(more) => {
                sent += more;
                control.clear();
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Does one read: the number of bytes, 0 at the end of the stream, and the first `fds_max` descriptors sent with them.
///
/// Descriptors close on exec; those beyond `fds_max` are closed. If the kernel dropped some, since this process may
/// open no more, all are closed and the error is EMFILE.
pub fn receive(stream: &UnixStream, buffer: &mut [u8], fds_max: usize) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut room = [MaybeUninit::uninit(); ROOM];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = loop {
        match rustix::net::recvmsg(stream, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            fds.extend(more);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(rustix::io::Errno::MFILE.into());
    }
    fds.truncate(fds_max);
    Ok((received.bytes, fds))
}

/// The process that made the connection at the other end; an error if its pid is not visible here.
pub fn peer_pid(stream: &UnixStream) -> io::Result<u32> {
    match u32::try_from(peer(stream)?.pid) {
        Ok(pid) if pid != 0 => Ok(pid),
        _ => Err(io::Error::new(io::ErrorKind::NotFound, "the peer's pid is hidden by its pid namespace")),
    }
}

/// The user of the process at the other end when it made the connection.
pub fn peer_user(stream: &UnixStream) -> io::Result<u32> {
    Ok(peer(stream)?.uid)
}

fn peer(stream: &UnixStream) -> io::Result<libc::ucred> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).expect("twelve bytes");
    // SAFETY: `peer` has the `length` writable bytes that SO_PEERCRED fills. Not by rustix, to which no pid is 0.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(peer) } else { Err(io::Error::last_os_error()) }
}
