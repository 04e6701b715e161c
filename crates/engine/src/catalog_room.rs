//! Room on the disk that is reserved for the catalog, so that things can be deleted on a full disk.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::limits;
use crate::private;
use crate::sync::{Mutex, lock};

/// A file of that size beside the catalog, which a writer removes if it finds the disk full.
#[derive(Debug)]
pub(crate) struct Room {
    path: PathBuf,
    /// Locked while the file is made and removed, so that the state always fits the file.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    is_held: bool,
    /// Writes that use the room now.
    borrowers: usize,
}

/// Room that was freed for one write; it is not reserved again before this is dropped.
#[derive(Debug)]
#[must_use = "others may hold the room again once it is dropped"]
pub(crate) struct Lent<'a> {
    room: &'a Room,
    /// True if there was any room to free.
    pub(crate) had_any: bool,
}

impl Room {
    /// The room of the catalog in the file `catalog`; not reserved yet.
    pub(crate) fn of(catalog: &Path) -> Self {
        Self { path: catalog.with_extension("room"), state: Mutex::default() }
    }

    /// Reserves the room; an error if the disk does not have it. On a file system that cannot reserve room it does
    /// nothing.
    pub(crate) fn hold(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        if state.is_held {
            return Ok(());
        }
        if state.borrowers > 0 {
            return Err(Errno::NOSPC.into());
        }
        match self.take() {
            Err(error) if is_full(&error) => {
                // A part may have been allocated.
                std::fs::remove_file(&self.path).ok();
                Err(error)
            }
            Ok(()) | Err(_) => {
                state.is_held = true;
                Ok(())
            }
        }
    }

    /// Frees the room for a write that must not fail.
    pub(crate) fn lend(&self) -> Lent<'_> {
        let mut state = lock(&self.state);
        state.is_held = false;
        state.borrowers += 1;
        Lent { room: self, had_any: std::fs::remove_file(&self.path).is_ok() }
    }

    fn take(&self) -> io::Result<()> {
        let file: File = private::open(&self.path, private::options().create(true).truncate(false))?;
        Ok(fallocate(&file, FallocateFlags::empty(), 0, limits::CATALOG_ROOM_BYTES)?)
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        lock(&self.room.state).borrowers -= 1;
    }
}

/// True if the error is a full disk or a used-up quota.
fn is_full(error: &io::Error) -> bool {
    let full = [Errno::NOSPC, Errno::DQUOT].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| full.contains(&code))
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn room_is_held_until_it_is_lent_and_can_be_held_again_when_it_is_given_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let room = Room::of(&directory.path().join("catalog.redb"));
        for _ in 0..2 {
            room.hold().expect("there is room");
            room.hold().expect("it is held");
            let held = directory.path().join("catalog.room").metadata().expect("it is there").len();
            assert_eq!(held, limits::CATALOG_ROOM_BYTES);
            let lent = room.lend();
            assert!(lent.had_any);
            let refused = room.hold().expect_err("a write needs it");
            assert!(is_full(&refused), "{refused}");
            assert!(!room.path.exists(), "the write has it");
            assert!(!room.lend().had_any, "it was given back");
            room.hold().expect_err("the first one still needs it");
            drop(lent);
        }
    }
}
