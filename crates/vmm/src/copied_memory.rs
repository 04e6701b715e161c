//! A stopped guest's pages, copied into a memfd of ours: for memory that cannot be adopted, or goes on being written.

use std::io;

use rekindle_engine::geometry::{GuestPages, bytes_of_pages, usize_of};
use rekindle_engine::page_set::PageSet;
use rekindle_engine::pause::PausedVolume;
use rekindle_engine::regions::Regions;
use rekindle_kernel::{Memfd, PAGE_BYTES, PageKind, WritableMapping, process};

/// Pages that are copied at once: few enough for a processor's cache.
const COPIED_AT_ONCE: u32 = 64;

/// Copies `kept` of the guest's pages; page `p` is at byte `p * 4096` of the result, the others are holes. The process
/// must be stopped, and every page of `kept` present: reading a missing one would wait for its own fault handler.
pub fn copy_pages(pid: u32, regions: &Regions, kept: &PageSet) -> io::Result<Memfd> {
    let bytes = usize_of(regions.pages()) * PAGE_BYTES;
    let mut copied = WritableMapping::create("rekindle-capture", bytes, PageKind::Small)?;
    for run in kept.runs() {
        let mut left = run;
        while left.count() > 0 {
            let here: GuestPages = regions.clip(left, left.start());
            let start = here.start().offset();
            let into = &mut copied.as_mut_slice()[start..start + usize_of(here.count()) * PAGE_BYTES];
            process::read_memory(pid, &[regions.range_of(here)], into)?;
            left = left.after(here.count());
        }
    }
    Ok(copied.into_memfd())
}

/// The same volume in a memory file of its own: the guest can go on with the one it has.
pub fn copy_volume(volume: PausedVolume) -> io::Result<PausedVolume> {
    let PausedVolume { name, page_kind, memfd, pages } = volume;
    let copied = Memfd::create("rekindle-checkpoint", bytes_of_pages(pages.kept.pages()), PageKind::Small)?;
    // Written from a buffer: a page that a mapping touches first is filled with zeroes before.
    let mut buffer = vec![0; usize_of(COPIED_AT_ONCE) * PAGE_BYTES];
    for run in pages.kept.runs() {
        let mut left = run;
        while !left.is_empty() {
            let here = left.first_pages(COPIED_AT_ONCE);
            let bytes = &mut buffer[..usize_of(here.count()) * PAGE_BYTES];
            memfd.read_at(bytes, here.start().offset_bytes())?;
            copied.write_at(bytes, here.start().offset_bytes())?;
            left = left.after(here.count());
        }
    }
    Ok(PausedVolume { name, page_kind, memfd: copied, pages })
}
