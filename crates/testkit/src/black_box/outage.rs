//! An outage of a daemon's store.

use std::fs;
use std::path::{Path, PathBuf};

/// A store that can be neither read nor written: files are in the place of its directories.
#[derive(Debug)]
pub struct Outage {
    store: PathBuf,
}

const STORE_DIRECTORIES: [&str; 2] = ["layers", "manifests"];

impl Outage {
    /// Begins an outage of `store`.
    pub fn of(store: &Path) -> Self {
        for name in STORE_DIRECTORIES {
            let directory = store.join(name);
            if directory.exists() {
                fs::rename(&directory, store.join(format!("{name}-away"))).expect("a directory is moved");
            }
            fs::write(&directory, "").expect("a file takes its place");
        }
        Self { store: store.to_owned() }
    }

    /// Ends the outage.
    pub fn end(self) {
        for name in STORE_DIRECTORIES {
            let (directory, away) = (self.store.join(name), self.store.join(format!("{name}-away")));
            fs::remove_file(&directory).expect("the file goes");
            if away.exists() {
                fs::rename(away, directory).expect("the directory comes back");
            }
        }
    }
}
