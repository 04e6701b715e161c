//! The room of a directory: if it can be written, and how much is free.

use std::io;
use std::path::{Path, PathBuf};

use super::{Check, Outcome};
use crate::commands::shown::size;

/// Room below which a warning is due: a snapshot's layer can be as large as its guest's memory.
const ROOM_WANTED: u64 = 2 << 30;

/// Room below which nothing can be saved for long.
const ROOM_NEEDED: u64 = 64 << 20;

/// A place for files.
pub(super) struct Room {
    exists: bool,
    free: u64,
    total: u64,
    filesystem: u64,
}

/// The room that `path` has, or will have once it is made; an error says that it cannot be written.
pub(super) fn room(path: &Path) -> Result<Room, String> {
    let exists = path.exists();
    let place = if exists { path.to_owned() } else { nearest_directory(path) };
    let here = path.display();
    tempfile::tempfile_in(&place).map_err(|error| {
        let error = bare(&error);
        if exists {
            format!("{here} cannot be written: {error}")
        } else {
            format!("{here} is not there and cannot be made in {}: {error}", place.display())
        }
    })?;
    let unreadable = |error: rustix::io::Errno| format!("{here}: its room cannot be told: {error}");
    let space = rustix::fs::statvfs(&place).map_err(unreadable)?;
    let filesystem = rustix::fs::statfs(&place).map_err(unreadable)?.f_type;
    Ok(Room {
        exists,
        free: space.f_bavail.saturating_mul(space.f_frsize),
        total: space.f_blocks.saturating_mul(space.f_frsize),
        filesystem: u64::try_from(filesystem).unwrap_or(0),
    })
}

/// The system's error, without the path of the file it was tried with.
fn bare(error: &io::Error) -> io::Error {
    let inner =
        error.get_ref().and_then(|inner| std::error::Error::source(inner)?.downcast_ref::<io::Error>());
    let code = inner.and_then(io::Error::raw_os_error).or_else(|| error.raw_os_error());
    code.map_or_else(|| io::Error::from(error.kind()), io::Error::from_raw_os_error)
}

fn nearest_directory(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

impl Room {
    pub(super) fn describe(&self, path: &Path) -> String {
        let made = if self.exists { "" } else { " (made when the daemon starts)" };
        format!("{}{made}, {} of {} free", path.display(), size(self.free), size(self.total))
    }

    /// The kind of its file system (statfs).
    pub(super) fn filesystem(&self) -> u64 {
        self.filesystem
    }

    /// True if it is there already.
    pub(super) fn exists(&self) -> bool {
        self.exists
    }

    pub(super) fn check(&self, name: &'static str, path: &Path, advice: &str) -> Check {
        let found = self.describe(path);
        let outcome = match self.free {
            ..ROOM_NEEDED => Outcome::Fail,
            ROOM_NEEDED..ROOM_WANTED => Outcome::Warn,
            _ => Outcome::Ok,
        };
        let advice = (outcome != Outcome::Ok).then(|| advice.to_owned());
        Check { name, outcome, found, advice }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_there_yet_has_the_room_of_the_one_above() {
        let above = tempfile::tempdir().unwrap();
        let room = room(&above.path().join("a/b")).unwrap();
        assert!(!room.exists && room.total > 0);
        assert!(!above.path().join("a").exists(), "looking makes nothing");
    }

    #[test]
    fn little_room_is_warned_of_and_none_fails() {
        let of = |free| {
            Room { exists: true, free, total: 1 << 40, filesystem: 0 }.check("x", Path::new("/x"), "more")
        };
        assert_eq!(of(1 << 20).outcome, Outcome::Fail);
        assert_eq!(of(1 << 30).outcome, Outcome::Warn);
        assert_eq!(of(1 << 30).advice.as_deref(), Some("more"));
        assert_eq!(of(1 << 33), Check::ok("x", "/x, 8.0 GiB of 1.0 TiB free"));
    }
}
