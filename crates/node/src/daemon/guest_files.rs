//! Files of guests: the logs of their VMMs, and the directories of Firecrackers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rekindle_vmm::firecracker::VmDirectory;
use uuid::Uuid;

/// The name of the file, in the run directory, that gets what a guest's VMM prints.
pub(super) fn log_name(guest: Uuid) -> String {
    format!("vmm-{guest}.log")
}

/// The directory in which Firecrackers have their files, each under its guest's id.
pub(super) fn machine_directory(state_directory: &Path) -> PathBuf {
    state_directory.join("machines")
}

/// Removes the files of a guest that has ended. Not every kind of VMM has each of them.
pub(super) fn remove_files(state_directory: &Path, run_directory: &Path, guest: Uuid) {
    std::fs::remove_file(run_directory.join(log_name(guest))).ok();
    let machines = machine_directory(state_directory);
    if let Err(error) = VmDirectory::remove_of(&machines, run_directory, &guest.to_string()) {
        tracing::warn!(%guest, %error, "files of an ended guest stay until the next start");
    }
}

/// The guests that have files in the directory of machines.
pub(super) fn with_files(state_directory: &Path) -> std::io::Result<BTreeSet<Uuid>> {
    let ids = VmDirectory::ids(&machine_directory(state_directory))?;
    Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
}
