//! The file of the local socket: made with its permissions, in place of a dead daemon's, and removed by its maker.
//!
//! A lock on a file beside it shows the socket's owner, an answer does not: of a daemon that was killed, a process it
//! had just forked may still have the socket, and answers no one.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rekindle_engine::private;
use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen as start_listening, socket_with,
};

use super::ListenError;

/// Connections the kernel keeps for us while we take others.
const BACKLOG: i32 = 1024;

/// The file of a socket, removed when this is dropped, unless another socket is there by then.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    mode: u32,
    device: u64,
    inode: u64,
    /// Locked as long as it is open, so until the socket's file is gone.
    lock: File,
}

impl SocketFile {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// True if a connection to the path reaches the socket that it was made for.
    pub(crate) fn is_there(&self) -> bool {
        let found = fs::symlink_metadata(&self.path);
        found.is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode))
    }

    /// Listens at the same path with the same permissions once more, in a directory that is made where it is gone.
    pub(crate) fn make_again(&self) -> Result<(UnixListener, Self), ListenError> {
        if let Some(directory) = self.path.parent() {
            // Those whom the socket lets connect are let through to it.
            let mode = if self.mode & 0o006 == 0 { 0o700 } else { 0o711 };
            let made = DirBuilder::new().recursive(true).mode(mode).create(directory);
            made.map_err(|source| ListenError::Socket { path: self.path.clone(), source })?;
        }
        let failed = |source| ListenError::Socket { path: self.path.clone(), source };
        let held = self.lock.metadata().map_err(failed)?;
        let has_lock = fs::symlink_metadata(lock_path(&self.path))
            .is_ok_and(|found| (found.dev(), found.ino()) == (held.dev(), held.ino()));
        let lock = if has_lock { self.lock.try_clone().map_err(failed)? } else { lock(&self.path)? };
        listen_under(lock, &self.path, self.mode)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_there()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "the API's socket could not be removed");
        }
    }
}

/// Listens on a socket at `path`, to which only the users that `mode` lets in can connect.
pub(super) fn listen(path: &Path, mode: u32) -> Result<(UnixListener, SocketFile), ListenError> {
    listen_under(lock(path)?, path, mode)
}

fn listen_under(lock: File, path: &Path, mode: u32) -> Result<(UnixListener, SocketFile), ListenError> {
    let failed = |source: io::Error| ListenError::Socket { path: path.to_owned(), source };
    make_way(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|error| failed(error.into()))?;
    // The file takes its permissions from the socket (net/unix/af_unix.c, unix_bind_bsd), less the umask: it is never
    // wider than asked for, and widened to that afterwards.
    fchmod(&socket, Mode::from_raw_mode(mode)).map_err(|error| failed(error.into()))?;
    let address = SocketAddrUnix::new(path).map_err(|error| failed(error.into()))?;
    bind(&socket, &address).map_err(|error| failed(error.into()))?;
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)?;
    let made = fs::symlink_metadata(path).map_err(failed)?;
    start_listening(&socket, BACKLOG).map_err(|error| failed(error.into()))?;
    let file = SocketFile { path: path.to_owned(), mode, device: made.dev(), inode: made.ino(), lock };
    Ok((UnixListener::from(socket), file))
}

/// The right to listen at `path`, which one daemon has at a time. The file stays, as a lock's must.
fn lock(path: &Path) -> Result<File, ListenError> {
    let failed = |source: io::Error| ListenError::Socket { path: path.to_owned(), source };
    let file = private::open(&lock_path(path), private::options().create(true).truncate(false));
    let file = file.map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(ListenError::Taken { path: path.to_owned() }),
        Err(error) => Err(failed(error.into())),
    }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// Removes the socket that a dead daemon left at `path`; the holder of the lock may.
fn make_way(path: &Path) -> Result<(), ListenError> {
    let failed = |source: io::Error| ListenError::Socket { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => Err(ListenError::NoSocket { path: path.to_owned() }),
        Ok(_) => fs::remove_file(path).map_err(failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode_of(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_file_has_its_mode_and_goes_with_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        for mode in [0o600, 0o666] {
            let (listener, file) = listen(&path, mode).unwrap();
            assert_eq!(mode_of(&path), mode);
            drop((listener, file));
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_dead_daemons_socket_is_replaced_and_a_living_ones_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        drop(UnixListener::bind(&path).unwrap());
        let (_listener, _file) = listen(&path, 0o600).unwrap();
        assert!(matches!(listen(&path, 0o600), Err(ListenError::Taken { .. })));
        assert!(path.exists());
    }

    #[test]
    fn a_dead_daemons_socket_is_replaced_although_a_process_that_it_forked_still_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        let _inherited = UnixListener::bind(&path).unwrap();
        let (listener, _file) = listen(&path, 0o600).unwrap();
        listener.set_nonblocking(false).unwrap();
        let _client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert!(listener.accept().is_ok(), "who connects now reaches the one that took its place");
    }

    #[test]
    fn a_socket_whose_directory_was_removed_is_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/api.sock");
        fs::create_dir(path.parent().unwrap()).unwrap();
        let (listener, file) = listen(&path, 0o600).unwrap();
        assert!(file.is_there());
        fs::remove_file(&path).unwrap();
        let (_listener, file) = {
            let again = file.make_again().unwrap();
            drop((listener, file));
            again
        };
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        assert!(!file.is_there());
        let (again, made) = file.make_again().unwrap();
        drop(file);
        assert!(made.is_there());
        assert_eq!((mode_of(&path), mode_of(path.parent().unwrap())), (0o600, 0o700));
        again.set_nonblocking(false).unwrap();
        let _client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert!(again.accept().is_ok());
    }

    #[test]
    fn a_socket_that_replaced_ours_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        let (listener, file) = listen(&path, 0o600).unwrap();
        fs::rename(&path, directory.path().join("old")).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop((listener, file));
        assert!(path.exists());
    }

    #[test]
    fn a_file_is_not_taken_for_a_socket_and_a_long_path_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        fs::write(&path, "notes").unwrap();
        assert!(matches!(listen(&path, 0o600), Err(ListenError::NoSocket { .. })));
        let long = directory.path().join("x".repeat(120));
        assert!(matches!(listen(&long, 0o600), Err(ListenError::Socket { .. })));
    }
}
