//! Imports a raw image as the bytes of a volume, for the first snapshot of a sandbox with a disk.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::path::Path;

use bytesize::ByteSize;
use rekindle_engine::capture::CapturedPages;
use rekindle_engine::geometry::{GuestPage, GuestPages, bytes_of_pages, pages_covering, u64_of, usize_of};
use rekindle_engine::identity::VolumeName;
use rekindle_engine::limits::MANIFEST_PAGES_MAX;
use rekindle_engine::page_set::PageSet;
use rekindle_engine::pause::PausedVolume;
use rekindle_input::asker::Asker;
use rekindle_input::regular_file::{FileError, RegularFile};
use rekindle_kernel::{Memfd, PAGE_BYTES, PageKind};

use super::whole_sectors;

/// Bytes read at once.
const STEP_BYTES: usize = 1 << 20;

/// A page of nothing.
static ZEROES: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// First bytes of a qcow2 image.
const QCOW2: &[u8] = b"QFI\xfb";

/// A raw image in memory. Its holes and its pages of zeroes take none.
#[derive(Debug)]
pub struct Imported {
    /// The bytes, each at its place on the disk; whole pages, with zeroes where the image ends within the last one.
    pub memfd: Memfd,
    /// The pages that are not zero.
    pub pages: CapturedPages,
    /// Bytes of the disk: those of the image, rounded up to whole sectors.
    pub bytes: u64,
}

/// Reason that an image was not imported; nothing of it stays.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It is no file that can be read whole.
    #[error(transparent)]
    File(#[from] FileError),
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
    #[error("it has more than the {} that it had when it was opened: try again once no program writes to it",
        ByteSize::b(*data_bytes_max))]
    TooMuchData {
        /// Bytes that may be.
        data_bytes_max: u64,
    },
    /// The client that asked for it is gone.
    #[error("its client is gone")]
    AskerGone,
    /// It could not be read, or there is no memory for it.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A raw image that was opened and not read yet.
#[derive(Debug)]
pub struct ImageFile {
    file: File,
    file_bytes: u64,
    pages: u32,
}

impl ImageFile {
    /// Opens an image.
    pub fn open(image: &Path) -> Result<Self, ImportError> {
        let file = RegularFile::open(image, u64::MAX)?;
        let file_bytes = file.size_bytes();
        let pages = match pages_covering(file_bytes) {
            Some(pages @ 1..=MANIFEST_PAGES_MAX) => pages,
            Some(_) | None => return Err(ImportError::Size { bytes: file_bytes }),
        };
        let mut file = file.into_file();
        let mut front = Vec::new();
        io::Read::by_ref(&mut file).take(u64_of(QCOW2.len())).read_to_end(&mut front)?;
        if front == QCOW2 {
            return Err(ImportError::Qcow2);
        }
        Ok(Self { file, file_bytes, pages })
    }

    /// Bytes of the disk: those of the image, rounded up to whole sectors.
    pub fn bytes(&self) -> u64 {
        whole_sectors(self.file_bytes)
    }

    /// Bytes of the pages that are no holes: the most that an import of it takes as it is now.
    pub fn data_bytes(&self) -> io::Result<u64> {
        let (mut position, mut sum) = (0, 0);
        while let Some(data) = next_data(&self.file, position, self.file_bytes)? {
            let whole = whole_pages(&data);
            sum += whole.end - whole.start.max(position);
            position = whole.end;
        }
        Ok(sum)
    }

    /// Bytes of the pages that are not zero; the image is read for it.
    pub fn count_bytes(&mut self, asker: &Asker) -> Result<u64, ImportError> {
        let mut sum = 0;
        self.each_run(asker, |run, _| {
            sum += run.bytes();
            Ok(())
        })?;
        Ok(sum)
    }

    /// Takes the image into memory, at most `data_bytes_max` bytes of pages that are not zero.
    pub fn import(mut self, data_bytes_max: u64, asker: &Asker) -> Result<Imported, ImportError> {
        let memfd = Memfd::create("rekindle-imported-disk", bytes_of_pages(self.pages), PageKind::Small)?;
        let mut kept = PageSet::new(self.pages);
        let mut bytes_left = data_bytes_max;
        self.each_run(asker, |run, bytes| {
            let left = bytes_left.checked_sub(run.bytes());
            bytes_left = left.ok_or(ImportError::TooMuchData { data_bytes_max })?;
            memfd.write_at(bytes, run.start().offset_bytes())?;
            kept.insert_run(run);
            Ok(())
        })?;
        let pages = CapturedPages { kept, zero: PageSet::new(self.pages) };
        Ok(Imported { memfd, pages, bytes: self.bytes() })
    }

    /// Reads the image, and gives each run of pages that are not zero with its bytes.
    fn each_run(
        &mut self,
        asker: &Asker,
        mut take: impl FnMut(GuestPages, &[u8]) -> Result<(), ImportError>,
    ) -> Result<(), ImportError> {
        let mut buffer = vec![0; STEP_BYTES];
        let mut position = 0;
        while let Some(data) = next_data(&self.file, position, self.file_bytes)? {
            let data = whole_pages(&data);
            position = data.start.max(position);
            self.file.seek(SeekFrom::Start(position))?;
            while position < data.end {
                if asker.is_gone() {
                    return Err(ImportError::AskerGone);
                }
                let wanted = (data.end - position).min(u64_of(STEP_BYTES));
                let there = usize::try_from(wanted.min(self.file_bytes - position)).expect("at most a step");
                // A file that was cut since is an error: its lost bytes are not zero.
                self.file.read_exact(&mut buffer[..there])?;
                buffer[there..].fill(0);
                each_run_in(position, &buffer[..there.next_multiple_of(PAGE_BYTES)], &mut take)?;
                position += wanted;
            }
        }
        Ok(())
    }
}

impl Imported {
    /// The image as a volume of a first pause.
    pub fn into_volume(self, name: VolumeName) -> PausedVolume {
        PausedVolume { name, page_kind: PageKind::Small, memfd: self.memfd, pages: self.pages }
    }
}

/// Gives each run of pages that are not zero among `bytes`, which stand at `position` of an image.
fn each_run_in(
    position: u64,
    bytes: &[u8],
    take: &mut impl FnMut(GuestPages, &[u8]) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    let first = GuestPage::new(u32::try_from(position / u64_of(PAGE_BYTES)).expect("within the image"));
    let page = |index: u32| &bytes[usize_of(index) * PAGE_BYTES..][..PAGE_BYTES];
    let count = u32::try_from(bytes.len() / PAGE_BYTES).expect("a step is small");
    let is_zero = |index: &u32| page(*index) == ZEROES;
    let mut next = 0;
    while next < count {
        next += u32::try_from((next..count).take_while(is_zero).count()).expect("a step is small");
        let run = u32::try_from((next..count).take_while(|index| !is_zero(index)).count())
            .expect("a step is small");
        if run > 0 {
            let run_bytes = &bytes[usize_of(next) * PAGE_BYTES..][..usize_of(run) * PAGE_BYTES];
            take(GuestPages::new(first.plus(next), run), run_bytes)?;
        }
        next += run;
    }
    Ok(())
}

/// A stretch of bytes with the rest of its first and last page.
fn whole_pages(data: &Range<u64>) -> Range<u64> {
    let page_bytes = u64_of(PAGE_BYTES);
    data.start / page_bytes * page_bytes..data.end.next_multiple_of(page_bytes)
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
