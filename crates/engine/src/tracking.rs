//! Finds the pages of a stopped guest that a pause has to capture: those written or removed in its epoch.

use std::io;
use std::ops::Range;

use rekindle_kernel::userfaultfd::Features;
use rekindle_kernel::{GuestRange, HUGE_PAGE_BYTES, Memfd, PageClass, PageKind, Pagemap, Written};
use serde::{Deserialize, Serialize};

use crate::capture::CapturedPages;
use crate::geometry::{GuestPage, GuestPages, bytes_of_pages, usize_of};
use crate::page_set::PageSet;
use crate::regions::{HUGE_PAGES, Regions};

/// The ways in which writes of a guest are tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tracking {
    /// The kernel marks written pages in the page tables (`WP_ASYNC`), and a scan finds them.
    Scan,
    /// The first write to a page is an event, and is noted.
    Events,
    /// Not tracked: every resident page may have been written.
    Resident,
    /// The guest maps an image privately: the kernel gives it a page of its own when it writes one, and a scan finds these.
    Diverged,
}

/// Sets of a guest's pages that a fault server learned in one epoch.
#[derive(Clone, Copy, Debug)]
pub struct EpochSets<'a> {
    /// Pages that the guest gave back in this epoch, including those installed again since.
    pub removed: &'a PageSet,
    /// Pages that were written, or were open to untracked writes.
    pub written: &'a PageSet,
}

/// A stopped guest's memory, whose page tables can be scanned.
#[derive(Debug)]
pub struct StoppedMemory<'a> {
    /// Addresses of its pages.
    pub regions: &'a Regions,
    /// The file of its memory, if it is shared.
    pub memfd: Option<&'a Memfd>,
    /// Its process's page tables.
    pub pagemap: Pagemap,
}

impl Tracking {
    /// This tracking, or the one that the features of a userfaultfd allow instead: with `WP_ASYNC` there are no events,
    /// without it there are no scans.
    #[must_use]
    pub fn possible_with(self, granted: Features) -> Self {
        match (self, granted.contains(Features::WP_ASYNC)) {
            (Self::Events, true) => Self::Scan,
            (Self::Scan, false) => Self::Events,
            (Self::Scan | Self::Events | Self::Resident | Self::Diverged, _) => self,
        }
    }

    /// True if pages are installed protected, so that their first write is tracked.
    pub fn protects(self) -> bool {
        match self {
            Self::Scan | Self::Events => true,
            Self::Resident | Self::Diverged => false,
        }
    }
}

/// The pages to capture of a guest that was resumed from a snapshot, at the end of its epoch.
pub fn changed_pages(
    tracking: Tracking,
    sets: &EpochSets<'_>,
    memory: &StoppedMemory<'_>,
) -> io::Result<CapturedPages> {
    let Scanned { mapped, written: found } = memory.scan(tracking)?;
    let resident = memory.resident_pages(&mapped, sets.removed)?;
    let mut written = sets.written.clone();
    match tracking {
        Tracking::Scan => {
            written.union_with(&found);
            written.union_with(&memory.swapped_out(&mapped, &resident));
        }
        Tracking::Events => {}
        Tracking::Resident | Tracking::Diverged => written = resident.clone(),
    }
    Ok(sort(written, sets.removed, &resident, memory.regions))
}

/// False only where a guest that was resumed from a snapshot has written nothing and given nothing back in its epoch. It
/// may run meanwhile: a change that came before this call is never missed, and none of its memory is read.
pub(crate) fn may_have_changed(
    tracking: Tracking,
    sets: &EpochSets<'_>,
    memory: &StoppedMemory<'_>,
) -> io::Result<bool> {
    if tracking == Tracking::Resident || !sets.removed.is_empty() {
        return Ok(true);
    }
    let Scanned { mapped, written: found } = memory.scan(tracking)?;
    if tracking == Tracking::Diverged {
        return Ok(!mapped.is_empty());
    }
    let resident = match memory.memfd.map(|memfd| (memfd, memfd.data_runs())) {
        None => mapped.clone(),
        Some((_, Ok(runs))) => pages_of(&runs, memory.regions.pages()),
        // Huge pages never leave the page table: the file has no others.
        Some((memfd, Err(error))) if error.kind() == io::ErrorKind::Unsupported => {
            if memfd.allocated_bytes()? > bytes_of_pages(mapped.len()) {
                return Ok(true);
            }
            mapped.clone()
        }
        Some((_, Err(error))) => return Err(error),
    };
    let mut written = sets.written.clone();
    if tracking == Tracking::Scan {
        written.union_with(&found);
        written.union_with(&memory.swapped_out(&mapped, &resident));
    }
    Ok(!written.is_disjoint_from(&resident))
}

/// The pages to capture of a guest without a parent snapshot: every resident page. The rest is zero.
pub fn present_pages(memory: &StoppedMemory<'_>) -> io::Result<CapturedPages> {
    let nothing = PageSet::new(memory.regions.pages());
    let mapped = memory.scan(Tracking::Resident)?.mapped;
    let resident = memory.resident_pages(&mapped, &PageSet::full(memory.regions.pages()))?;
    Ok(sort(resident.clone(), &nothing, &resident, memory.regions))
}

/// The pages to capture of a memory file: all that it has. The rest is zero.
pub fn file_pages(memfd: &Memfd, pages: u32) -> io::Result<CapturedPages> {
    let kept = match memfd.data_runs() {
        Ok(runs) => pages_of(&runs, pages),
        // hugetlb does not report its holes, and reading one allocates nothing.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => PageSet::full(pages),
        Err(error) => return Err(error),
    };
    Ok(CapturedPages { kept, zero: PageSet::new(pages) })
}

/// The pages to capture of a guest whose VMM wrote the changed pages into a file: these pages, and as zero those that
/// were removed and not written since.
pub fn diff_pages(written: &Memfd, removed: &PageSet) -> io::Result<CapturedPages> {
    let CapturedPages { kept, .. } = file_pages(written, removed.pages())?;
    let mut zero = removed.clone();
    zero.subtract(&kept);
    Ok(CapturedPages { kept, zero })
}

/// The same for a guest that shares its memory, from which the bytes are taken: a page that this memory lacks is zero.
pub fn shared_diff_pages(written: &Memfd, removed: &PageSet, shared: &Memfd) -> io::Result<CapturedPages> {
    let CapturedPages { mut kept, mut zero } = diff_pages(written, removed)?;
    let there = file_pages(shared, removed.pages())?.kept;
    let mut gone = kept.clone();
    gone.subtract(&there);
    kept.intersect_with(&there);
    zero.union_with(&gone);
    Ok(CapturedPages { kept, zero })
}

/// Keeps the written and removed pages that are resident; removed pages that are not resident are zero.
fn sort(written: PageSet, removed: &PageSet, resident: &PageSet, regions: &Regions) -> CapturedPages {
    let mut kept = written;
    kept.union_with(removed);
    kept.intersect_with(resident);
    widen_to_units(&mut kept, regions);
    let mut zero = removed.clone();
    zero.subtract(resident);
    zero.subtract(&kept);
    CapturedPages { kept, zero }
}

/// Keeps every huge page of which a part is kept.
fn widen_to_units(pages: &mut PageSet, regions: &Regions) {
    for region in regions.iter().filter(|region| region.page == PageKind::Huge) {
        let units: Vec<_> = pages
            .runs_in(region.pages())
            .map(|run| {
                GuestPages::between(regions.unit_of(run.start()).start(), last_unit(regions, run).end())
            })
            .collect();
        units.into_iter().for_each(|unit| pages.insert_run(unit));
    }
}

fn last_unit(regions: &Regions, run: GuestPages) -> GuestPages {
    regions.unit_of(run.start().plus(run.count() - 1))
}

impl StoppedMemory<'_> {
    /// The pages with bytes of their own. If finding them is expensive, only the answer for `asked` is exact.
    fn resident_pages(&self, mapped: &PageSet, asked: &PageSet) -> io::Result<PageSet> {
        let Some(memfd) = self.memfd else { return Ok(mapped.clone()) };
        // All pages of the file are mapped: there is no need to walk the file for its holes.
        if memfd.allocated_bytes()? <= bytes_of_pages(mapped.len()) {
            return Ok(mapped.clone());
        }
        match memfd.data_runs() {
            Ok(runs) => Ok(pages_of(&runs, self.regions.pages())),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                huge_resident_pages(memfd, mapped, asked, self.regions)
            }
            Err(error) => Err(error),
        }
    }

    /// Pages of shared memory that are in the file but not in the page table: the table's marks are lost, so they may
    /// have been written.
    fn swapped_out(&self, mapped: &PageSet, resident: &PageSet) -> PageSet {
        let mut swapped = PageSet::new(self.regions.pages());
        if self.memfd.is_some() {
            swapped.union_with(resident);
            swapped.subtract(mapped);
        }
        swapped
    }

    /// One walk of the page tables. For a shared file only pages in memory count as mapped: other entries do not prove
    /// that the file has the page. In a private mapping of an image only pages of its own do.
    fn scan(&self, tracking: Tracking) -> io::Result<Scanned> {
        let pages = self.regions.pages();
        let (mut mapped, mut written) = (PageSet::new(pages), PageSet::new(pages));
        let class = match (tracking, self.memfd) {
            (Tracking::Diverged, _) => PageClass::Diverged,
            (Tracking::Scan | Tracking::Events | Tracking::Resident, Some(_)) => PageClass::Present,
            (Tracking::Scan | Tracking::Events | Tracking::Resident, None) => PageClass::Resident,
        };
        for region in self.regions.iter() {
            self.pagemap.scan_with_written(region.range(), class, &mut |range: GuestRange, is_written| {
                for run in self.regions.pages_in(range) {
                    mapped.insert_run(run);
                    if is_written == Written::Yes {
                        written.insert_run(run);
                    }
                }
            })?;
        }
        Ok(Scanned { mapped, written })
    }
}

/// Result of a walk of the page tables.
struct Scanned {
    mapped: PageSet,
    written: PageSet,
}

/// The pages that byte ranges of a file touch.
fn pages_of(ranges: &[Range<u64>], pages: u32) -> PageSet {
    let mut found = PageSet::new(pages);
    let page_of = |byte: u64| GuestPage::new(u32::try_from(byte).unwrap_or(pages).min(pages));
    for range in ranges {
        let start = page_of(range.start / bytes_of_pages(1));
        let end = page_of(range.end.div_ceil(bytes_of_pages(1)));
        found.insert_run(GuestPages::between(start, end));
    }
    found
}

/// hugetlb does not report its holes. If the file has more pages than are mapped, unmapped ones are read: that
/// allocates nothing, and a page of zeroes can count as a hole.
fn huge_resident_pages(
    memfd: &Memfd,
    mapped: &PageSet,
    asked: &PageSet,
    regions: &Regions,
) -> io::Result<PageSet> {
    let mut resident = mapped.clone();
    let mut unsure = asked.clone();
    unsure.subtract(mapped);
    widen_to_units(&mut unsure, regions);
    let mut bytes = vec![0; HUGE_PAGE_BYTES];
    for number in (0..regions.pages()).step_by(usize_of(HUGE_PAGES)) {
        let pages = GuestPages::new(GuestPage::new(number), HUGE_PAGES);
        if unsure.contains(pages.start()) && !resident.contains(pages.start()) {
            memfd.read_at(&mut bytes, pages.start().offset_bytes())?;
            if bytes.iter().any(|&byte| byte != 0) {
                resident.insert_run(pages);
            }
        }
    }
    Ok(resident)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::regions::Region;
    use proptest::prelude::*;
    use rekindle_kernel::{Backing, GuestMemory, PAGE_BYTES};

    fn set(pages: u32, members: &[u32]) -> PageSet {
        let mut set = PageSet::new(pages);
        for &member in members {
            set.insert(GuestPage::new(member));
        }
        set
    }

    fn regions(pages: u32, page: PageKind) -> Regions {
        let region = Region { start: 2 << 40, bytes: bytes_of_pages(pages), offset: 0, page };
        Regions::new(vec![region], pages).unwrap()
    }

    #[test]
    fn a_tracking_that_cannot_work_gives_way_to_the_one_that_does() {
        let asynchronous = Features::WP_ASYNC | Features::EVENT_REMOVE;
        assert_eq!(Tracking::Events.possible_with(asynchronous), Tracking::Scan);
        assert_eq!(Tracking::Scan.possible_with(asynchronous), Tracking::Scan);
        assert_eq!(Tracking::Scan.possible_with(Features::EVENT_REMOVE), Tracking::Events);
        assert_eq!(Tracking::Resident.possible_with(asynchronous), Tracking::Resident);
    }

    #[test]
    fn case_53_a_page_removed_in_this_epoch_is_never_left_to_the_parent() {
        let removed = set(10, &[1, 2, 3]);
        let captured =
            sort(set(10, &[3, 4]), &removed, &set(10, &[2, 3, 4, 5]), &regions(10, PageKind::Small));
        assert_eq!(captured.kept, set(10, &[2, 3, 4]));
        assert_eq!(captured.zero, set(10, &[1]));
    }

    #[test]
    fn a_huge_page_is_kept_whole() {
        let huge = regions(2048, PageKind::Huge);
        let removed = set(2048, &[1030]);
        let captured = sort(set(2048, &[600]), &removed, &PageSet::full(2048), &huge);
        assert_eq!(captured.kept.runs().collect::<Vec<_>>(), [GuestPages::new(GuestPage::new(512), 1024)]);
        assert!(captured.zero.is_empty());
    }

    fn file(pages: u32, written: &[u32]) -> Memfd {
        let file = Memfd::create("written", bytes_of_pages(pages), PageKind::Small).unwrap();
        written.iter().for_each(|&page| file.write_at(&[1], u64::from(page) * 4096).unwrap());
        file
    }

    #[test]
    fn a_shared_page_that_left_the_page_table_counts_as_written() {
        let pagemap = Pagemap::of_self().unwrap();
        if !pagemap.offers_scan() {
            eprintln!("skipped: engine: tracking: this kernel has no PAGEMAP_SCAN (Linux 6.7)");
            return;
        }
        // As after swapping: the file has the pages, and the page table does not have them.
        let memfd = file(10, &[3, 7]);
        let memory = GuestMemory::map(Backing::Shared(&memfd, 0), 10 * PAGE_BYTES, 0).unwrap();
        let GuestRange { start, bytes } = memory.range();
        let regions =
            Regions::new(vec![Region { start, bytes, offset: 0, page: PageKind::Small }], 10).unwrap();
        let stopped = StoppedMemory { regions: &regions, memfd: Some(&memfd), pagemap };
        let (removed, written) = (set(10, &[5, 7]), set(10, &[]));
        let sets = EpochSets { removed: &removed, written: &written };
        let captured = changed_pages(Tracking::Scan, &sets, &stopped).unwrap();
        assert_eq!(captured.kept, set(10, &[3, 7]));
        assert_eq!(captured.zero, set(10, &[5]));
    }

    #[test]
    fn a_removed_page_that_a_diff_does_not_have_is_zero_and_not_the_parents() {
        let captured = diff_pages(&file(10, &[2, 3]), &set(10, &[1, 2])).unwrap();
        assert_eq!(captured.kept, set(10, &[2, 3]));
        assert_eq!(captured.zero, set(10, &[1]));
    }

    #[test]
    fn a_page_of_a_diff_that_shared_memory_does_not_have_is_zero() {
        let shared = file(10, &[3, 4, 5]);
        let captured = shared_diff_pages(&file(10, &[2, 3]), &set(10, &[1, 2]), &shared).unwrap();
        assert_eq!(captured.kept, set(10, &[3]));
        assert_eq!(captured.zero, set(10, &[1, 2]));
        assert_eq!(shared.allocated_bytes().unwrap(), 3 * 4096, "asking allocates nothing");
    }

    #[test]
    fn a_guest_has_changed_unless_all_that_could_tell_of_it_says_no() {
        let pagemap = Pagemap::of_self().unwrap();
        if !pagemap.offers_scan() {
            eprintln!("skipped: engine: tracking: this kernel has no PAGEMAP_SCAN (Linux 6.7)");
            return;
        }
        let memfd = file(10, &[3]);
        let memory = GuestMemory::map(Backing::Shared(&memfd, 0), 10 * PAGE_BYTES, 0).unwrap();
        let GuestRange { start, bytes } = memory.range();
        let regions =
            Regions::new(vec![Region { start, bytes, offset: 0, page: PageKind::Small }], 10).unwrap();
        let stopped = StoppedMemory { regions: &regions, memfd: Some(&memfd), pagemap };
        let changed = |tracking, removed: &[u32], written: &[u32]| {
            let (removed, written) = (set(10, removed), set(10, written));
            let sets = EpochSets { removed: &removed, written: &written };
            may_have_changed(tracking, &sets, &stopped).unwrap()
        };
        assert!(!changed(Tracking::Events, &[], &[]));
        assert!(!changed(Tracking::Events, &[], &[5]), "a page that it gave back and a snapshot has as zero");
        assert!(changed(Tracking::Events, &[], &[3]) && changed(Tracking::Events, &[5], &[]));
        assert!(changed(Tracking::Scan, &[], &[]), "a page that left the page table may have been written");
        assert!(changed(Tracking::Resident, &[], &[]), "nothing tells");
    }

    #[test]
    fn bytes_beyond_the_volume_are_nobodys_pages() {
        assert_eq!(pages_of(&[4097..8193, 40959..1 << 60], 10), set(10, &[1, 2, 9]));
    }

    proptest! {
        #[test]
        fn kept_and_zero_follow_from_written_removed_and_resident(
            written: [bool; 64],
            removed: [bool; 64],
            resident: [bool; 64],
        ) {
            let of = |flags: &[bool; 64]| {
                set(64, &(0..64).filter(|&page| flags[usize::try_from(page).unwrap()]).collect::<Vec<_>>())
            };
            let small = regions(64, PageKind::Small);
            let captured = sort(of(&written), &of(&removed), &of(&resident), &small);
            for page in 0..64 {
                let at = usize::try_from(page).unwrap();
                let is_kept = captured.kept.contains(GuestPage::new(page));
                let is_zero = captured.zero.contains(GuestPage::new(page));
                prop_assert_eq!(is_kept, (written[at] || removed[at]) && resident[at]);
                prop_assert_eq!(is_zero, removed[at] && !resident[at]);
            }
        }
    }
}
