//! A published snapshot as one file: a tar archive of what the store has of it.
//!
//! Its entries: `rekindle-export` with the format's number, `manifest` as it is stored, `layers/<layer>` for each layer of
//! the manifest, with the bytes of its object, and perhaps `working-set`. Their order does not matter to a reader.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;

use tar::{Archive, Builder, EntryType, Header};

use crate::geometry::u64_of;
use crate::identity::LayerId;

const FORMAT_ENTRY: &str = "rekindle-export";
const FORMAT: &str = "1\n";
/// Mode of the files that an archive program makes of the entries.
const MODE: u32 = 0o600;

/// Reason that a file is not read as an export.
#[derive(Debug, thiserror::Error)]
pub enum ExportFileError {
    /// The system's error.
    #[error("it cannot be read: {0}")]
    Io(io::Error),
    /// It is something else.
    #[error("it is no export of a snapshot: {0}")]
    NotOne(String),
    /// It was written in a format that this program does not know.
    #[error(
        "it is an export of format {found:?}, and this rekindle reads format 1: read it with the one that wrote it"
    )]
    Format {
        /// The format in it.
        found: String,
    },
    /// An entry is not there, or is not as long as it must be.
    #[error("its entry {entry} {fault}: the file is cut short or damaged")]
    Entry {
        /// The entry's name.
        entry: String,
        /// The fault.
        fault: String,
    },
}

/// An export that is being read.
#[derive(Debug)]
pub(crate) struct ExportFile {
    file: File,
    entries: HashMap<String, Place>,
}

/// Place of an entry's bytes in the file.
#[derive(Clone, Copy, Debug)]
struct Place {
    start: u64,
    bytes: u64,
}

/// The name of a layer's entry.
pub(crate) fn layer_entry(layer: LayerId) -> String {
    format!("layers/{layer}")
}

/// The entry of the manifest.
pub(crate) const MANIFEST_ENTRY: &str = "manifest";

/// The entry of the working set.
pub(crate) const WORKING_SET_ENTRY: &str = "working-set";

/// An export that is being written.
pub(crate) struct ExportWriter<W: Write>(Builder<W>);

impl<W: Write> ExportWriter<W> {
    /// Begins an export.
    pub(crate) fn begin(into: W) -> io::Result<Self> {
        let mut this = Self(Builder::new(into));
        this.entry(FORMAT_ENTRY, FORMAT.as_bytes())?;
        Ok(this)
    }

    /// Writes a whole entry.
    pub(crate) fn entry(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.long_entry(name, u64_of(bytes.len()), |into| into.write_all(bytes))
    }

    /// Writes an entry of `bytes` bytes, as many as `write` writes.
    pub(crate) fn long_entry<E: From<io::Error>>(
        &mut self,
        name: &str,
        bytes: u64,
        write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut front = Header::new_gnu();
        front.set_path(name)?;
        front.set_entry_type(EntryType::Regular);
        front.set_size(bytes);
        front.set_mode(MODE);
        front.set_cksum();
        let into = self.0.get_mut();
        into.write_all(front.as_bytes())?;
        write(into)?;
        let block = u64_of(front.as_bytes().len());
        let padding = usize::try_from(bytes.next_multiple_of(block) - bytes).expect("less than a block");
        Ok(into.write_all(&vec![0; padding])?)
    }

    /// Ends it; without this, a reader finds it cut short.
    pub(crate) fn end(self) -> io::Result<W> {
        self.0.into_inner()
    }
}

impl ExportFile {
    /// Finds the entries of an export; none of their content is looked at but the format.
    pub(crate) fn open(file: File) -> Result<Self, ExportFileError> {
        let not_one = |error: io::Error| ExportFileError::NotOne(error.to_string());
        let mut entries = HashMap::new();
        let mut archive = Archive::new(file);
        for entry in archive.entries_with_seek().map_err(not_one)? {
            let entry = entry.map_err(not_one)?;
            let name = entry.path().map_err(not_one)?.display().to_string();
            if entry.header().entry_type() != EntryType::Regular {
                return Err(ExportFileError::NotOne(format!("its entry {name} is no regular file")));
            }
            let place = Place { start: entry.raw_file_position(), bytes: entry.size() };
            if entries.insert(name.clone(), place).is_some() {
                return Err(ExportFileError::NotOne(format!("it has two entries {name}")));
            }
        }
        let this = Self { file: archive.into_inner(), entries };
        if !this.has(FORMAT_ENTRY) {
            return Err(ExportFileError::NotOne(format!("it has no entry {FORMAT_ENTRY}")));
        }
        let found = this.whole(FORMAT_ENTRY, FORMAT_BYTES_MAX)?;
        if found != FORMAT.as_bytes() {
            let found = String::from_utf8_lossy(&found).trim().to_owned();
            return Err(ExportFileError::Format { found });
        }
        Ok(this)
    }

    /// True if it has an entry of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The bytes of an entry, of which there are at most `bytes_max`.
    pub(crate) fn whole(&self, name: &str, bytes_max: usize) -> Result<Vec<u8>, ExportFileError> {
        let place = self.place(name)?;
        match usize::try_from(place.bytes) {
            Ok(bytes) if bytes <= bytes_max => self.part(name, 0, bytes),
            Ok(_) | Err(_) => {
                let fault = format!("has {} bytes, and may have {bytes_max}", place.bytes);
                Err(ExportFileError::Entry { entry: name.to_owned(), fault })
            }
        }
    }

    /// Checks the length of an entry.
    pub(crate) fn expect_bytes(&self, name: &str, expected: u64) -> Result<(), ExportFileError> {
        match self.place(name)?.bytes {
            bytes if bytes == expected => Ok(()),
            bytes => {
                let fault = format!("has {bytes} bytes, and its manifest says {expected}");
                Err(ExportFileError::Entry { entry: name.to_owned(), fault })
            }
        }
    }

    /// `bytes` bytes of an entry from `start` on, which is within it.
    pub(crate) fn part(&self, name: &str, start: u64, bytes: usize) -> Result<Vec<u8>, ExportFileError> {
        let place = self.place(name)?;
        let mut read = vec![0; bytes];
        let done = self.file.read_exact_at(&mut read, place.start.saturating_add(start));
        match done {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let fault = "ends with the file before its own end".to_owned();
                Err(ExportFileError::Entry { entry: name.to_owned(), fault })
            }
            done => done.map(|()| read).map_err(ExportFileError::Io),
        }
    }

    fn place(&self, name: &str) -> Result<Place, ExportFileError> {
        let missing = || ExportFileError::Entry { entry: name.to_owned(), fault: "is not there".to_owned() };
        self.entries.get(name).copied().ok_or_else(missing)
    }
}

/// Bytes that the number of a format may have.
const FORMAT_BYTES_MAX: usize = 64;
