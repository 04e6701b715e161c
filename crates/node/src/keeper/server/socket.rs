//! The keeper's socket, and the lock that makes it the only one there.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rekindle_kernel::fd_passing;
use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;

/// A socket of this user alone; its file is gone when this is dropped.
#[derive(Debug)]
pub(super) struct Listening {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
}

impl Listening {
    /// Listens at `path`; none if another keeper does.
    pub(super) fn at(path: &Path) -> anyhow::Result<Option<Self>> {
        let lock_path = path.with_extension("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&lock_path);
        let lock = lock.with_context(|| format!("opening {}", lock_path.display()))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(errno) => return Err(errno).with_context(|| format!("locking {}", lock_path.display())),
        }
        let listener = listen(path).with_context(|| format!("listening at {}", path.display()))?;
        Ok(Some(Self { listener, path: path.to_owned(), _lock: lock }))
    }

    /// A client that waits to be let in, if it may be; never waits.
    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept()?;
        let user = fd_passing::peer_user(&stream)?;
        if user != 0 && user != rustix::process::geteuid().as_raw() {
            let why = format!("user {user} may not ask the keeper");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // The lock is still held, so the file is this keeper's own.
        std::fs::remove_file(&self.path).ok();
    }
}

/// Whoever holds the lock may take the place of a socket that a keeper before it left.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let before = rustix::process::umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
