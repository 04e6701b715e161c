//! A start without a catalog: refused beside files, guests or snapshots that only a catalog can name.

use std::fs;
use std::io;
use std::path::Path;

use bytesize::ByteSize;
use rekindle_keeper::Found;

use super::keeping::Keeping;
use super::keys::KeyOf;

/// A start without a catalog, or with an empty one.
#[derive(Debug)]
pub(super) struct Beginning {
    what: String,
}

/// Refuses to begin beside layer files or files of machines; none where there is a catalog.
pub(super) fn check_files(state_directory: &Path, catalog: &Path) -> anyhow::Result<Option<Beginning>> {
    let found = match fs::metadata(catalog) {
        Ok(found) if found.len() > 0 => return Ok(None),
        Ok(_) => "is empty",
        Err(error) if error.kind() == io::ErrorKind::NotFound => "is not there",
        Err(error) => anyhow::bail!("{}: {error}", catalog.display()),
    };
    let what = format!("the catalog {} {found}, which is damage", catalog.display());
    for (name, things) in [("layers", "layer files"), ("machines", "files of machines")] {
        let directory = state_directory.join(name);
        let (files, bytes) = files_in(&directory);
        anyhow::ensure!(
            files == 0,
            "{what}: {} has {files} {things} ({}) that only it can name. Restore it from a back-up. To begin anew \
             instead, move {} away and start again",
            directory.display(),
            ByteSize::b(bytes),
            directory.display()
        );
    }
    Ok(Some(Beginning { what }))
}

impl Beginning {
    /// Refuses to begin under a keeper that holds guests or captured snapshots.
    pub(super) fn check_keeper(self, (keeping, found): (Keeping, Found)) -> anyhow::Result<(Keeping, Found)> {
        let held = keeping.client().list()?;
        let is_named = |key: &str| matches!(KeyOf::parse(key), Some(KeyOf::Guest(_) | KeyOf::Snapshot(_)));
        let things = held.iter().filter(|entry| is_named(&entry.key)).count();
        anyhow::ensure!(
            things == 0,
            "{}: the keeper at {} holds {things} guests and captured snapshots that only it can name. Restore it from \
             a back-up. To begin anew instead, and end those guests, end the keeper and start again",
            self.what,
            keeping.socket().display()
        );
        Ok((keeping, found))
    }
}

/// Number and bytes of the files with content in a directory and in the directories directly in it.
fn files_in(directory: &Path) -> (u64, u64) {
    let mut sum = (0, 0);
    for path in entries(directory) {
        let inner = if path.is_dir() { entries(&path) } else { vec![path] };
        for file in inner {
            let bytes =
                file.symlink_metadata().map_or(0, |found| if found.is_file() { found.len() } else { 0 });
            sum = (sum.0 + u64::from(bytes > 0), sum.1 + bytes);
        }
    }
    sum
}

fn entries(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = directory.read_dir().into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}
