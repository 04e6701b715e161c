//! A raw image becomes the bytes of a volume: what the first snapshot of a sandbox with a disk has.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::path::Path;

use rekindle_engine::capture::CapturedPages;
use rekindle_engine::geometry::{GuestPage, GuestPages, bytes_of_pages, pages_covering, u64_of, usize_of};
use rekindle_engine::identity::VolumeName;
use rekindle_engine::limits::MANIFEST_PAGES_MAX;
use rekindle_engine::page_set::PageSet;
use rekindle_engine::pause::PausedVolume;
use rekindle_kernel::{Memfd, PAGE_BYTES, PageKind};
use rustix::fs::{Mode, OFlags};

/// Bytes read at once.
const STEP_BYTES: usize = 1 << 20;

/// A page of nothing.
static ZEROES: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// What a qcow2 image begins with.
const QCOW2: &[u8] = b"QFI\xfb";

/// A raw image in memory. Its holes and its pages of zeroes take none.
#[derive(Debug)]
pub struct Imported {
    /// The bytes, each at its place on the disk; whole pages, what the image lacks of the last one is zero.
    pub memfd: Memfd,
    /// The pages that are not zero.
    pub pages: CapturedPages,
    /// Bytes of the disk: exactly those of the image.
    pub bytes: u64,
}

/// Why an image was not imported; nothing of it stays.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It is no file that has all its bytes now.
    #[error("it is not a regular file")]
    NotAFile,
    /// It is not raw.
    #[error("it is a qcow2 image; convert it first: qemu-img convert -O raw IMAGE RAW")]
    Qcow2,
    /// It has no bytes, or more than a volume may have.
    #[error(
        "an image of {bytes} bytes cannot be a disk: it has 1 to {MANIFEST_PAGES_MAX} pages of 4096 bytes"
    )]
    Size {
        /// Bytes of the image.
        bytes: u64,
    },
    /// It has more data than may be taken into memory.
    #[error(
        "it has more than {data_bytes_max} bytes that are not zero, which is all that may be taken into memory"
    )]
    TooMuchData {
        /// Bytes that may be.
        data_bytes_max: u64,
    },
    /// It could not be read, or there is no memory for it.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Takes a raw image into memory, at most `data_bytes_max` bytes of pages that are not zero.
pub fn import(image: &Path, data_bytes_max: u64) -> Result<Imported, ImportError> {
    // NONBLOCK: opening a pipe does not wait for somebody to write to it.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mut file = File::from(rustix::fs::open(image, flags, Mode::empty()).map_err(io::Error::from)?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(ImportError::NotAFile);
    }
    let bytes = metadata.len();
    let pages = match pages_covering(bytes) {
        Some(pages @ 1..=MANIFEST_PAGES_MAX) => pages,
        Some(_) | None => return Err(ImportError::Size { bytes }),
    };
    let mut front = Vec::new();
    io::Read::by_ref(&mut file).take(u64_of(QCOW2.len())).read_to_end(&mut front)?;
    if front == QCOW2 {
        return Err(ImportError::Qcow2);
    }
    let memfd = Memfd::create("rekindle-imported-disk", bytes_of_pages(pages), PageKind::Small)?;
    let mut taking = Taking {
        memfd,
        kept: PageSet::new(pages),
        buffer: vec![0; STEP_BYTES],
        bytes_left: data_bytes_max,
        data_bytes_max,
    };
    let mut position = 0;
    while let Some(data) = next_data(&file, position, bytes)? {
        taking.take(&mut file, data.clone(), bytes)?;
        position = data.end;
    }
    let pages = CapturedPages { kept: taking.kept, zero: PageSet::new(pages) };
    Ok(Imported { memfd: taking.memfd, pages, bytes })
}

impl Imported {
    /// The image as a volume of a first pause.
    pub fn into_volume(self, name: VolumeName) -> PausedVolume {
        PausedVolume { name, page_kind: PageKind::Small, memfd: self.memfd, pages: self.pages }
    }
}

/// An image that is being taken in.
struct Taking {
    memfd: Memfd,
    kept: PageSet,
    buffer: Vec<u8>,
    bytes_left: u64,
    data_bytes_max: u64,
}

impl Taking {
    /// Takes the pages that `data` touches, of an image of `end` bytes.
    fn take(&mut self, file: &mut File, data: Range<u64>, end: u64) -> Result<(), ImportError> {
        let page_bytes = u64_of(PAGE_BYTES);
        let start = data.start / page_bytes * page_bytes;
        file.seek(SeekFrom::Start(start))?;
        let mut position = start;
        let mut buffer = std::mem::take(&mut self.buffer);
        while position < data.end {
            let wanted = (data.end.next_multiple_of(page_bytes) - position).min(u64_of(STEP_BYTES));
            let there = usize::try_from(wanted.min(end - position)).expect("at most a step");
            // A file that was cut since is an error: what it had is not zero.
            file.read_exact(&mut buffer[..there])?;
            buffer[there..].fill(0);
            self.take_step(position, &buffer[..there.next_multiple_of(PAGE_BYTES)])?;
            position += wanted;
        }
        self.buffer = buffer;
        Ok(())
    }

    fn take_step(&mut self, position: u64, bytes: &[u8]) -> Result<(), ImportError> {
        let first = GuestPage::new(u32::try_from(position / u64_of(PAGE_BYTES)).expect("within the image"));
        let page = |index: u32| &bytes[usize_of(index) * PAGE_BYTES..][..PAGE_BYTES];
        let count = u32::try_from(bytes.len() / PAGE_BYTES).expect("a step is small");
        let is_zero = |index: &u32| page(*index) == ZEROES;
        let mut next = 0;
        while next < count {
            next += u32::try_from((next..count).take_while(is_zero).count()).expect("a step is small");
            let run = u32::try_from((next..count).take_while(|index| !is_zero(index)).count())
                .expect("a step is small");
            self.keep(GuestPages::new(first.plus(next), run), &bytes[usize_of(next) * PAGE_BYTES..])?;
            next += run;
        }
        Ok(())
    }

    fn keep(&mut self, run: GuestPages, bytes: &[u8]) -> Result<(), ImportError> {
        let too_much = ImportError::TooMuchData { data_bytes_max: self.data_bytes_max };
        self.bytes_left = self.bytes_left.checked_sub(run.bytes()).ok_or(too_much)?;
        self.memfd.write_at(&bytes[..usize_of(run.count()) * PAGE_BYTES], run.start().offset_bytes())?;
        self.kept.insert_run(run);
        Ok(())
    }
}

/// The next stretch of a file that is no hole, from `position` on and before `end`.
fn next_data(file: &File, position: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    if position >= end {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(position)) {
        Ok(start) => start,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let data_end = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(start))?;
    Ok((start < end).then_some(start..data_end.min(end)))
}
