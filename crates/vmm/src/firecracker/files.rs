//! Copies of files with their holes, and digests of their bytes.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rekindle_input::regular_file::RegularFile;
use rustix::fs::SeekFrom as SeekTo;
use rustix::io::Errno;

use super::error::FirecrackerError;
use crate::qemu::BootFile;

/// Files whose digests are known at once: beyond it all of them are computed anew.
const KNOWN_FILES_MAX: usize = 1024;

/// The digests of files, each computed once while the file stays as it is.
#[derive(Debug, Default)]
pub struct FileDigests {
    known: Mutex<HashMap<PathBuf, (Stamp, String)>>,
}

/// Values that change when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileDigests {
    /// An error unless the file has the bytes its name says.
    pub fn check(&self, file: &BootFile) -> Result<(), FirecrackerError> {
        let found = self.of(&file.path).map_err(FirecrackerError::file("reading", file.path.clone()))?;
        if found == file.blake3 {
            return Ok(());
        }
        Err(FirecrackerError::OtherBytes { path: file.path.clone(), expected: file.blake3.clone(), found })
    }

    /// The BLAKE3 digest of a file's bytes, in lower-case hexadecimal digits.
    pub fn of(&self, path: &Path) -> io::Result<String> {
        let file = RegularFile::open(path, u64::MAX)?.into_file();
        let stamp = Stamp::of(&file)?;
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((before, digest)) = known().get(path)
            && *before == stamp
        {
            return Ok(digest.clone());
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(&file)?;
        let digest = hasher.finalize().to_hex().to_string();
        // The digest of a file that was written meanwhile is computed again.
        if Stamp::of(&file)? == stamp {
            let mut known = known();
            if known.len() >= KNOWN_FILES_MAX {
                known.clear();
            }
            known.insert(path.to_owned(), (stamp, digest.clone()));
        }
        Ok(digest)
    }
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let facts = file.metadata()?;
        Ok(Self {
            device: facts.dev(),
            inode: facts.ino(),
            bytes: facts.len(),
            modified: (facts.mtime(), facts.mtime_nsec()),
            changed: (facts.ctime(), facts.ctime_nsec()),
        })
    }
}

/// A new file for its owner alone.
pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Copies a file into a new one: its blocks are shared where the file system can, else its data is copied and its holes
/// stay holes.
pub(super) fn copy(source: &File, target: &Path) -> io::Result<File> {
    let copied = create(target)?;
    if rustix::fs::ioctl_ficlone(&copied, source).is_ok() {
        return Ok(copied);
    }
    let bytes = source.metadata()?.len();
    copied.set_len(bytes)?;
    for run in data_runs(source, bytes)? {
        let (mut from, mut into) = (source, &copied);
        from.seek(SeekFrom::Start(run.start))?;
        into.seek(SeekFrom::Start(run.start))?;
        let wanted = run.end - run.start;
        if io::copy(&mut from.take(wanted), &mut into)? != wanted {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file was shortened while it was copied",
            ));
        }
    }
    Ok(copied)
}

/// The stretches of the first `bytes` bytes that are no holes.
pub(super) fn data_runs(file: &File, bytes: u64) -> io::Result<Vec<Range<u64>>> {
    let mut runs = Vec::new();
    let mut position = 0;
    while position < bytes {
        let start = match rustix::fs::seek(file, SeekTo::Data(position)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = rustix::fs::seek(file, SeekTo::Hole(start))?;
        runs.push(start..end.min(bytes));
        position = end;
    }
    Ok(runs.into_iter().filter(|run| run.start < run.end).collect())
}

/// True if the file was there.
pub(super) fn if_there(done: io::Result<()>) -> io::Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn a_copy_has_the_bytes_and_the_holes() {
        let directory = tempfile::tempdir().unwrap();
        let source = create(&directory.path().join("source")).unwrap();
        source.set_len(64 << 20).unwrap();
        source.write_all_at(b"in the middle", 32 << 20).unwrap();
        let copied = copy(&source, &directory.path().join("copied")).unwrap();
        assert_eq!(copied.metadata().unwrap().len(), 64 << 20);
        let mut read = [0; 13];
        copied.read_exact_at(&mut read, 32 << 20).unwrap();
        assert_eq!(&read, b"in the middle");
        assert!(copied.metadata().unwrap().blocks() * 512 <= 1 << 20, "holes stay holes");
        assert!(copy(&source, &directory.path().join("copied")).is_err(), "nothing is overwritten");
    }

    #[test]
    fn a_file_with_other_bytes_is_refused_by_name_although_it_was_right_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kernel");
        std::fs::write(&path, b"a kernel").unwrap();
        let digests = FileDigests::default();
        let file = BootFile { path: path.clone(), blake3: digests.of(&path).unwrap(), named: None };
        digests.check(&file).unwrap();
        std::fs::write(&path, b"another").unwrap();
        let error = digests.check(&file).unwrap_err();
        assert!(
            matches!(&error, FirecrackerError::OtherBytes { path: named, .. } if *named == path),
            "{error}"
        );
        assert!(error.to_string().contains(&file.blake3), "{error}");
    }
}
