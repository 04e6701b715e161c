//! A peer's snapshots: a state file, and a memory file that is sparse, merged into where it is of the right size, and
//! synced.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rekindle_kernel::PAGE_BYTES;
use serde::{Deserialize, Serialize};

use super::configured::{Balloon, Drive, Interface, Machine, VsockDevice};
use super::guest::{Guest, Mind};

/// Content of a state file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) format: String,
    pub(super) machine: Machine,
    pub(super) drives: Vec<Drive>,
    pub(super) interfaces: Vec<Interface>,
    pub(super) balloon: Option<Balloon>,
    #[serde(default)]
    pub(super) vsock: Option<VsockDevice>,
    pub(super) mind: Mind,
}

impl State {
    pub(super) fn write(&self, path: &Path) -> std::io::Result<()> {
        let file = OpenOptions::new().create(true).write(true).truncate(true).open(path)?;
        file.write_all_at(&serde_json::to_vec(self).expect("it is plain data"), 0)?;
        file.sync_all()
    }

    pub(super) fn read(path: &Path, format: &str) -> Result<Self, String> {
        let bytes = std::fs::read(path)
            .map_err(|error| format!("Failed to open the snapshot state file: {error}"))?;
        let state: Self = serde_json::from_slice(&bytes)
            .map_err(|error| format!("Failed to load snapshot state from file: {error}"))?;
        let numbers = |text: &str| -> Vec<u32> {
            text.split('.').map(|word| word.parse().expect("a number")).collect()
        };
        let (saved, here) = (numbers(&state.format), numbers(format));
        if saved[0] != here[0] || saved[1] > here[1] {
            return Err(format!(
                "Failed to load snapshot state from file: Invalid snapshot version: {}",
                state.format
            ));
        }
        Ok(state)
    }
}

/// Writes `pages` of the guest where they belong in the file, and leaves the rest of it as it is.
pub(super) fn write_memory(
    guest: &Guest,
    path: &Path,
    pages: impl IntoIterator<Item = u32>,
    cuts: bool,
) -> std::io::Result<()> {
    let bytes = u64::from(guest.memory.pages()) * u64::try_from(PAGE_BYTES).expect("4096");
    let existed = path.exists();
    let file = OpenOptions::new().write(true).create(true).truncate(cuts).open(path)?;
    if existed && file.metadata()?.len() != bytes {
        file.set_len(0)?;
    }
    file.set_len(bytes)?;
    for page in pages {
        let offset = u64::from(page) * u64::try_from(PAGE_BYTES).expect("4096");
        file.write_all_at(&guest.memory.read(page), offset)?;
    }
    file.sync_all()
}
