//! Files that machines boot from: those that nothing needs any more are removed, and so are those that were copied for a
//! machine which then was refused.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::registry::Registry;
use super::snapshots::Snapshots;

/// Prefix of the names of files that are being copied (the default of `tempfile`).
const BEING_COPIED: &str = ".tmp";

/// Users of the directory of boot files.
#[derive(Debug)]
pub(super) struct BootFiles {
    directory: PathBuf,
    sandboxes: Arc<Registry>,
    snapshots: Arc<Snapshots>,
    making: Making,
}

/// Machines that are being made, and files that came for those which were refused.
#[derive(Debug, Default)]
struct Making {
    state: Mutex<MakingState>,
    removed: Condvar,
}

#[derive(Debug, Default)]
struct MakingState {
    /// Machines that are being made.
    machines: usize,
    /// Files that nothing may need: of machines which were refused, or which are gone.
    for_nothing: BTreeSet<String>,
    is_removing: bool,
}

/// A machine that is being made. Dropped, it was refused.
#[must_use = "dropped at once, it says that the machine was refused"]
pub(super) struct MachineInMaking<'a> {
    files: &'a BootFiles,
    there_before: BTreeSet<String>,
    is_made: bool,
}

impl BootFiles {
    /// The files in `directory`, which `sandboxes` and `snapshots` may need.
    pub(super) fn new(directory: PathBuf, sandboxes: Arc<Registry>, snapshots: Arc<Snapshots>) -> Self {
        Self { directory, sandboxes, snapshots, making: Making::default() }
    }

    /// Begins to make a machine: until it is made or refused no boot file is removed.
    pub(super) fn begin_machine(&self) -> MachineInMaking<'_> {
        self.making.begin();
        MachineInMaking { files: self, there_before: files_in(&self.directory), is_made: false }
    }

    /// Removes the files that no sandbox and no snapshot names, once no machine is being made.
    pub(super) fn remove_unnamed(&self) {
        self.making.lock().for_nothing.extend(files_in(&self.directory));
        self.remove_for_nothing();
    }

    fn remove_for_nothing(&self) {
        while let Some(mut for_nothing) = self.making.begin_removing() {
            // Another machine may be of the same file.
            let records = self.sandboxes.all().into_iter().map(|entry| entry.record().spec);
            let snapshots = self.snapshots.all().into_iter().filter_map(|known| known.about.spec.clone());
            for spec in records.chain(snapshots) {
                for file in spec.boot_files() {
                    for_nothing.remove(&file.blake3);
                }
            }
            for file in for_nothing {
                remove(&self.directory.join(file));
            }
            self.making.end_removing();
        }
    }
}

impl Making {
    fn begin(&self) {
        let mut state = self.lock();
        while state.is_removing {
            state = self.removed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.machines += 1;
    }

    fn end(&self, for_nothing: BTreeSet<String>) {
        let mut state = self.lock();
        state.machines -= 1;
        state.for_nothing.extend(for_nothing);
    }

    /// Files that can be removed now, as no machine is being made; none if there are none, or they are being removed
    /// already.
    fn begin_removing(&self) -> Option<BTreeSet<String>> {
        let mut state = self.lock();
        if state.machines > 0 || state.is_removing || state.for_nothing.is_empty() {
            return None;
        }
        state.is_removing = true;
        Some(std::mem::take(&mut state.for_nothing))
    }

    fn end_removing(&self) {
        self.lock().is_removing = false;
        self.removed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, MakingState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MachineInMaking<'_> {
    /// It is made: its record names its boot files from here on.
    pub(super) fn made(mut self) {
        self.is_made = true;
    }
}

impl Drop for MachineInMaking<'_> {
    fn drop(&mut self) {
        let mut for_nothing = BTreeSet::new();
        if !self.is_made {
            for_nothing = files_in(&self.files.directory);
            for_nothing.retain(|file| !self.there_before.contains(file));
        }
        self.files.making.end(for_nothing);
        self.files.remove_for_nothing();
    }
}

/// Removes copies that an earlier daemon did not bring to their end.
pub(super) fn remove_unfinished(directory: &Path) {
    for entry in directory.read_dir().into_iter().flatten().flatten() {
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_file && entry.file_name().to_string_lossy().starts_with(BEING_COPIED) {
            remove(&entry.path());
        }
    }
}

/// The names of files that are kept in a directory; none where it is not there yet.
fn files_in(directory: &Path) -> BTreeSet<String> {
    let entries = directory.read_dir().into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())).collect()
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => {
            tracing::info!(path = %path.display(), "a copy of a boot file that nothing needs is removed")
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a copy of a boot file that nothing needs stays")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_for_a_refused_machine_is_removed_once_no_other_is_being_made() {
        let files = Making::default();
        files.begin();
        files.begin();
        files.end(BTreeSet::from(["a".to_owned()]));
        assert_eq!(files.begin_removing(), None, "the other may be of the same file");
        files.end(BTreeSet::new());
        assert_eq!(files.begin_removing(), Some(BTreeSet::from(["a".to_owned()])));
        assert_eq!(files.begin_removing(), None, "it is being removed");
        files.end_removing();
        assert_eq!(files.begin_removing(), None, "it is removed");
    }

    #[test]
    fn a_start_removes_copies_that_were_not_brought_to_their_end_and_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        for name in [".tmpAbC123", "0123", ".another"] {
            fs::write(path(name), "a part of a kernel").expect("there is room");
        }
        fs::create_dir(path(".tmpdir")).expect("there is room");
        remove_unfinished(directory.path());
        assert!(!path(".tmpAbC123").exists());
        assert!(path("0123").exists() && path(".another").exists() && path(".tmpdir").exists());
        remove_unfinished(&path("not there"));
    }
}
