//! Scans of a process's page tables for the pages that were written, or that are there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use linux_raw_sys::general as raw;

use crate::guest_range::GuestRange;
use crate::ioctl::Scan;
use crate::number::{size, wide, word};
use crate::page::PAGE_BYTES;

/// The page map of one process.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
}

/// The pages that a scan looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageClass {
    /// Written since they were last protected, or never protected; a page that was removed since then is not found.
    Written,
    /// In memory or swapped out, with content of their own: not the shared zero page.
    Resident,
    /// Changed by a private mapping: neither the file's page nor the shared zero page.
    Diverged,
    /// In memory and in the page table.
    Present,
}

/// Filter of a scan by writes since the last protection; a page that was never protected counts as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// The page was written, or may have been.
    Yes,
    /// The page was not written.
    No,
}

const PRESENT_OR_SWAPPED: u64 = wide(raw::PAGE_IS_PRESENT | raw::PAGE_IS_SWAPPED);

/// Page map entries read in one call.
const ENTRIES_MAX: usize = 1024;

/// Regions read from the kernel in one call.
const REGIONS_MAX: usize = 1024;

impl Pagemap {
    /// The page map of process `pid`; needs the right to trace it.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self { file: File::open(format!("/proc/{pid}/pagemap"))? })
    }

    /// The page map of this process.
    pub fn of_self() -> io::Result<Self> {
        Ok(Self { file: File::open("/proc/self/pagemap")? })
    }

    /// True if this kernel has page-table scans (Linux 6.7).
    pub fn offers_scan(&self) -> bool {
        self.scan(GuestRange { start: 0, bytes: 0 }, PageClass::Resident, &mut |_| {}).is_ok()
    }

    /// Calls `found` with each run of pages in `range` that are of class `want`, in order.
    ///
    /// The kernel may report the last run twice: collect into a set. Pages of a shared memory file that are no longer
    /// mapped (MADV_DONTNEED, swapping) are not found. `range` has whole pages, mapped or not.
    pub fn scan(
        &self,
        range: GuestRange,
        want: PageClass,
        found: &mut dyn FnMut(GuestRange),
    ) -> io::Result<()> {
        self.walk(range, want, 0, &mut |range, _| found(range))
    }

    /// Like [`Self::scan`], and also says if each run was written: two answers for one walk.
    pub fn scan_with_written(
        &self,
        range: GuestRange,
        want: PageClass,
        found: &mut dyn FnMut(GuestRange, Written),
    ) -> io::Result<()> {
        self.walk(range, want, 0, found)
    }

    /// Like [`Self::scan`], and protects the found pages again in the same step, so that no write is missed.
    ///
    /// The range must be registered with `WP_ASYNC`; otherwise nothing is protected, and the result is an error.
    pub fn scan_and_protect(
        &self,
        range: GuestRange,
        want: PageClass,
        found: &mut dyn FnMut(GuestRange),
    ) -> io::Result<()> {
        self.walk(
            range,
            want,
            wide(raw::PM_SCAN_WP_MATCHING | raw::PM_SCAN_CHECK_WPASYNC),
            &mut |range, _| {
                found(range);
            },
        )
    }

    fn walk(
        &self,
        range: GuestRange,
        want: PageClass,
        flags: u64,
        found: &mut dyn FnMut(GuestRange, Written),
    ) -> io::Result<()> {
        let empty = raw::page_region { start: 0, end: 0, categories: 0 };
        let mut regions = vec![empty; REGIONS_MAX];
        let mut start = range.start;
        loop {
            let mut argument = want.question();
            argument.flags = flags;
            argument.start = start;
            argument.end = range.end();
            argument.vec = word(regions.as_mut_ptr().expose_provenance());
            argument.vec_len = word(regions.len());
            // SAFETY: the kernel writes at most `vec_len` regions at `vec`, which we own.
            let count = unsafe { rustix::ioctl::ioctl(&self.file, Scan(&mut argument)) }?;
            for region in &regions[..count.min(REGIONS_MAX)] {
                let range =
                    GuestRange { start: region.start, bytes: region.end.saturating_sub(region.start) };
                let is_written = region.categories & wide(raw::PAGE_IS_WRITTEN) != 0;
                let written = if is_written { Written::Yes } else { Written::No };
                if region.categories & wide(raw::PAGE_IS_PRESENT) != 0 {
                    found(range, written);
                } else {
                    self.without_markers(range, &mut |range| found(range, written))?;
                }
            }
            // Less than full: the walk came to the end, even if `walk_end` says otherwise.
            if count < REGIONS_MAX || argument.walk_end <= start || argument.walk_end >= range.end() {
                return Ok(());
            }
            start = argument.walk_end;
        }
    }
}

impl Pagemap {
    /// Calls `found` with the pages of `range` that really exist. The scan also calls a marker of protection or
    /// poisoning a swapped-out page; page map entries tell them apart.
    fn without_markers(&self, range: GuestRange, found: &mut dyn FnMut(GuestRange)) -> io::Result<()> {
        let page_bytes = word(PAGE_BYTES);
        let mut bytes = [0; ENTRIES_MAX * 8];
        let mut run = GuestRange { start: range.start, bytes: 0 };
        let mut at = range.start;
        while at < range.end() {
            let entries = size((range.end() - at).div_ceil(page_bytes)).min(ENTRIES_MAX);
            self.file.read_exact_at(&mut bytes[..entries * 8], at / page_bytes * 8)?;
            let (entries, _) = bytes[..entries * 8].as_chunks::<8>();
            for entry in entries {
                if is_there(u64::from_ne_bytes(*entry)) {
                    run.bytes += page_bytes;
                } else {
                    if run.bytes > 0 {
                        found(run);
                    }
                    run = GuestRange { start: at + page_bytes, bytes: 0 };
                }
                at += page_bytes;
            }
        }
        if run.bytes > 0 {
            found(run);
        }
        Ok(())
    }
}

/// True if a page map entry (admin-guide/mm/pagemap.rst) is a page, in memory or swapped out, and not a marker.
///
/// A marker is a swap entry of the highest type (include/linux/swap.h), or in hugetlb memory an entry with nothing but
/// protection. Without CAP_SYS_ADMIN types read as 0, and markers of small pages look like pages.
fn is_there(entry: u64) -> bool {
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const PROTECTED: u64 = 1 << 57;
    const TYPES: u64 = 31;
    match entry {
        entry if entry & PRESENT != 0 => true,
        entry if entry & SWAPPED != 0 => entry & TYPES != TYPES,
        entry => entry & PROTECTED == 0,
    }
}

impl PageClass {
    /// The class as the kernel's masks; a bit in `category_inverted` asks for the absence of that category.
    fn question(self) -> raw::pm_scan_arg {
        let (inverted, mask) = match self {
            Self::Written => (0, wide(raw::PAGE_IS_WRITTEN)),
            Self::Resident => (wide(raw::PAGE_IS_PFNZERO), wide(raw::PAGE_IS_PFNZERO)),
            Self::Diverged => {
                let of_others = wide(raw::PAGE_IS_FILE | raw::PAGE_IS_PFNZERO);
                (of_others, of_others)
            }
            Self::Present => (0, wide(raw::PAGE_IS_PRESENT)),
        };
        raw::pm_scan_arg {
            size: word(size_of::<raw::pm_scan_arg>()),
            flags: 0,
            start: 0,
            end: 0,
            walk_end: 0,
            vec: 0,
            vec_len: 0,
            max_pages: 0,
            category_inverted: inverted,
            category_mask: mask,
            category_anyof_mask: PRESENT_OR_SWAPPED,
            return_mask: wide(raw::PAGE_IS_PRESENT | raw::PAGE_IS_WRITTEN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Page map entries as written by Linux 6.18.
    #[test]
    fn a_marker_is_not_a_page() {
        assert!(is_there(0x8300_0000_0000_0c89), "present");
        assert!(is_there(0xc000_0000_0000_0123 & !(1 << 63)), "swapped out");
        assert!(is_there(0x4000_0000_0000_0000), "swapped out, its place hidden from us");
        assert!(!is_there(0x4200_0000_0000_003f), "marker of a protection");
        assert!(!is_there(0x4000_0000_0000_005f), "marker of a poisoning");
        assert!(!is_there(0x0200_0000_0000_0000), "marker in hugetlb memory");
    }
}
