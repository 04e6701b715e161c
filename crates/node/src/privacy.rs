//! The directories of a daemon, closed to all other users: guests' memory is in them.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rekindle_engine::private::{self, OTHERS, at, make_directory};

use rekindle_settings::Settings;

/// Names that rekindle makes in a state directory, and those that a disk of its own has there.
const IN_STATE_DIRECTORY: [&str; 10] = [
    "boot",
    "catalog.lock",
    "catalog.redb",
    "catalog.room",
    "layers",
    LOST_AND_FOUND,
    "machines",
    "manifests.memory",
    "manifests.packing",
    "store",
];
/// Names that rekindle makes in a store.
const IN_STORE: [&str; 11] = [
    "condemned",
    "deleted",
    "domains",
    "keys",
    "layers",
    LOST_AND_FOUND,
    "manifests",
    "nodes",
    "roots",
    "store",
    "working-sets",
];
/// Endings of the names of all files in a run directory.
const IN_RUN_DIRECTORY: [&str; 4] = ["lock", "log", "sock", "starting"];
/// Name that a new file system begins with.
const LOST_AND_FOUND: &str = "lost+found";

/// To read and to write; entering stays.
const READ_AND_WRITE: u32 = 0o066;

/// Makes the state and run directories where they are not there, and closes them to other users.
///
/// Closes a directory of this user that has only files of rekindle; in another directory, only the files that rekindle
/// made. [`open_places`] names those that stay open.
pub fn close_places(settings: &Settings) -> io::Result<()> {
    let Settings { state_directory, run_directory, store, key_ring, .. } = settings;
    make_directory(state_directory)?;
    make_directory(run_directory)?;
    let also: Vec<&Path> =
        [run_directory.as_path(), key_ring.as_path()].into_iter().chain(store.directory()).collect();
    close(state_directory, &IN_STATE_DIRECTORY, &also)?;
    if holds_only(run_directory, |path| is_of_run_directory(settings, path))? {
        private::restrict(run_directory, forbidden_in_run_directory(settings))?;
    }
    Ok(())
}

/// Closes the directory of a store, as [`close_places`] does.
pub fn close_store(directory: &Path) -> io::Result<()> {
    close(directory, &IN_STORE, &[])
}

/// The places that users besides this one may read or enter although guests' memory is in them, each with its mode.
pub fn open_places(settings: &Settings) -> Vec<(PathBuf, u32)> {
    let Settings { state_directory, run_directory, .. } = settings;
    let mut open = Vec::new();
    let mut look = |path: &Path, forbidden: u32| {
        let mode = path.symlink_metadata().map_or(0, |found| found.mode() & 0o7777);
        if mode & forbidden != 0 {
            open.push((path.to_owned(), mode));
        }
        mode & forbidden != 0
    };
    let store = settings.store.directory().map(|directory| (directory, &IN_STORE[..]));
    for (place, names) in std::iter::once((state_directory.as_path(), &IN_STATE_DIRECTORY[..])).chain(store) {
        // In a place that no other user may enter, nothing is open.
        if look(place, OTHERS) {
            inside(place, names).for_each(|path| _ = look(&path, OTHERS));
        }
    }
    look(run_directory, forbidden_in_run_directory(settings));
    open.sort();
    open.dedup();
    open
}

/// Users of `api.allowed_uids` enter it on their way to the socket.
fn forbidden_in_run_directory(settings: &Settings) -> u32 {
    if settings.api.allowed_uids.is_empty() { OTHERS } else { READ_AND_WRITE }
}

fn close(place: &Path, names: &[&str], also: &[&Path]) -> io::Result<()> {
    for path in inside(place, names).filter(|path| path.exists()) {
        private::close(&path)?;
        private::restrict(&path, OTHERS)?;
    }
    let is_ours = |path: &Path| names.iter().any(|name| path.ends_with(name)) || also.contains(&path);
    if holds_only(place, is_ours)? { private::restrict(place, OTHERS) } else { Ok(()) }
}

fn inside(place: &Path, names: &[&str]) -> impl Iterator<Item = PathBuf> {
    names.iter().filter(|name| **name != LOST_AND_FOUND).map(|name| place.join(name))
}

fn holds_only(directory: &Path, is_ours: impl Fn(&Path) -> bool) -> io::Result<bool> {
    let unreadable = |error: io::Error| at(directory, "reading", &error);
    for entry in directory.read_dir().map_err(unreadable)? {
        if !is_ours(&entry.map_err(unreadable)?.path()) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_of_run_directory(settings: &Settings, path: &Path) -> bool {
    let is_known = path.extension().is_some_and(|end| IN_RUN_DIRECTORY.iter().any(|known| end == *known));
    is_known || path == settings.api.socket
}
