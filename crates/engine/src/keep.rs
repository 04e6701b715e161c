//! Captured memory across a restart of this process: a keeper holds the descriptors, and the page sets go with them.
//!
//! The sets are in a memory file. Layout, little-endian: magic `RKCS`, version u16, pages u32; from byte 4096 on the
//! bits of the kept pages as 64-bit words, directly followed by those of the zero pages.

use std::fmt::Debug;
use std::io;
use std::os::fd::OwnedFd;

use rekindle_kernel::memfd::AdoptError;
use rekindle_kernel::{Memfd, PAGE_BYTES, PageKind};

use crate::capture::{Capture, CapturedPages};
use crate::geometry::{u64_of, usize_of};
use crate::identity::{SnapshotId, VolumeName};
use crate::limits::MANIFEST_PAGES_MAX;
use crate::page_set::PageSet;
use crate::wire::{Reader, WireError, Writer};

const MAGIC: &[u8] = b"RKCS";
const VERSION: u16 = 1;
const FRONT_BYTES: usize = 10;

/// A process (or its stand-in in a test) that holds descriptors while this one is down.
pub trait Keeper: Debug + Send + Sync {
    /// Holds the volumes of a snapshot from now on, in place of any that it held of it before.
    fn keep(&self, snapshot: SnapshotId, volumes: &[KeptVolume]) -> io::Result<()>;

    /// Notes that a snapshot's pause was undone: until it is told to forget the snapshot, it answers that it holds no
    /// volume of it. Done completely or not at all.
    fn take_back(&self, snapshot: SnapshotId) -> io::Result<()>;

    /// The volumes that it holds of a snapshot, as new descriptors of the same files; none if it holds nothing of it,
    /// and an empty list if its pause was undone.
    fn kept(&self, snapshot: SnapshotId) -> io::Result<Option<Vec<KeptVolume>>>;

    /// Releases a snapshot's volumes, if it holds any.
    fn forget(&self, snapshot: SnapshotId) -> io::Result<()>;

    /// The snapshots of which it holds volumes.
    fn held(&self) -> io::Result<Vec<SnapshotId>>;

    /// The process that holds them, if it is another one.
    fn process(&self) -> Option<u32> {
        None
    }
}

/// One captured volume as a keeper holds it.
#[derive(Debug)]
pub struct KeptVolume {
    /// Its name in the snapshot.
    pub name: VolumeName,
    /// Its bytes.
    pub memory: OwnedFd,
    /// Its page sets, in the engine's own layout.
    pub sets: OwnedFd,
}

/// A keeper that holds nothing: captured memory ends with this process.
#[derive(Debug)]
pub struct NoKeeper;

impl Keeper for NoKeeper {
    fn keep(&self, _: SnapshotId, _: &[KeptVolume]) -> io::Result<()> {
        Ok(())
    }

    fn take_back(&self, _: SnapshotId) -> io::Result<()> {
        Ok(())
    }

    fn kept(&self, _: SnapshotId) -> io::Result<Option<Vec<KeptVolume>>> {
        Ok(None)
    }

    fn forget(&self, _: SnapshotId) -> io::Result<()> {
        Ok(())
    }

    fn held(&self) -> io::Result<Vec<SnapshotId>> {
        Ok(Vec::new())
    }
}

/// Reason that a kept volume is not the one that was kept.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// A descriptor is not one of our memory files.
    #[error(transparent)]
    Adopt(#[from] AdoptError),
    /// The page sets could not be read.
    #[error("reading its page sets: {0}")]
    Io(#[from] io::Error),
    /// The page sets are malformed.
    #[error("its page sets: {0}")]
    Sets(#[from] WireError),
}

impl KeptVolume {
    /// A volume to be kept: a second descriptor of its memory, and its page sets in a memory file.
    pub(crate) fn of(name: VolumeName, capture: &Capture) -> io::Result<Self> {
        let memory = capture.memfd().try_clone()?.into();
        Ok(Self { name, memory, sets: write_sets(capture.kept(), capture.zero())?.into() })
    }

    /// The memory and its page sets.
    pub(crate) fn open(self) -> Result<(Memfd, CapturedPages), KeptError> {
        let sets = read_sets(&Memfd::adopt(self.sets)?)?;
        Ok((Memfd::adopt(self.memory)?, sets))
    }
}

fn write_sets(kept: &PageSet, zero: &PageSet) -> io::Result<Memfd> {
    let mut front = Writer::new();
    front.bytes(MAGIC);
    front.u16(VERSION);
    front.u32(kept.pages());
    let kept = bytes_of(kept.words());
    let zero = bytes_of(zero.words());
    let bytes = (PAGE_BYTES + kept.len() + zero.len()).next_multiple_of(PAGE_BYTES);
    let file = Memfd::create("rekindle-captured-pages", u64_of(bytes), PageKind::Small)?;
    file.write_at(&front.into_bytes(), 0)?;
    file.write_at(&kept, u64_of(PAGE_BYTES))?;
    file.write_at(&zero, u64_of(PAGE_BYTES + kept.len()))?;
    Ok(file)
}

fn read_sets(file: &Memfd) -> Result<CapturedPages, KeptError> {
    let mut front = [0; FRONT_BYTES];
    file.read_at(&mut front, 0)?;
    let mut reader = Reader::new(&front);
    reader.expect_bytes("captured pages magic", MAGIC)?;
    reader.version("captured pages version", &[()])?;
    let pages = reader.u32("volume pages")?;
    let words = usize_of(pages.div_ceil(u64::BITS));
    let needed = PAGE_BYTES + 2 * words * size_of::<u64>();
    if pages > MANIFEST_PAGES_MAX || u64_of(needed) > file.bytes() {
        return Err(reader.invalid("volume pages", "the sets have no room for so many").into());
    }
    let set_at = |offset: usize| -> Result<PageSet, KeptError> {
        let mut bytes = vec![0; words * size_of::<u64>()];
        file.read_at(&mut bytes, u64_of(offset))?;
        let (words, _) = bytes.as_chunks();
        let words = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let beyond = reader.invalid("page set", "a page of it is past the volume's last");
        Ok(PageSet::from_words(pages, words).ok_or(beyond)?)
    };
    let kept = set_at(PAGE_BYTES)?;
    Ok(CapturedPages { kept, zero: set_at(PAGE_BYTES + words * size_of::<u64>())? })
}

fn bytes_of(words: &[u64]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size_of_val(words));
    words.iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
    bytes
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::geometry::{GuestPage, GuestPages};

    fn captured(pages: u32) -> CapturedPages {
        let mut kept = PageSet::new(pages);
        kept.insert_run(GuestPages::new(GuestPage::new(1), pages / 2));
        let mut zero = PageSet::new(pages);
        zero.insert(GuestPage::new(pages - 1));
        CapturedPages { kept, zero }
    }

    #[test]
    fn page_sets_of_every_size_are_read_back_equal() {
        for pages in [2, 63, 64, 65, 32768, 40_000] {
            let written = captured(pages);
            let read =
                read_sets(&write_sets(&written.kept, &written.zero).expect("memory")).expect("as written");
            assert_eq!((read.kept, read.zero), (written.kept, written.zero), "{pages} pages");
        }
    }

    #[test]
    fn page_sets_that_version_1_wrote_are_read_and_those_of_an_unknown_version_refused_by_name() {
        let file = Memfd::create("kept-by-version-1", 8192, PageKind::Small).expect("memory");
        let words =
            [[0b110, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]].concat();
        file.write_at(&[&b"RKCS"[..], &[1, 0], &[70, 0, 0, 0]].concat(), 0).expect("within");
        file.write_at(&words, 4096).expect("within");
        let read = read_sets(&file).expect("version 1 wrote it");
        assert_eq!(read.kept.iter().map(GuestPage::number).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(read.zero.iter().map(GuestPage::number).collect::<Vec<_>>(), [0]);
        file.write_at(&[2], 4).expect("within");
        let refused = read_sets(&file).expect_err("it is newer").to_string();
        assert!(refused.contains("captured pages version at byte 4: version 2 is unknown"), "{refused}");
    }

    #[test]
    fn what_is_no_page_set_is_refused() {
        let CapturedPages { kept, zero } = captured(70);
        let file = write_sets(&kept, &zero).expect("memory");
        file.write_at(&[0xff], u64_of(PAGE_BYTES + 15)).expect("within");
        assert!(matches!(read_sets(&file), Err(KeptError::Sets(_))), "a page past the volume");
        file.write_at(&u32::MAX.to_le_bytes(), 6).expect("within");
        assert!(matches!(read_sets(&file), Err(KeptError::Sets(_))), "too many pages");
        file.write_at(b"RKCX", 0).expect("within");
        assert!(matches!(read_sets(&file), Err(KeptError::Sets(_))), "another magic");
    }
}
