//! Sets aside layer files that the catalog does not name, as the catalog may be older than the files.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::identity::LayerId;
use crate::private::{self, at};

/// The directory of the files that were set aside, in that of the layers. A file's modification time is when it was set
/// aside.
#[derive(Debug)]
pub struct AsideDirectory {
    directory: PathBuf,
}

/// Number and size of the files set aside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetAside {
    /// Number of files.
    pub files: u64,
    /// Bytes they take on the disk.
    pub bytes: u64,
}

/// The name of the directory.
const NAME: &str = "aside";

impl AsideDirectory {
    /// The directory for a directory of layers; it is made with its first file.
    pub fn below(layers: &Path) -> Self {
        Self { directory: layers.join(NAME) }
    }

    /// The directory of the files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Moves a file here; it replaces no file that is here already.
    pub fn take(&self, file: &Path) -> io::Result<()> {
        private::make_directory(&self.directory)?;
        let moving = |error: io::Error| at(file, "setting aside", &error);
        // Its age counts from now on.
        std::fs::File::open(file).and_then(|open| open.set_modified(SystemTime::now())).map_err(moving)?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let mut target = self.directory.join(&*name);
        for number in 1_u32.. {
            if !target.exists() {
                break;
            }
            target = self.directory.join(format!("{name}.{number}"));
        }
        std::fs::rename(file, target).map_err(moving)
    }

    /// Moves the file of a layer back to `path`; true if it was here.
    pub fn give_back(&self, layer: LayerId, path: &Path) -> io::Result<bool> {
        match std::fs::rename(self.directory.join(format!("{layer}.raw")), path) {
            Ok(()) => {
                tracing::info!(%layer, "a layer file that was set aside is in its place again: the catalog names it");
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Counts the files that are set aside now.
    pub fn count(&self) -> io::Result<SetAside> {
        let mut count = SetAside::default();
        self.each(|_, found| {
            count.add(found);
            Ok(())
        })?;
        Ok(count)
    }

    /// Removes files that have been here for `kept` or longer; their number and size.
    pub fn remove_older(&self, kept: Duration) -> io::Result<SetAside> {
        let mut removed = SetAside::default();
        self.each(|path, found| {
            // A clock that was set back makes files look younger, never older.
            let age = found.modified()?.elapsed().unwrap_or_default();
            if age >= kept {
                std::fs::remove_file(path).map_err(|error| at(path, "removing", &error))?;
                removed.add(found);
            }
            Ok(())
        })?;
        Ok(removed)
    }

    fn each(&self, mut what: impl FnMut(&Path, &Metadata) -> io::Result<()>) -> io::Result<()> {
        let unreadable = |error: io::Error| at(&self.directory, "reading", &error);
        let entries = match self.directory.read_dir() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(unreadable)?,
        };
        for entry in entries {
            let path = entry.map_err(unreadable)?.path();
            let found = path.symlink_metadata().map_err(|error| at(&path, "looking at", &error))?;
            if found.is_file() {
                what(&path, &found)?;
            }
        }
        Ok(())
    }
}

impl SetAside {
    fn add(&mut self, found: &Metadata) {
        self.files += 1;
        self.bytes += found.blocks() * BLOCK_BYTES;
    }
}

/// Unit of `st_blocks` (stat(2)).
const BLOCK_BYTES: u64 = 512;

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_aside_stays_its_time_and_comes_back_by_its_name() {
        let layers = tempfile::tempdir().expect("a directory");
        let aside = AsideDirectory::below(layers.path());
        let layer = LayerId::from_bytes([7; 32]);
        let path = layers.path().join(format!("{layer}.raw"));
        assert_eq!(aside.count().expect("it is not there yet"), SetAside::default());
        for content in ["first", "second"] {
            std::fs::write(&path, content).expect("there is room");
            aside.take(&path).expect("there is room");
        }
        assert_eq!(aside.count().expect("it can be read").files, 2, "the second did not replace the first");
        let month = Duration::from_secs(30 * 24 * 3600);
        assert_eq!(aside.remove_older(month).expect("it can be read"), SetAside::default());
        assert!(aside.give_back(layer, &path).expect("there is room"));
        assert_eq!(std::fs::read(&path).expect("it is there"), b"first");
        assert!(!aside.give_back(layer, &path).expect("it is not there"));
        assert_eq!(aside.remove_older(Duration::ZERO).expect("it can be read").files, 1);
        assert_eq!(aside.count().expect("it can be read"), SetAside::default());
    }
}
