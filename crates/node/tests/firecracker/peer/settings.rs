//! A peer's behaviour, in a file that a test may change while it runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A peer's character.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Its version.
    pub(crate) version: String,
    /// The format of its states.
    pub(crate) format: String,
    /// Step at which it dies.
    pub(crate) dies_at: Option<Step>,
    /// True if it dies there as by its seccomp filter.
    pub(crate) is_filtered: bool,
    /// Step at which it stands until this pipe is written.
    pub(crate) stands_at: Option<(Step, PathBuf)>,
    /// Requests that it refuses, and the words of the refusals.
    pub(crate) refuses: BTreeMap<String, String>,
    /// True if it hands a memory file over beside its userfaultfd.
    pub(crate) shares_memory: bool,
    /// True if the seals of that file are sealed, as those of Firecrackers are that share their memory.
    pub(crate) seals_seals: bool,
    /// True if a frame comes into guest memory after a snapshot was written.
    pub(crate) late_frame: bool,
    /// True if it cuts the memory file to nothing before it writes it, as versions of long ago did.
    pub(crate) cuts_files: bool,
    /// File in which each request is noted down, one a line.
    pub(crate) requests: Option<PathBuf>,
}

/// Steps at which a peer may die, or stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    Start,
    Configure,
    InstanceStart,
    LoadBegins,
    LoadHandedOver,
    LoadTouched,
    Pause,
    CreateBegins,
    CreateState,
    CreateMemory,
    Resume,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            version: "1.16.0".to_owned(),
            format: "8.0.0".to_owned(),
            dies_at: None,
            is_filtered: false,
            stands_at: None,
            refuses: BTreeMap::new(),
            shares_memory: false,
            seals_seals: true,
            late_frame: false,
            cuts_files: false,
            requests: None,
        }
    }
}

impl Settings {
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).expect("a peer has settings");
        serde_json::from_slice(&bytes).expect("they are settings")
    }

    pub(crate) fn write(&self, path: &Path) {
        let bytes = serde_json::to_vec(self).expect("they are plain data");
        let new = path.with_extension("new");
        std::fs::write(&new, bytes).expect("the directory can be written");
        std::fs::rename(new, path).expect("the directory can be written");
    }

    /// True if this version is at least that one.
    pub(super) fn is_since(&self, major: u32, minor: u32) -> bool {
        let mut numbers = self.version.split('.').map(|number| number.parse::<u32>().expect("a number"));
        (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
    }
}
