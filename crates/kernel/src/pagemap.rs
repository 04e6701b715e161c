//! What the page tables of a process say about its memory: which pages it wrote, which it has.

use std::fs::File;
use std::io;

use linux_raw_sys::general as raw;

use crate::guest_range::GuestRange;
use crate::ioctl::Scan;
use crate::number::{wide, word};

/// The page map of one process.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
}

/// The pages that a scan looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageClass {
    /// Written since they were last protected, or never protected; a page that was removed since is not found.
    Written,
    /// There, in memory or swapped out, with content of their own: not the shared zero page.
    Resident,
    /// There and not the file's: what a private mapping has changed.
    Diverged,
}

const PRESENT_OR_SWAPPED: u64 = wide(raw::PAGE_IS_PRESENT | raw::PAGE_IS_SWAPPED);

/// Stretches taken from the kernel in one call.
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

    /// Whether this kernel can scan at all (Linux 6.7).
    pub fn offers_scan(&self) -> bool {
        self.scan(GuestRange { start: 0, bytes: 0 }, PageClass::Resident, &mut |_| {}).is_ok()
    }

    /// Gives each stretch of pages in `range` that are of class `want` to `found`, in order.
    ///
    /// The kernel may report the last stretch twice: collect into a set. Shared memory that was swapped out is not
    /// in the page table and not found. `range` is whole pages; addresses where nothing is mapped are passed over.
    pub fn scan(
        &self,
        range: GuestRange,
        want: PageClass,
        found: &mut dyn FnMut(GuestRange),
    ) -> io::Result<()> {
        self.walk(range, want, 0, found)
    }

    /// Like [`Self::scan`], and protects the pages found again at once, so that no write between is missed.
    ///
    /// The range must be registered with `WP_ASYNC`, else nothing is protected and it is an error.
    pub fn scan_and_protect(
        &self,
        range: GuestRange,
        want: PageClass,
        found: &mut dyn FnMut(GuestRange),
    ) -> io::Result<()> {
        self.walk(range, want, wide(raw::PM_SCAN_WP_MATCHING | raw::PM_SCAN_CHECK_WPASYNC), found)
    }

    fn walk(
        &self,
        range: GuestRange,
        want: PageClass,
        flags: u64,
        found: &mut dyn FnMut(GuestRange),
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
                found(GuestRange { start: region.start, bytes: region.end.saturating_sub(region.start) });
            }
            // Less than full: the walk came to the end, whatever `walk_end` says.
            if count < REGIONS_MAX || argument.walk_end <= start || argument.walk_end >= range.end() {
                return Ok(());
            }
            start = argument.walk_end;
        }
    }
}

impl PageClass {
    /// The class in the kernel's words: bits of `category_inverted` are asked for by their absence.
    fn question(self) -> raw::pm_scan_arg {
        let (inverted, mask) = match self {
            Self::Written => (0, wide(raw::PAGE_IS_WRITTEN)),
            Self::Resident => (wide(raw::PAGE_IS_PFNZERO), wide(raw::PAGE_IS_PFNZERO)),
            Self::Diverged => (wide(raw::PAGE_IS_FILE), wide(raw::PAGE_IS_FILE)),
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
            // Nothing but the range is asked back, so that neighbours merge.
            return_mask: 0,
        }
    }
}
