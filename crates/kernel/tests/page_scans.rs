//! Page-table scans: what they find of written, resident and diverged pages, and what they miss.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails; clippy knows tests, but not what they call"
)]

mod support;

use std::collections::BTreeSet;

use rekindle_kernel::{
    Backing, Discard, Features, GuestMemory, GuestRange, Install, Memfd, PAGE_BYTES, PageClass, PageKind,
    Pagemap, Protect, RegisterMode, Source, Userfaultfd,
};
use support::{
    ChildProcess, child_role, filled, markers_are_told, page, run_memory_child, skipped, userfaultfd,
};

const TRACKING: Features = Features::WP_ASYNC
    .union(Features::WP_UNPOPULATED)
    .union(Features::WP_HUGETLBFS_SHMEM)
    .union(Features::PAGEFAULT_FLAG_WP);

#[test]
#[ignore = "the child of other tests"]
fn child() {
    if child_role().is_some() {
        run_memory_child(false);
    }
}

/// The page map of this process, or a skipped test where the kernel cannot scan.
fn pagemap(test: &str) -> Option<Pagemap> {
    let pagemap = Pagemap::of_self().unwrap();
    if !pagemap.offers_scan() {
        skipped(test, "this kernel has no PAGEMAP_SCAN (Linux 6.7)");
        return None;
    }
    Some(pagemap)
}

/// Page numbers of `range` that a scan finds.
fn found(pagemap: &Pagemap, range: GuestRange, want: PageClass) -> Vec<u64> {
    collect(range, |found| pagemap.scan(range, want, found).unwrap())
}

fn collect(range: GuestRange, scan: impl FnOnce(&mut dyn FnMut(GuestRange))) -> Vec<u64> {
    let mut pages = BTreeSet::new();
    scan(&mut |stretch| {
        assert!(stretch.bytes > 0 && stretch.start >= range.start && stretch.end() <= range.end());
        pages.extend((stretch.start - range.start) / 4096..(stretch.end() - range.start) / 4096);
    });
    pages.into_iter().collect()
}

/// Memory of both kinds, tracked and armed, never touched.
fn armed(test: &str, pages: usize) -> Vec<(Userfaultfd, GuestMemory)> {
    let memfd =
        Memfd::create("tracked", u64::try_from(pages * PAGE_BYTES).unwrap(), PageKind::Small).unwrap();
    let mut armed = Vec::new();
    for backing in [Backing::Private(PageKind::Small), Backing::Shared(&memfd, 0)] {
        let Some(uffd) = userfaultfd(test, TRACKING) else { return Vec::new() };
        let memory =
            GuestMemory::map(backing, pages * PAGE_BYTES, PAGE_BYTES * usize::from(armed.is_empty()))
                .unwrap();
        uffd.register(memory.range(), RegisterMode::MissingAndWriteProtect).unwrap();
        uffd.write_protect(memory.range(), Protect::Protected).unwrap();
        armed.push((uffd, memory));
    }
    armed
}

fn install(uffd: &Userfaultfd, range: GuestRange, value: u8, protect: Protect) {
    let source = vec![value; usize::try_from(range.bytes).unwrap()];
    let install = uffd.copy(range.start, Source::from(&source[..]), protect);
    assert!(matches!(install, Install::Installed), "{install:?}");
}

#[test]
fn written_pages_are_those_written_since_they_were_protected() {
    let test = "written pages";
    let Some(pagemap) = pagemap(test) else { return };
    for (uffd, memory) in armed(test, 16) {
        let range = memory.range();
        install(&uffd, GuestRange::new(range.start, 8 * 4096), 1, Protect::Protected);
        assert_eq!(found(&pagemap, range, PageClass::Written), []);
        memory.touch_write(3 * PAGE_BYTES, 2);
        memory.touch_write(5 * PAGE_BYTES, 2);
        memory.touch(6 * PAGE_BYTES);
        install(&uffd, page(range, 10), 1, Protect::Writable);
        assert_eq!(found(&pagemap, range, PageClass::Written), [3, 5, 10]);
    }
}

#[test]
fn a_scan_that_protects_finds_each_write_once() {
    let test = "scan and protect";
    let Some(pagemap) = pagemap(test) else { return };
    for (uffd, memory) in armed(test, 16) {
        let range = memory.range();
        install(&uffd, range, 1, Protect::Protected);
        let epoch = || {
            collect(range, |found| {
                pagemap.scan_and_protect(range, PageClass::Written, found).unwrap();
            })
        };
        memory.touch_write(0, 2);
        memory.touch_write(15 * PAGE_BYTES, 2);
        assert_eq!(epoch(), [0, 15]);
        assert_eq!(epoch(), []);
        memory.touch_write(15 * PAGE_BYTES, 3);
        assert_eq!(epoch(), [15]);
    }
}

#[test]
fn protecting_by_scan_where_nothing_tracks_is_an_error() {
    let Some(pagemap) = pagemap("scan and protect untracked") else { return };
    let memory = GuestMemory::map(Backing::Private(PageKind::Small), 4 * PAGE_BYTES, 0).unwrap();
    memory.touch_write(0, 1);
    assert!(pagemap.scan_and_protect(memory.range(), PageClass::Written, &mut |_| {}).is_err());
}

#[test]
fn a_page_armed_and_never_touched_is_neither_written_nor_resident() {
    let test = "armed pages";
    if !markers_are_told(test) {
        return;
    }
    let Some(pagemap) = pagemap(test) else { return };
    for (uffd, memory) in armed(test, 3000) {
        let range = memory.range();
        assert_eq!(found(&pagemap, range, PageClass::Written), []);
        assert_eq!(found(&pagemap, range, PageClass::Resident), []);
        assert_eq!(found(&pagemap, range, PageClass::Diverged), []);
        install(&uffd, page(range, 2000), 1, Protect::Protected);
        assert_eq!(found(&pagemap, range, PageClass::Resident), [2000]);
    }
}

/// A removed page must stay a candidate: after it is installed again protected, a scan knows nothing of it.
#[test]
fn a_written_page_that_was_removed_and_installed_again_scans_as_not_written() {
    let test = "removed pages";
    let Some(pagemap) = pagemap(test) else { return };
    for (uffd, memory) in armed(test, 4) {
        let range = memory.range();
        install(&uffd, range, 1, Protect::Protected);
        memory.touch_write(PAGE_BYTES, 2);
        assert_eq!(found(&pagemap, range, PageClass::Written), [1]);
        if memory.discard(PAGE_BYTES, PAGE_BYTES, Discard::Remove).is_err() {
            memory.discard(PAGE_BYTES, PAGE_BYTES, Discard::DontNeed).unwrap();
        }
        assert_eq!(found(&pagemap, range, PageClass::Written), []);
        if markers_are_told(test) {
            assert_eq!(found(&pagemap, range, PageClass::Resident), [0, 2, 3]);
        }
        install(&uffd, page(range, 1), 0, Protect::Protected);
        assert_eq!(found(&pagemap, range, PageClass::Written), []);
    }
}

#[test]
fn more_stretches_than_one_call_returns_are_all_found() {
    let test = "many stretches";
    let Some(pagemap) = pagemap(test) else { return };
    for (uffd, memory) in armed(test, 10_000) {
        install(&uffd, memory.range(), 1, Protect::Protected);
        let written: Vec<u64> = (0..10_000).step_by(2).collect();
        for at in &written {
            memory.touch_write(usize::try_from(*at).unwrap() * PAGE_BYTES, 2);
        }
        assert_eq!(found(&pagemap, memory.range(), PageClass::Written), written);
    }
}

#[test]
fn resident_pages_of_untracked_memory_are_those_with_content() {
    let Some(pagemap) = pagemap("resident pages") else { return };
    let memory = GuestMemory::map(Backing::Private(PageKind::Small), 8 * PAGE_BYTES, 0).unwrap();
    memory.touch(0);
    memory.touch_write(2 * PAGE_BYTES, 1);
    assert_eq!(
        found(&pagemap, memory.range(), PageClass::Resident),
        [2],
        "the shared zero page is no content"
    );
}

#[test]
fn a_private_mapping_of_a_file_has_diverged_where_it_was_written() {
    let Some(pagemap) = pagemap("diverged pages") else { return };
    let memfd = Memfd::create("base", 8 * 4096, PageKind::Small).unwrap();
    memfd.write_at(&[1; 8 * PAGE_BYTES], 0).unwrap();
    // SAFETY: a new private mapping, used for these writes only and left to the end of the process.
    let start = unsafe {
        rustix::mm::mmap(
            std::ptr::null_mut(),
            8 * PAGE_BYTES,
            rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
            rustix::mm::MapFlags::PRIVATE,
            &memfd,
            0,
        )
    }
    .unwrap()
    .cast::<u8>();
    for (at, write) in [(0, false), (3, true), (4, true)] {
        let there = start.wrapping_add(at * PAGE_BYTES);
        if write {
            // SAFETY: inside the mapping above.
            unsafe { there.write_volatile(9) };
        } else {
            // SAFETY: inside the mapping above.
            assert_eq!(unsafe { there.read_volatile() }, 1);
        }
    }
    let range = GuestRange::new(u64::try_from(start.addr()).unwrap(), 8 * 4096);
    assert_eq!(found(&pagemap, range, PageClass::Diverged), [3, 4]);
}

#[test]
fn another_process_is_scanned_by_its_pid() {
    let test = "scan of another process";
    if pagemap(test).is_none() {
        return;
    }
    let child = ChildProcess::start("memory");
    let memory = child.memory();
    match Pagemap::of(memory.pid) {
        Ok(theirs) => {
            assert_eq!(found(&theirs, memory.private, PageClass::Resident), (0..16).collect::<Vec<_>>());
            assert_eq!(found(&theirs, memory.shared, PageClass::Resident), []);
        }
        Err(error) => skipped(test, error),
    }
}

#[test]
fn a_scan_of_no_pages_or_no_process_is_refused_or_empty() {
    let Some(pagemap) = pagemap("scan misuse") else { return };
    assert!(pagemap.scan(GuestRange::new(1, 4096), PageClass::Resident, &mut |_| {}).is_err());
    let unmapped = GuestRange::new(0x1000, 0x4000);
    assert_eq!(found(&pagemap, unmapped, PageClass::Resident), []);
    assert!(Pagemap::of(u32::MAX).is_err());
}

/// Reading or writing a memory file by call is seen by no scan of a mapping of it.
#[test]
fn writes_that_do_not_go_through_the_mapping_are_not_found() {
    let test = "writes by call";
    let Some(pagemap) = pagemap(test) else { return };
    let Some(uffd) = userfaultfd(test, TRACKING) else { return };
    let memfd = Memfd::create("written by call", 4 * 4096, PageKind::Small).unwrap();
    let memory = GuestMemory::map(Backing::Shared(&memfd, 0), 4 * PAGE_BYTES, 0).unwrap();
    uffd.register(memory.range(), RegisterMode::MissingAndWriteProtect).unwrap();
    install(&uffd, memory.range(), 1, Protect::Protected);
    memfd.write_at(&filled(9), 4096).unwrap();
    assert_eq!(found(&pagemap, memory.range(), PageClass::Written), []);
    assert_eq!(memory.touch(PAGE_BYTES), 9);
}
