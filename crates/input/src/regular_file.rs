//! Files that users name: regular files only, opened without waiting, and of a bounded size.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use bytesize::ByteSize;
use rustix::fs::{FileType, Mode, OFlags};

/// Bytes of a file of text, such as settings, a token or certificates: a chain of a hundred has half of it.
pub const TEXT_BYTES_MAX: u64 = 1 << 20;

/// The null device, which is always empty: `--config /dev/null` is how people say "no settings file".
const NULL_DEVICE: (u32, u32) = (1, 3);

/// An open regular file, or the null device. Reading gives at most the bytes that it had when it was opened.
#[derive(Debug)]
pub struct RegularFile {
    file: io::Take<File>,
    bytes: u64,
}

/// Reason that a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It is something else.
    #[error("it is {found}, and must be a regular file")]
    NotRegular {
        /// Kind of the file.
        found: &'static str,
    },
    /// It is too long.
    #[error("it has {}, and may have {} at most", ByteSize::b(*bytes), ByteSize::b(*bytes_max))]
    TooLong {
        /// Bytes of the file.
        bytes: u64,
        /// Bytes it may have.
        bytes_max: u64,
    },
    /// It cannot be opened or read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<FileError> for io::Error {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Io(error) => error,
            error @ (FileError::NotRegular { .. } | FileError::TooLong { .. }) => {
                Self::new(io::ErrorKind::InvalidInput, error)
            }
        }
    }
}

impl RegularFile {
    /// Opens a file for reading that has at most `bytes_max` bytes. A pipe is not waited for.
    pub fn open(path: &Path, bytes_max: u64) -> Result<Self, FileError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from)?);
        let status = rustix::fs::fstat(&file).map_err(io::Error::from)?;
        let kind = FileType::from_raw_mode(status.st_mode);
        let is_null = kind == FileType::CharacterDevice && device_of(status.st_rdev) == NULL_DEVICE;
        if kind != FileType::RegularFile && !is_null {
            return Err(FileError::NotRegular { found: called(kind) });
        }
        let bytes = u64::try_from(status.st_size).unwrap_or(u64::MAX);
        if bytes > bytes_max {
            return Err(FileError::TooLong { bytes, bytes_max });
        }
        Ok(Self { file: file.take(bytes), bytes })
    }

    /// Bytes it had when it was opened.
    pub fn size_bytes(&self) -> u64 {
        self.bytes
    }

    /// The open file.
    pub fn file(&self) -> &File {
        self.file.get_ref()
    }

    /// The open file, without the bound on reading.
    pub fn into_file(self) -> File {
        self.file.into_inner()
    }
}

impl Read for RegularFile {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.file.read(into)
    }
}

/// The text of a file that has at most [`TEXT_BYTES_MAX`] bytes.
pub fn read_text(path: &Path) -> io::Result<String> {
    io::read_to_string(RegularFile::open(path, TEXT_BYTES_MAX)?)
}

/// The text of a file that others than its user and group may not read; else what is the matter with it.
pub fn read_secret(path: &Path) -> Result<String, String> {
    let cannot_be_read = |error: io::Error| format!("cannot be read: {error}");
    let file = RegularFile::open(path, TEXT_BYTES_MAX).map_err(|error| cannot_be_read(error.into()))?;
    let mode = file.file().metadata().map_err(cannot_be_read)?.permissions().mode();
    if mode & 0o007 != 0 {
        return Err(format!("can be used by everybody (mode {:o}): `chmod o=` it", mode & 0o777));
    }
    io::read_to_string(file).map_err(cannot_be_read)
}

/// The major and the minor number of a device.
fn device_of(number: u64) -> (u32, u32) {
    (rustix::fs::major(number), rustix::fs::minor(number))
}

fn called(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Unknown => "of no known kind",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_pipes_and_directories_are_refused_and_nothing_is_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let pipe = directory.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::RUSR).expect("a pipe is made");
        let zeroes = Path::new("/dev/zero");
        for path in [directory.path(), &pipe, zeroes] {
            let error = RegularFile::open(path, u64::MAX).expect_err("it is no regular file");
            assert!(matches!(error, FileError::NotRegular { .. }), "{}: {error}", path.display());
        }
        let linked = directory.path().join("linked");
        std::os::unix::fs::symlink(zeroes, &linked).expect("a link is made");
        assert!(matches!(RegularFile::open(&linked, u64::MAX), Err(FileError::NotRegular { .. })));
        assert_eq!(read_text(Path::new("/dev/null")).expect("it is empty"), "");
    }

    #[test]
    fn a_file_that_is_too_long_is_refused_by_its_size_and_one_that_grows_is_read_as_it_was() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        std::fs::write(&path, b"12345").expect("there is room");
        let error = RegularFile::open(&path, 4).expect_err("it has a byte more");
        assert_eq!(error.to_string(), "it has 5 B, and may have 4 B at most");
        let mut file = RegularFile::open(&path, 5).expect("it fits");
        std::fs::write(&path, b"123456789").expect("there is room");
        let mut read = Vec::new();
        file.read_to_end(&mut read).expect("it can be read");
        assert_eq!(read, b"12345");
    }
}
