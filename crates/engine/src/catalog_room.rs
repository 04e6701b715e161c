//! Room on the disk that is held back for the catalog, so that space can be given back on a full disk too.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::limits;
use crate::private;
use crate::sync::atomic::{AtomicBool, Ordering};

/// A file of that size beside the catalog. A writer that finds the disk full removes it first.
#[derive(Debug)]
pub(crate) struct Room {
    path: PathBuf,
    is_held: AtomicBool,
}

impl Room {
    /// The room of the catalog in `catalog`; not held yet.
    pub(crate) fn of(catalog: &Path) -> Self {
        Self { path: catalog.with_extension("room"), is_held: AtomicBool::new(false) }
    }

    /// Holds the room. An error says that the disk has not got it; where files cannot have room held for them at all, there
    /// is nothing to hold.
    pub(crate) fn hold(&self) -> io::Result<()> {
        if self.is_held.load(Ordering::Acquire) {
            return Ok(());
        }
        match self.take() {
            Err(error) if is_full(&error) => {
                // Part of it may have been given.
                std::fs::remove_file(&self.path).ok();
                Err(error)
            }
            Ok(()) | Err(_) => {
                self.is_held.store(true, Ordering::Release);
                Ok(())
            }
        }
    }

    /// Gives the room back to the disk; whether there was any.
    pub(crate) fn release(&self) -> bool {
        self.is_held.store(false, Ordering::Release);
        std::fs::remove_file(&self.path).is_ok()
    }

    fn take(&self) -> io::Result<()> {
        let file: File = private::options().create(true).truncate(false).open(&self.path)?;
        Ok(fallocate(&file, FallocateFlags::empty(), 0, limits::CATALOG_ROOM_BYTES)?)
    }
}

/// True if the error says that a disk, or a user's part of it, is full.
fn is_full(error: &io::Error) -> bool {
    let full = [Errno::NOSPC, Errno::DQUOT].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| full.contains(&code))
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn room_is_held_until_it_is_released_and_can_be_held_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let room = Room::of(&directory.path().join("catalog.redb"));
        for _ in 0..2 {
            room.hold().expect("there is room");
            room.hold().expect("it is held");
            let held = directory.path().join("catalog.room").metadata().expect("it is there").len();
            assert_eq!(held, limits::CATALOG_ROOM_BYTES);
            assert!(room.release());
            assert!(!room.release(), "it was given back");
        }
    }
}
