//! The files that Firecracker writes a guest's memory and state into, and how they become a capture.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rekindle_engine::limits::BLOB_BYTES_MAX;
use rekindle_kernel::{Memfd, PageKind};
use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags};

use super::directory::VmDirectory;
use super::error::FirecrackerError;
use super::files;

/// The number under which the process has its memory file open.
pub(super) const MEMORY_FD: i32 = 30;
/// The number under which it has its state file open.
pub(super) const STATE_FD: i32 = 31;

/// Names in a jail.
const MEMORY_IN_JAIL: &str = "memory";
const STATE_IN_JAIL: &str = "state";
/// Beside the jail: that a capture was begun.
const BEGUN: &str = "begun";

/// Files that Firecracker writes to.
#[derive(Debug)]
pub(super) enum CaptureFiles {
    /// Memory files of ours, which the process has inherited and opens by their numbers.
    Inherited {
        /// Gets the guest's memory. It can be cut until it is taken: a Firecracker may do so before it writes.
        memory: OwnedFd,
        /// Gets, and holds for a load, the state.
        state: OwnedFd,
    },
    /// Files in its jail, where it has no `/proc` and the jailer closed what it inherited.
    InJail(VmDirectory),
}

/// Tells if a capture is the first one of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begun {
    /// It is, or the first after a checkpoint: the pages that Firecracker knows to be dirty are all that changed.
    First,
    /// One before it may have been written: the pages that Firecracker knows to be dirty are only those that changed
    /// since.
    Again,
}

impl CaptureFiles {
    /// New memory files for a guest with so much memory.
    pub(super) fn inherited(memory_bytes: u64) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = rustix::fs::memfd_create("rekindle-capture", flags)?;
        rustix::fs::ftruncate(&memory, memory_bytes)?;
        let state = rustix::fs::memfd_create("rekindle-state", flags)?;
        Ok(Self::Inherited { memory, state })
    }

    /// The path by which the process writes memory.
    pub(super) fn memory_path(&self) -> String {
        match self {
            Self::Inherited { .. } => format!("/proc/self/fd/{MEMORY_FD}"),
            Self::InJail(_) => MEMORY_IN_JAIL.to_owned(),
        }
    }

    /// The path by which it reads and writes its state.
    pub(super) fn state_path(&self) -> String {
        match self {
            Self::Inherited { .. } => format!("/proc/self/fd/{STATE_FD}"),
            Self::InJail(_) => STATE_IN_JAIL.to_owned(),
        }
    }

    /// The descriptors that the process inherits and the keeper holds.
    pub(super) fn fds(&self) -> Option<(BorrowedFd<'_>, BorrowedFd<'_>)> {
        match self {
            Self::Inherited { memory, state } => Some((memory.as_fd(), state.as_fd())),
            Self::InJail(_) => None,
        }
    }

    /// Puts a state where the process loads it from.
    pub(super) fn put_state(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Inherited { state, .. } => {
                rustix::fs::ftruncate(state, 0)?;
                File::from(state.try_clone()?).write_all_at(bytes, 0)
            }
            Self::InJail(jail) => {
                let path = jail.file(STATE_IN_JAIL);
                files::create(&path)?.write_all_at(bytes, 0)?;
                jail.give(&path)
            }
        }
    }

    /// The state was loaded: nothing of it is left, so that what is found later is of a capture.
    pub(super) fn loaded(&self) -> io::Result<()> {
        match self {
            Self::Inherited { state, .. } => Ok(rustix::fs::ftruncate(state, 0)?),
            Self::InJail(jail) => files::if_there(fs::remove_file(jail.file(STATE_IN_JAIL))).map(drop),
        }
    }

    /// Notes that a capture begins; the note outlives the daemon.
    pub(super) fn begin(&self) -> io::Result<Begun> {
        let was_there = match self {
            Self::Inherited { state, .. } => {
                let was_there = rustix::fs::fstat(state)?.st_size > 0;
                File::from(state.try_clone()?).write_all_at(b"-", 0)?;
                was_there
            }
            Self::InJail(jail) => match files::create(&jail.beside(BEGUN)) {
                Ok(_file) => false,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => true,
                Err(error) => return Err(error),
            },
        };
        Ok(if was_there { Begun::Again } else { Begun::First })
    }

    /// The state that was written.
    pub(super) fn state(&self) -> Result<Vec<u8>, FirecrackerError> {
        let failed = |source| FirecrackerError::File {
            doing: "reading Firecracker's state from",
            path: self.state_path().into(),
            source,
        };
        let file = match self {
            Self::Inherited { state, .. } => state.try_clone().map(File::from),
            Self::InJail(jail) => open_in_jail(jail, STATE_IN_JAIL),
        };
        let file = file.map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let bytes_max = u64::try_from(BLOB_BYTES_MAX).unwrap_or(u64::MAX);
        if bytes > bytes_max {
            return Err(FirecrackerError::StateTooLong { bytes, bytes_max });
        }
        let mut state = vec![0; usize::try_from(bytes).unwrap_or(0)];
        file.read_exact_at(&mut state, 0).map_err(failed)?;
        Ok(state)
    }

    /// The memory that was written, as a memory file that can be sealed.
    pub(super) fn memory(&self, memory_bytes: u64) -> Result<Memfd, FirecrackerError> {
        let failed = || FirecrackerError::system("taking the memory that Firecracker wrote");
        match self {
            Self::Inherited { memory, .. } => {
                let taken = Memfd::adopt(memory.try_clone().map_err(failed())?)?;
                check_size(memory_bytes, taken.bytes())?;
                Ok(taken)
            }
            Self::InJail(jail) => {
                let file = open_in_jail(jail, MEMORY_IN_JAIL).map_err(failed())?;
                check_size(memory_bytes, file.metadata().map_err(failed())?.len())?;
                copied(&file, memory_bytes).map_err(failed())
            }
        }
    }

    /// The same in a file of its own: the next capture is written into the one that there is.
    pub(super) fn copied_memory(&self, memory_bytes: u64) -> Result<Memfd, FirecrackerError> {
        let failed = || FirecrackerError::system("copying the memory that Firecracker wrote");
        match self {
            Self::Inherited { memory, .. } => {
                let file = File::from(memory.try_clone().map_err(failed())?);
                check_size(memory_bytes, file.metadata().map_err(failed())?.len())?;
                copied(&file, memory_bytes).map_err(failed())
            }
            Self::InJail(_) => self.memory(memory_bytes),
        }
    }

    /// The guest goes on from a snapshot that has what was captured: the next capture is a first one again.
    pub(super) fn taken(&self) -> io::Result<()> {
        match self {
            Self::Inherited { state, .. } => Ok(rustix::fs::ftruncate(state, 0)?),
            Self::InJail(jail) => files::if_there(fs::remove_file(jail.beside(BEGUN))).map(drop),
        }
    }

    /// Gives back what a capture took that did not come to pass, or was copied.
    pub(super) fn give_back_memory(&self, memory_bytes: u64) -> io::Result<()> {
        match self {
            Self::Inherited { memory, .. } => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                Ok(rustix::fs::fallocate(memory, flags, 0, memory_bytes)?)
            }
            Self::InJail(jail) => files::if_there(fs::remove_file(jail.file(MEMORY_IN_JAIL))).map(drop),
        }
    }
}

/// A file that the jailed process made: never through a link, which it could have made to anywhere.
fn open_in_jail(jail: &VmDirectory, name: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(jail.file(name), flags, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name} in the jail is no file"))),
    }
}

fn check_size(expected: u64, found: u64) -> Result<(), FirecrackerError> {
    match expected == found {
        true => Ok(()),
        false => Err(FirecrackerError::CaptureSize { expected, found }),
    }
}

/// The data of a file in a memory file of ours; its holes stay holes.
fn copied(file: &File, bytes: u64) -> io::Result<Memfd> {
    let memfd = Memfd::create("rekindle-capture", bytes, PageKind::Small)?;
    let mut buffer = vec![0; 1 << 20];
    for run in files::data_runs(file, bytes)? {
        let mut at = run.start;
        while at < run.end {
            let count = usize::try_from(run.end - at).unwrap_or(usize::MAX).min(buffer.len());
            file.read_exact_at(&mut buffer[..count], at)?;
            memfd.write_at(&buffer[..count], at)?;
            at += u64::try_from(count).unwrap_or(u64::MAX);
        }
    }
    Ok(memfd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_is_the_first_one_until_one_was_begun_whoever_asks() {
        let files = CaptureFiles::inherited(1 << 20).unwrap();
        files.put_state(b"a state that is loaded").unwrap();
        files.loaded().unwrap();
        assert_eq!(files.begin().unwrap(), Begun::First);
        assert_eq!(files.begin().unwrap(), Begun::Again);
        let CaptureFiles::Inherited { memory, state } = &files else { unreachable!("just made") };
        let again = CaptureFiles::Inherited {
            memory: memory.try_clone().unwrap(),
            state: state.try_clone().unwrap(),
        };
        assert_eq!(again.begin().unwrap(), Begun::Again);
    }

    #[test]
    fn memory_that_was_not_captured_is_given_back_and_can_be_written_again() {
        let files = CaptureFiles::inherited(1 << 20).unwrap();
        let CaptureFiles::Inherited { memory, .. } = &files else { unreachable!("just made") };
        let memory = File::from(memory.try_clone().unwrap());
        memory.write_all_at(&[1; 4096], 8192).unwrap();
        assert_eq!(
            files.memory(1 << 20).unwrap().data_runs().unwrap(),
            vec![std::ops::Range { start: 8192, end: 12288 }]
        );
        files.give_back_memory(1 << 20).unwrap();
        assert_eq!(files.memory(1 << 20).unwrap().data_runs().unwrap(), []);
        memory.write_all_at(&[1; 4096], 0).unwrap();
        assert_eq!(
            files.memory(1 << 20).unwrap().data_runs().unwrap(),
            vec![std::ops::Range { start: 0, end: 4096 }]
        );
        let error = files.memory(2 << 20).unwrap_err();
        assert!(matches!(error, FirecrackerError::CaptureSize { .. }), "{error}");
    }

    #[test]
    fn a_link_in_a_jail_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let jail = VmDirectory::create(directory.path(), directory.path(), "vm").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", jail.file(STATE_IN_JAIL)).unwrap();
        let files = CaptureFiles::InJail(jail);
        assert!(files.state().is_err());
    }
}
