//! Guest memory: its regions, accessed by page number.

use std::fs::File;
use std::io;

use anyhow::{Context as _, ensure};
use rekindle_kernel::guest_memory::Backing;
use rekindle_kernel::{Discard, GuestMemory, Memfd, PAGE_BYTES, PageKind};

use super::arguments::{IMAGE_FD, MemoryKind};
use super::protocol::MemoryRegion;

/// Largest number of regions.
const REGIONS_MAX: usize = 128;

/// The memory of a guest, in regions with falling addresses at rising offsets.
pub(super) struct GuestSpace {
    kind: MemoryKind,
    memfd: Option<Memfd>,
    regions: Vec<Region>,
    pages: u32,
}

struct Region {
    first_page: u32,
    pages: u32,
    memory: GuestMemory,
}

impl GuestSpace {
    /// Maps `bytes` of zeroes in `regions` regions. With small pages all but the last have an odd number of pages, and
    /// they begin at addresses that are only 4 KiB aligned.
    pub(super) fn map(kind: MemoryKind, bytes: u64, regions: usize) -> anyhow::Result<Self> {
        let page_kind = kind.page_kind();
        let unit = u64::try_from(page_kind.bytes())?;
        ensure!(bytes.is_multiple_of(unit), "{bytes} bytes are not whole pages of {unit} bytes");
        ensure!((1..=REGIONS_MAX).contains(&regions), "guest memory has 1 to {REGIONS_MAX} regions");
        ensure!(
            bytes / unit >= u64::try_from(regions)?,
            "every region has at least one page of {unit} bytes"
        );
        let pages = u32::try_from(bytes / u64::try_from(PAGE_BYTES)?).context("memory is too large")?;
        let memfd = match kind {
            MemoryKind::Shared | MemoryKind::Huge => Some(Memfd::create("guest-memory", bytes, page_kind)?),
            MemoryKind::Image => Some(image(bytes)?),
            MemoryKind::Private | MemoryKind::PrivateHuge => None,
        };
        let mut space = Self { kind, memfd, regions: Vec::with_capacity(regions), pages };
        for pages in region_pages(kind, pages, regions)? {
            space.map_region(pages)?;
        }
        Ok(space)
    }

    pub(super) fn kind(&self) -> MemoryKind {
        self.kind
    }

    /// Length in 4 KiB pages.
    pub(super) fn pages(&self) -> u32 {
        self.pages
    }

    /// The file of the memory, unless it is private.
    pub(super) fn memfd(&self) -> Option<&Memfd> {
        self.memfd.as_ref().filter(|_| self.kind.is_shared())
    }

    /// The regions, by offset.
    pub(super) fn regions(&self) -> Vec<MemoryRegion> {
        let describe = |region: &Region| {
            let range = region.memory.range();
            MemoryRegion { start: range.start, bytes: range.bytes, offset: offset_of(region.first_page) }
        };
        self.regions.iter().map(describe).collect()
    }

    /// Writes all of a page.
    pub(super) fn write(&self, page: u32, bytes: &[u8; PAGE_BYTES]) {
        let (region, offset) = self.locate(page);
        region.memory.write(offset, bytes);
    }

    /// True if a page contains `bytes`; false if its bytes are lost.
    pub(super) fn equals(&self, page: u32, bytes: &[u8; PAGE_BYTES]) -> bool {
        let (region, offset) = self.locate(page);
        region.memory.equals(offset, bytes).unwrap_or(false)
    }

    /// The bytes of a page, unless they are lost.
    pub(super) fn read(&self, page: u32) -> Option<[u8; PAGE_BYTES]> {
        let (region, offset) = self.locate(page);
        let mut bytes = [0; PAGE_BYTES];
        region.memory.read(offset, &mut bytes).is_ok().then_some(bytes)
    }

    /// Reads one byte of a page.
    pub(super) fn touch(&self, page: u32) {
        let (region, offset) = self.locate(page);
        std::hint::black_box(region.memory.touch(offset));
    }

    /// Writes the first byte of a page.
    pub(super) fn touch_write(&self, page: u32, first: u8) {
        let (region, offset) = self.locate(page);
        region.memory.touch_write(offset, first);
    }

    /// Gives `pages` pages from `first` on back to the kernel, with one call per region.
    pub(super) fn discard(&self, first: u32, pages: u32, how: Discard) -> io::Result<()> {
        // No guest of an image makes holes in it; pages of one read zero once they are unmapped.
        let how = if matches!(self.kind, MemoryKind::Image) { Discard::DontNeed } else { how };
        let end = first + pages;
        let mut page = first;
        while page < end {
            let (region, offset) = self.locate(page);
            let count = (region.first_page + region.pages).min(end) - page;
            region.memory.discard(offset, index(count) * PAGE_BYTES, how)?;
            page += count;
        }
        Ok(())
    }

    fn map_region(&mut self, pages: u32) -> io::Result<()> {
        let first_page = self.regions.last().map_or(0, |last| last.first_page + last.pages);
        let shift = match self.kind.page_kind() {
            PageKind::Small => (2 * self.regions.len() + 1) * PAGE_BYTES,
            PageKind::Huge => 0,
        };
        let backing = match &self.memfd {
            Some(memfd) if self.kind.is_shared() => Backing::Shared(memfd, offset_of(first_page)),
            Some(memfd) => Backing::PrivateOf(memfd, offset_of(first_page)),
            None => Backing::Private(self.kind.page_kind()),
        };
        let memory = GuestMemory::map(backing, index(pages) * PAGE_BYTES, shift)?;
        self.regions.push(Region { first_page, pages, memory });
        Ok(())
    }

    /// The region of a page, and the page's offset in it.
    fn locate(&self, page: u32) -> (&Region, usize) {
        let after = self.regions.partition_point(|region| region.first_page <= page);
        let region = self.regions[..after].last().expect("the first region begins at page 0");
        (region, index(page - region.first_page) * PAGE_BYTES)
    }
}

/// The file of which the memory is a private mapping: opened anew to read, as nothing here may write it.
fn image(bytes: u64) -> anyhow::Result<Memfd> {
    let file = File::open(format!("/proc/self/fd/{IMAGE_FD}")).context("there is no image to map")?;
    let memfd = Memfd::adopt(file.into()).context("the image")?;
    ensure!(memfd.bytes() == bytes, "an image of {} bytes is no memory of {bytes}", memfd.bytes());
    Ok(memfd)
}

/// A page number as an index.
pub(super) fn index(page: u32) -> usize {
    usize::try_from(page).expect("usize is 64 bits")
}

/// Pages of each region: an odd number of whole pages of the kind, but for the last.
fn region_pages(kind: MemoryKind, pages: u32, regions: usize) -> anyhow::Result<Vec<u32>> {
    let unit = u32::try_from(kind.page_kind().bytes() / PAGE_BYTES)?;
    let others = u32::try_from(regions - 1)?;
    let usual = pages / unit / (others + 1);
    let each = if usual.is_multiple_of(2) { usual - 1 } else { usual } * unit;
    let mut sizes = vec![each; regions - 1];
    sizes.push(pages - each * others);
    Ok(sizes)
}

fn offset_of(page: u32) -> u64 {
    u64::from(page) * u64::try_from(PAGE_BYTES).expect("4096 is small")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn regions_cover_guest_memory_at_addresses_out_of_order() {
        for kind in [MemoryKind::Shared, MemoryKind::Private] {
            for regions in 1..6 {
                let space = GuestSpace::map(kind, 16 * MIB, regions).expect("16 MiB can be mapped");
                let described = space.regions();
                let mut offset = 0;
                for region in &described {
                    assert_eq!(region.offset, offset);
                    assert_eq!(region.start % 4096, 0);
                    assert_ne!(region.start % (2 * MIB), 0, "a base is only 4 KiB aligned");
                    offset += region.bytes;
                }
                assert_eq!(offset, 16 * MIB);
                assert!(regions == 1 || !described.is_sorted_by_key(|region| region.start));
            }
        }
    }

    #[test]
    fn every_page_is_its_own_and_at_its_offset_in_the_file() {
        let space = GuestSpace::map(MemoryKind::Shared, MIB, 3).expect("1 MiB can be mapped");
        assert_eq!(space.pages(), 256);
        for page in 0..256 {
            let byte = u8::try_from(page).expect("below 256");
            space.write(page, &[byte; PAGE_BYTES]);
            let mut read = [0; 1];
            let file = space.memfd().expect("shared memory has a file");
            file.read_at(&mut read, offset_of(page) + 4095).expect("the page is there");
            assert_eq!(read, [byte]);
        }
        for page in 0..256 {
            let byte = u8::try_from(page).expect("below 256");
            assert!(space.equals(page, &[byte; PAGE_BYTES]));
        }
    }

    #[test]
    fn discarded_private_pages_read_zero_and_shared_ones_only_when_removed() {
        let one = [1; PAGE_BYTES];
        let private = GuestSpace::map(MemoryKind::Private, MIB, 2).expect("1 MiB can be mapped");
        let boundary = private.regions[1].first_page;
        private.write(boundary - 1, &one);
        private.write(boundary, &one);
        assert!(private.discard(100, 100, Discard::Remove).is_err());
        private.discard(100, 100, Discard::DontNeed).expect("private pages can be given back");
        assert_eq!(private.read(boundary - 1), Some([0; PAGE_BYTES]));
        assert_eq!(private.read(boundary), Some([0; PAGE_BYTES]));

        let shared = GuestSpace::map(MemoryKind::Shared, MIB, 2).expect("1 MiB can be mapped");
        shared.write(127, &one);
        shared.discard(0, 256, Discard::DontNeed).expect("shared pages can be unmapped");
        assert!(shared.equals(127, &one));
        shared.discard(0, 256, Discard::Remove).expect("shared pages can be removed");
        assert_eq!(shared.read(127), Some([0; PAGE_BYTES]));
    }

    #[test]
    fn sizes_that_are_not_whole_pages_are_refused() {
        for (kind, bytes, regions) in [
            (MemoryKind::Private, 4097, 1),
            (MemoryKind::Private, 4096, 2),
            (MemoryKind::Private, 4096, 0),
            (MemoryKind::Huge, MIB, 1),
            (MemoryKind::Private, 1 << 60, 1),
        ] {
            assert!(GuestSpace::map(kind, bytes, regions).is_err());
        }
    }
}
