//! The keeper's socket, and the lock that makes it the only one there.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rekindle_engine::private;
use rekindle_kernel::fd_passing;
use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;

/// A socket of this user alone; its file is gone when this is dropped.
#[derive(Debug)]
pub(super) struct Listening {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket's file.
    file: (u64, u64),
    /// Locked as long as it is open.
    lock: File,
}

/// Longest wait for a lock: a child that a killed keeper had just forked has it until it runs its own program.
const FORKED_LIMIT: Duration = Duration::from_secs(2);
/// Time between two tries to lock.
const FORKED_LOOK: Duration = Duration::from_millis(5);

impl Listening {
    /// Listens at `path`; none if another keeper does.
    pub(super) fn at(path: &Path) -> anyhow::Result<Option<Self>> {
        lock_of(path)?.map(|lock| Self::with(lock, path)).transpose()
    }

    fn with(lock: File, path: &Path) -> anyhow::Result<Self> {
        let listener = listen(path).with_context(|| format!("listening at {}", path.display()))?;
        let file = file_at(path).with_context(|| format!("finding {}", path.display()))?;
        Ok(Self { listener, path: path.to_owned(), file, lock })
    }

    /// Listens at the same path again if clients cannot find the socket any more, as a removed directory is not
    /// announced; returns true if it had to.
    pub(super) fn stay(&mut self) -> anyhow::Result<bool> {
        if file_at(&self.path).is_ok_and(|file| file == self.file) {
            return Ok(false);
        }
        if let Some(directory) = self.path.parent() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.with_context(|| format!("making {}", directory.display()))?;
        }
        let held = self.lock.metadata().context("looking at the lock")?;
        let is_ours = file_at(&lock_path(&self.path)).is_ok_and(|file| file == (held.dev(), held.ino()));
        let lock = if is_ours { Some(self.lock.try_clone()?) } else { lock_of(&self.path)? };
        let lock = lock.with_context(|| format!("another keeper listens at {} now", self.path.display()))?;
        *self = Self::with(lock, &self.path)?;
        Ok(true)
    }

    /// A client that waits to be let in, if it may be, with its process; never waits.
    pub(super) fn accept(&self) -> io::Result<(UnixStream, u32)> {
        let (stream, _) = self.listener.accept()?;
        let user = fd_passing::peer_user(&stream)?;
        if user != 0 && user != rustix::process::geteuid().as_raw() {
            let why = format!("user {user} may not ask the keeper");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        stream.set_nonblocking(true)?;
        let process = fd_passing::peer_pid(&stream)?;
        Ok((stream, process))
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Another one may be in its place by now, where the lock's file was removed too.
        if file_at(&self.path).is_ok_and(|file| file == self.file) {
            std::fs::remove_file(&self.path).ok();
        }
    }
}

fn lock_path(path: &Path) -> PathBuf {
    path.with_extension("lock")
}

/// The right to listen at `path`; none if another keeper has it.
fn lock_of(path: &Path) -> anyhow::Result<Option<File>> {
    let lock_path = lock_path(path);
    let lock = private::open(&lock_path, private::options().create(true).truncate(false))?;
    let begun = Instant::now();
    loop {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(lock)),
            Err(Errno::WOULDBLOCK) if begun.elapsed() < FORKED_LIMIT => {
                std::thread::park_timeout(FORKED_LOOK)
            }
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(errno) => return Err(errno).with_context(|| format!("locking {}", lock_path.display())),
        }
    }
}

fn file_at(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// The holder of the lock may take the place of a socket that a keeper before it left.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_a_child_of_a_killed_keeper_has_for_a_moment_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keeper.sock");
        let of_child = lock_of(&path).unwrap();
        let waiting = std::thread::spawn(move || Listening::at(&path).unwrap().is_some());
        std::thread::park_timeout(4 * FORKED_LOOK);
        drop(of_child);
        assert!(waiting.join().unwrap());
    }
}
