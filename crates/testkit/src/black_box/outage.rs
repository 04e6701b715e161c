//! An outage of a daemon's store.

use std::fs;
use std::path::{Path, PathBuf};

/// A store that can be neither read nor written: files are in the place of its directories.
#[derive(Debug)]
pub struct Outage {
    store: PathBuf,
    directories: &'static [&'static str],
}

impl Outage {
    /// Begins an outage of `store`.
    pub fn of(store: &Path) -> Self {
        Self::begin(store, &["layers", "manifests"])
    }

    /// Begins an outage of its layers alone: nothing can be published, and all else can be read.
    pub fn of_layers(store: &Path) -> Self {
        Self::begin(store, &["layers"])
    }

    fn begin(store: &Path, directories: &'static [&'static str]) -> Self {
        for name in directories {
            let directory = store.join(name);
            if directory.exists() {
                fs::rename(&directory, store.join(format!("{name}-away"))).expect("a directory is moved");
            }
            fs::write(&directory, "").expect("a file takes its place");
        }
        Self { store: store.to_owned(), directories }
    }

    /// Ends the outage.
    pub fn end(self) {
        for name in self.directories {
            let (directory, away) = (self.store.join(name), self.store.join(format!("{name}-away")));
            fs::remove_file(&directory).expect("the file goes");
            if away.exists() {
                fs::rename(away, directory).expect("the directory comes back");
            }
        }
    }
}
