//! 2 MiB pages: reserved where that is possible, used as guest memory, given back.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails; clippy knows tests, but not what they call"
)]

mod support;

use std::sync::{Mutex, PoisonError};

use rekindle_kernel::{
    Backing, Features, GuestMemory, HUGE_PAGE_BYTES, HugepageReservation, Install, Mapping, Memfd, PageClass,
    PageKind, Pagemap, Protect, RegisterMode, Source, WritableMapping, hugepages,
};
use support::{skipped, userfaultfd};

const HUGE: u64 = 2 << 20;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs `act` with `pages` huge pages reserved, or says why not.
fn with_huge_pages(test: &str, pages: u64, act: impl FnOnce()) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    match HugepageReservation::reserve(pages) {
        Ok(_reservation) => act(),
        Err(error) => skipped(test, format!("no huge pages can be reserved: {error}")),
    }
}

#[test]
fn reserved_pages_are_given_back() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // Other programs may use the pool: what is ours is seen in one of a few tries.
    for _ in 0..20 {
        let before = hugepages::pages_in_pool().unwrap_or(0);
        let reservation = match HugepageReservation::reserve(3) {
            Ok(reservation) => reservation,
            Err(error) => return skipped("reservation", error),
        };
        let during = hugepages::pages_in_pool().unwrap();
        assert_eq!(reservation.pages(), 3);
        drop(reservation);
        if during == before + 3 && hugepages::pages_in_pool().unwrap() == before {
            return;
        }
    }
    unreachable!("the pool never was as large as before");
}

#[test]
fn more_pages_than_there_is_memory_are_refused_and_none_are_kept() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = HugepageReservation::reserve(0) {
        return skipped("refused reservation", error);
    }
    assert!(HugepageReservation::reserve(u64::MAX).is_err());
}

#[test]
fn a_huge_memory_file_is_written_read_and_holed() {
    with_huge_pages("huge memory file", 4, || {
        let memfd = Memfd::create("huge", 4 * HUGE, PageKind::Huge).unwrap();
        assert_eq!(memfd.allocated_bytes().unwrap(), 0);
        let across: Vec<u8> = (0..10_000_u32).map(|at| u8::try_from(at % 253).unwrap()).collect();
        memfd.write_at(&across, 2 * HUGE - 5000).unwrap();
        assert_eq!(memfd.allocated_bytes().unwrap(), 2 * HUGE);
        let mut back = vec![0; across.len()];
        memfd.read_at(&mut back, 2 * HUGE - 5000).unwrap();
        assert!(back == across);
        memfd.read_at(&mut back, 3 * HUGE).unwrap();
        assert!(back.iter().all(|byte| *byte == 0), "a hole reads as zeroes");
        assert_eq!(memfd.allocated_bytes().unwrap(), 2 * HUGE, "and stays one");
        let mapping = Mapping::of_memfd(&memfd).unwrap();
        assert!(mapping.equals_slice(2 * HUGE_PAGE_BYTES - 5000, &across).unwrap());
        drop(mapping);
        memfd.punch_hole(HUGE, HUGE).unwrap();
        assert_eq!(memfd.allocated_bytes().unwrap(), HUGE);
        let adopted = Memfd::adopt(memfd.try_clone().unwrap().into()).unwrap();
        assert_eq!((adopted.page_kind(), adopted.bytes()), (PageKind::Huge, 4 * HUGE));
        assert!(memfd.write_at(&[1], 4 * HUGE).is_err());
        assert!(memfd.seal_writes().unwrap());
    });
}

#[test]
fn a_huge_file_that_is_no_whole_pages_is_refused() {
    assert!(Memfd::create("odd", HUGE + 4096, PageKind::Huge).is_err());
}

#[test]
fn a_new_huge_file_is_filled_and_sealed() {
    with_huge_pages("new huge file", 2, || {
        let mut filling = WritableMapping::create("capture", 2 * HUGE_PAGE_BYTES, PageKind::Huge).unwrap();
        filling.as_mut_slice()[HUGE_PAGE_BYTES + 1] = 7;
        let memfd = filling.into_memfd();
        assert!(memfd.seal_writes().unwrap());
        let mapping = Mapping::of_memfd(&memfd).unwrap();
        assert_eq!(mapping.is_zero(HUGE_PAGE_BYTES, HUGE_PAGE_BYTES), Ok(false));
    });
}

#[test]
fn a_huge_page_is_installed_whole_and_zeroes_are_copied() {
    let test = "huge page faults";
    with_huge_pages(test, 4, || {
        let features =
            Features::MISSING_HUGETLBFS | Features::WP_HUGETLBFS_SHMEM | Features::PAGEFAULT_FLAG_WP;
        let Some(uffd) = userfaultfd(test, features) else { return };
        let memory = GuestMemory::map(Backing::Private(PageKind::Huge), 2 * HUGE_PAGE_BYTES, 0).unwrap();
        let offers = uffd.register(memory.range(), RegisterMode::MissingAndWriteProtect).unwrap();
        assert!(offers.copy() && offers.write_protect() && !offers.zeropage());
        let source = vec![6; HUGE_PAGE_BYTES];
        let start = memory.range().start;
        let small = uffd.copy(start, Source::from(&source[..4096]), Protect::Writable);
        assert!(matches!(small, Install::Failed(_)), "less than a huge page: {small:?}");
        let whole = uffd.copy(start, Source::from(&source[..]), Protect::Writable);
        assert!(matches!(whole, Install::Installed), "{whole:?}");
        let zeroes = uffd.copy(start + HUGE, Source::zeroes(HUGE_PAGE_BYTES), Protect::Protected);
        assert!(matches!(zeroes, Install::Installed), "{zeroes:?}");
        assert_eq!((memory.touch(5), memory.touch(HUGE_PAGE_BYTES + 5)), (6, 0));
    });
}

#[test]
fn armed_huge_pages_are_neither_written_nor_resident() {
    let test = "huge page scans";
    with_huge_pages(test, 4, || {
        let features = Features::WP_ASYNC | Features::WP_UNPOPULATED | Features::WP_HUGETLBFS_SHMEM;
        let Some(uffd) = userfaultfd(test, features) else { return };
        let memfd = Memfd::create("huge", 4 * HUGE, PageKind::Huge).unwrap();
        let memory = GuestMemory::map(Backing::Shared(&memfd, 0), 4 * HUGE_PAGE_BYTES, 0).unwrap();
        let range = memory.range();
        uffd.register(range, RegisterMode::MissingAndWriteProtect).unwrap();
        uffd.write_protect(range, Protect::Protected).unwrap();
        let pagemap = Pagemap::of_self().unwrap();
        let bytes_of = |want| {
            let mut bytes = 0;
            pagemap.scan(range, want, &mut |stretch| bytes += stretch.bytes).unwrap();
            bytes
        };
        assert_eq!((bytes_of(PageClass::Written), bytes_of(PageClass::Resident)), (0, 0));
        let source = vec![6; 2 * HUGE_PAGE_BYTES];
        let copied = uffd.copy(range.start, Source::from(&source[..]), Protect::Protected);
        assert!(matches!(copied, Install::Installed), "{copied:?}");
        assert_eq!((bytes_of(PageClass::Written), bytes_of(PageClass::Resident)), (0, 2 * HUGE));
        memory.touch_write(HUGE_PAGE_BYTES, 1);
        assert_eq!((bytes_of(PageClass::Written), bytes_of(PageClass::Resident)), (HUGE, 2 * HUGE));
    });
}
