//! A stopped guest's pages, copied into a memfd of ours: for memory that cannot be adopted, or goes on being written.

use std::io;

use rekindle_engine::geometry::{GuestPages, bytes_of_pages, usize_of};
use rekindle_engine::page_set::PageSet;
use rekindle_engine::pause::PausedVolume;
use rekindle_engine::regions::Regions;
use rekindle_kernel::{Memfd, PAGE_BYTES, PageKind, process};

/// Pages that are copied at once: few enough for a processor's cache.
const COPIED_AT_ONCE: u32 = 64;

/// Copies `kept` of the guest's pages; page `p` is at byte `p * 4096` of the result, the others are holes. The process
/// must be stopped, and every page of `kept` present: reading a missing one would wait for its own fault handler.
pub fn copy_pages(pid: u32, regions: &Regions, kept: &PageSet) -> io::Result<Memfd> {
    let copied = Memfd::create("rekindle-capture", bytes_of_pages(regions.pages()), PageKind::Small)?;
    let clip = |run: GuestPages| regions.clip(run, run.start());
    let mut ranges = Vec::new();
    copy_into(&copied, kept, clip, |runs, bytes| {
        ranges.clear();
        ranges.extend(runs.iter().map(|run| regions.range_of(*run)));
        process::read_memory(pid, &ranges, bytes)
    })?;
    Ok(copied)
}

/// The same volume in a memory file of its own: the guest can go on with the one it has.
pub fn copy_volume(volume: PausedVolume) -> io::Result<PausedVolume> {
    let PausedVolume { name, page_kind, memfd, pages } = volume;
    let copied = Memfd::create("rekindle-checkpoint", bytes_of_pages(pages.kept.pages()), PageKind::Small)?;
    let whole = |run| run;
    copy_into(&copied, &pages.kept, whole, |runs, mut bytes| {
        for run in runs {
            let of_run;
            (of_run, bytes) = bytes.split_at_mut(size_of(*run));
            memfd.read_at(of_run, run.start().offset_bytes())?;
        }
        Ok(())
    })?;
    Ok(PausedVolume { name, page_kind, memfd: copied, pages })
}

/// Copies `kept` into a new file, as many pages at once as fit the buffer. `clip` cuts a run to what is read as one, and
/// `read` fills a buffer with such runs, one after the other.
fn copy_into(
    copied: &Memfd,
    kept: &PageSet,
    clip: impl Fn(GuestPages) -> GuestPages,
    mut read: impl FnMut(&[GuestPages], &mut [u8]) -> io::Result<()>,
) -> io::Result<()> {
    // Written from a buffer: a page that a mapping touches first is filled with zeroes before.
    let mut buffer = vec![0; usize_of(COPIED_AT_ONCE) * PAGE_BYTES];
    let mut copy = |runs: &[GuestPages]| {
        let bytes = &mut buffer[..runs.iter().copied().map(size_of).sum()];
        read(runs, bytes)?;
        let mut rest = &*bytes;
        for run in runs {
            let of_run;
            (of_run, rest) = rest.split_at(size_of(*run));
            copied.write_at(of_run, run.start().offset_bytes())?;
        }
        io::Result::Ok(())
    };
    let (mut runs, mut room) = (Vec::new(), COPIED_AT_ONCE);
    for run in kept.runs() {
        let mut left = run;
        while !left.is_empty() {
            let here = clip(left.first_pages(room));
            runs.push(here);
            (left, room) = (left.after(here.count()), room - here.count());
            if room == 0 {
                copy(&runs)?;
                runs.clear();
                room = COPIED_AT_ONCE;
            }
        }
    }
    copy(&runs)
}

fn size_of(run: GuestPages) -> usize {
    usize_of(run.count()) * PAGE_BYTES
}
