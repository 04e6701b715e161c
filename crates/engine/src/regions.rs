//! Addresses of a volume's pages in the VMM that runs on it.

use rekindle_kernel::{GuestRange, HUGE_PAGE_BYTES, PAGE_BYTES, PageKind};
use serde::{Deserialize, Serialize};

use crate::geometry::{GuestPage, GuestPages, bytes_of_pages};
use crate::limits;

/// One region of guest memory, with one page kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Address of its first byte in the VMM.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Position of its first byte in the volume.
    pub offset: u64,
    /// The pages the kernel installs there.
    #[serde(rename = "page_bytes", with = "page_bytes")]
    pub page: PageKind,
}

/// All regions of a volume, checked: they cover it exactly once, and no two share an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regions {
    by_offset: Box<[Region]>,
    /// The same regions, lowest address first.
    by_address: Box<[Region]>,
    pages: u32,
}

/// Reason that a list of regions is not the memory of a volume.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegionsError {
    /// The list has no region.
    #[error("the list of memory regions is empty")]
    Empty,
    /// There are more than the limit.
    #[error("{count} memory regions are more than the {} allowed", limits::REGIONS_MAX)]
    TooMany {
        /// Number of regions.
        count: usize,
    },
    /// An address, offset or size is not a multiple of the region's page size, or the size is zero.
    #[error("memory region at offset {offset:#x} does not consist of whole {page_bytes}-byte pages")]
    Unaligned {
        /// The region's offset.
        offset: u64,
        /// Its page size.
        page_bytes: u64,
    },
    /// The region wraps around the end of the address space, or of the volume.
    #[error("memory region at offset {offset:#x} reaches beyond the last address")]
    Overflow {
        /// The region's offset.
        offset: u64,
    },
    /// Offsets have a gap or overlap.
    #[error("a memory region begins at offset {found:#x} where {expected:#x} is expected")]
    NotContiguous {
        /// End of the regions before it.
        expected: u64,
        /// Its start.
        found: u64,
    },
    /// Two regions share addresses.
    #[error("the memory regions at offsets {one:#x} and {other:#x} share addresses")]
    SharedAddresses {
        /// Offset of the one at the lower address.
        one: u64,
        /// Offset of the other.
        other: u64,
    },
    /// Together they are not as long as the volume.
    #[error("the memory regions have {bytes} bytes, the volume {volume_bytes}")]
    WrongSize {
        /// Bytes of all regions.
        bytes: u64,
        /// Bytes of the volume.
        volume_bytes: u64,
    },
}

impl Regions {
    /// Checks `regions`, given in any order, against a volume of `volume_pages`.
    pub fn new(mut regions: Vec<Region>, volume_pages: u32) -> Result<Self, RegionsError> {
        if regions.is_empty() {
            return Err(RegionsError::Empty);
        }
        if regions.len() > limits::REGIONS_MAX {
            return Err(RegionsError::TooMany { count: regions.len() });
        }
        regions.iter().try_for_each(Region::check)?;
        regions.sort_by_key(|region| region.offset);
        let bytes = contiguous_bytes(&regions)?;
        let volume_bytes = bytes_of_pages(volume_pages);
        if bytes != volume_bytes {
            return Err(RegionsError::WrongSize { bytes, volume_bytes });
        }
        let by_offset = regions.clone().into_boxed_slice();
        regions.sort_by_key(|region| region.start);
        for pair in regions.windows(2) {
            if pair[0].end() > pair[1].start {
                return Err(RegionsError::SharedAddresses { one: pair[0].offset, other: pair[1].offset });
            }
        }
        Ok(Self { by_offset, by_address: regions.into_boxed_slice(), pages: volume_pages })
    }

    /// Pages of the volume.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// The regions, lowest offset first.
    pub fn iter(&self) -> impl Iterator<Item = &Region> {
        self.by_offset.iter()
    }

    /// The page at `address`, if a region has it.
    pub fn page_at(&self, address: u64) -> Option<GuestPage> {
        let after = self.by_address.partition_point(|region| region.start <= address);
        let region = self.by_address[..after].last()?;
        (address < region.end()).then(|| page_of_byte(region.offset + (address - region.start)))
    }

    /// The region that has `page`, a page of the volume.
    pub fn region_of(&self, page: GuestPage) -> &Region {
        assert!(page.number() < self.pages, "page {} is one of the volume's {}", page.number(), self.pages);
        let after = self.by_offset.partition_point(|region| region.offset <= page.offset_bytes());
        &self.by_offset[after - 1]
    }

    /// Range of `pages` in the VMM; they must be in one region, as `clip` ensures.
    pub fn range_of(&self, pages: GuestPages) -> GuestRange {
        let region = self.region_of(pages.start());
        let start = region.start + (pages.start().offset_bytes() - region.offset);
        assert!(pages.bytes() <= region.end() - start, "a run of pages lies in one region");
        GuestRange { start, bytes: pages.bytes() }
    }

    /// The part of `window` in the region of `page`, which is in `window`.
    pub fn clip(&self, window: GuestPages, page: GuestPage) -> GuestPages {
        window.intersect(self.region_of(page).pages())
    }

    /// The pages that the kernel installs together with `page`: only itself, or its whole 2 MiB page.
    pub fn unit_of(&self, page: GuestPage) -> GuestPages {
        let unit = self.region_of(page).unit_pages();
        GuestPages::new(GuestPage::new(page.number() / unit * unit), unit)
    }

    /// The pages that `range` touches, as runs that are each in one region; addresses outside of all regions are left
    /// out.
    pub fn pages_in(&self, range: GuestRange) -> impl Iterator<Item = GuestPages> {
        let end = range.start.saturating_add(range.bytes);
        let after = self.by_address.partition_point(|region| region.end() <= range.start);
        self.by_address[after..].iter().take_while(move |region| region.start < end).map(move |region| {
            let from = range.start.max(region.start) - region.start;
            let to = end.min(region.end()) - region.start;
            let first = page_of_byte(region.offset + from);
            let last = page_of_byte(region.offset + to.max(from + 1) - 1);
            GuestPages::between(first, last.plus(1))
        })
    }
}

impl Region {
    /// The pages of the volume in this region.
    pub fn pages(&self) -> GuestPages {
        GuestPages::between(page_of_byte(self.offset), page_of_byte(self.offset + self.bytes))
    }

    /// The region's range in the VMM.
    pub fn range(&self) -> GuestRange {
        GuestRange { start: self.start, bytes: self.bytes }
    }

    /// 4 KiB pages that the kernel installs together here.
    pub fn unit_pages(&self) -> u32 {
        match self.page {
            PageKind::Small => 1,
            PageKind::Huge => HUGE_PAGES,
        }
    }

    fn end(&self) -> u64 {
        self.start + self.bytes
    }

    fn check(&self) -> Result<(), RegionsError> {
        let page_bytes = bytes_of_pages(self.unit_pages());
        let whole = |value: u64| value.is_multiple_of(page_bytes);
        if self.bytes == 0 || !whole(self.bytes) || !whole(self.start) || !whole(self.offset) {
            return Err(RegionsError::Unaligned { offset: self.offset, page_bytes });
        }
        if self.start.checked_add(self.bytes).is_none() || self.offset.checked_add(self.bytes).is_none() {
            return Err(RegionsError::Overflow { offset: self.offset });
        }
        Ok(())
    }
}

/// 4 KiB pages in one 2 MiB page.
pub const HUGE_PAGES: u32 = 512;
const _: () = assert!(HUGE_PAGE_BYTES == 512 * PAGE_BYTES, "a huge page is 512 pages");

/// Stores a page kind as the bytes of its pages.
mod page_bytes {
    use rekindle_kernel::PageKind;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(page: &PageKind, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(crate::geometry::u64_of(page.bytes()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PageKind, D::Error> {
        let bytes = u64::deserialize(deserializer)?;
        PageKind::of_bytes(bytes)
            .ok_or_else(|| de::Error::custom(format_args!("pages of {bytes} bytes are not served")))
    }
}

/// Bytes of regions that follow each other from offset zero on.
fn contiguous_bytes(by_offset: &[Region]) -> Result<u64, RegionsError> {
    by_offset.iter().try_fold(0, |expected, region| {
        if region.offset == expected {
            Ok(expected + region.bytes)
        } else {
            Err(RegionsError::NotContiguous { expected, found: region.offset })
        }
    })
}

/// The page of byte `offset`, in a volume whose size was checked.
fn page_of_byte(offset: u64) -> GuestPage {
    let page = u32::try_from(offset / bytes_of_pages(1)).expect("checked against the volume's pages");
    GuestPage::new(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: u64 = 4096;

    fn small(start: u64, pages: u64, first_page: u64) -> Region {
        Region { start, bytes: pages * PAGE, offset: first_page * PAGE, page: PageKind::Small }
    }

    fn run(start: u32, count: u32) -> GuestPages {
        GuestPages::new(GuestPage::new(start), count)
    }

    #[test]
    fn regions_are_taken_in_any_order() {
        let low = small(0x9000_0000, 3, 0);
        let high = small(0x1000_1000, 2, 3);
        let regions = Regions::new(vec![high, low], 5).unwrap();
        assert_eq!(regions.iter().copied().collect::<Vec<_>>(), [low, high]);
        assert_eq!(regions.page_at(0x9000_0000), Some(GuestPage::new(0)));
        assert_eq!(regions.page_at(0x1000_2fff), Some(GuestPage::new(4)));
        assert_eq!(regions.page_at(0x1000_3000), None);
        assert_eq!(regions.page_at(0x1000_0fff), None);
        assert_eq!(regions.range_of(run(3, 2)), GuestRange { start: 0x1000_1000, bytes: 2 * PAGE });
        assert_eq!(regions.clip(run(1, 4), GuestPage::new(2)), run(1, 2));
        assert_eq!(regions.clip(run(1, 4), GuestPage::new(3)), run(3, 2));
    }

    #[test]
    fn what_is_not_the_memory_of_the_volume_is_refused() {
        let refused = |regions, pages| Regions::new(regions, pages).unwrap_err();
        assert_eq!(refused(vec![], 1), RegionsError::Empty);
        let many = vec![small(0x1000, 1, 0); limits::REGIONS_MAX + 1];
        assert_eq!(refused(many, 1), RegionsError::TooMany { count: limits::REGIONS_MAX + 1 });
        assert!(matches!(refused(vec![small(0x1001, 1, 0)], 1), RegionsError::Unaligned { .. }));
        assert!(matches!(refused(vec![small(0x1000, 0, 0)], 1), RegionsError::Unaligned { .. }));
        let wraps = small(u64::MAX - 4095, 1, 0);
        assert_eq!(refused(vec![wraps], 1), RegionsError::Overflow { offset: 0 });
        let gap = vec![small(0x1000, 1, 0), small(0x9000, 1, 2)];
        assert_eq!(refused(gap, 3), RegionsError::NotContiguous { expected: PAGE, found: 2 * PAGE });
        let twice = vec![small(0x1000, 2, 0), small(0x9000, 1, 1)];
        assert_eq!(refused(twice, 3), RegionsError::NotContiguous { expected: 2 * PAGE, found: PAGE });
        let shared = vec![small(0x1000, 2, 0), small(0x2000, 1, 2)];
        assert_eq!(refused(shared, 3), RegionsError::SharedAddresses { one: 0, other: 2 * PAGE });
        let sizes = refused(vec![small(0x1000, 2, 0)], 3);
        assert_eq!(sizes, RegionsError::WrongSize { bytes: 2 * PAGE, volume_bytes: 3 * PAGE });
        let odd_huge = Region { start: 0x1000, bytes: 2 << 20, offset: 0, page: PageKind::Huge };
        assert!(matches!(refused(vec![odd_huge], 512), RegionsError::Unaligned { .. }));
    }

    #[test]
    fn a_region_is_written_down_in_numbers() {
        let region = Region { start: 0x4000_0000, bytes: 4 << 20, offset: 0, page: PageKind::Huge };
        let text = r#"{"start":1073741824,"bytes":4194304,"offset":0,"page_bytes":2097152}"#;
        assert_eq!(serde_json::to_string(&region).unwrap(), text);
        assert_eq!(serde_json::from_str::<Region>(text).unwrap(), region);
        assert!(serde_json::from_str::<Region>(&text.replace("2097152", "8192")).is_err());
    }

    #[test]
    fn a_huge_region_is_installed_in_whole_huge_pages() {
        let huge = Region { start: 0x4000_0000, bytes: 4 << 20, offset: 0, page: PageKind::Huge };
        let regions = Regions::new(vec![huge, small(0x1000, 7, 1024)], 1031).unwrap();
        assert_eq!(regions.unit_of(GuestPage::new(513)), run(512, 512));
        assert_eq!(regions.unit_of(GuestPage::new(1030)), run(1030, 1));
    }

    /// Regions of the given sizes, in the order of `at`, with a hole of one page after each.
    fn scattered(sizes: &[u32], at: &[usize]) -> (Vec<Region>, u32) {
        let mut first_page = 0;
        let mut regions: Vec<_> = sizes
            .iter()
            .map(|&pages| {
                first_page += pages;
                small(0, u64::from(pages), u64::from(first_page - pages))
            })
            .collect();
        let mut address = 0x7f00_0000_1000;
        for &position in at {
            regions[position].start = address;
            address += regions[position].bytes + PAGE;
        }
        (regions, first_page)
    }

    fn any_regions() -> impl Strategy<Value = (Vec<Region>, u32)> {
        proptest::collection::vec(1..20_u32, 1..8)
            .prop_flat_map(|sizes| {
                let order = Just((0..sizes.len()).collect::<Vec<_>>()).prop_shuffle();
                (Just(sizes), order)
            })
            .prop_map(|(sizes, order)| scattered(&sizes, &order))
    }

    proptest! {
        #[test]
        fn every_page_is_found_at_its_address((list, pages) in any_regions()) {
            let regions = Regions::new(list.clone(), pages).unwrap();
            for page in (0..pages).map(GuestPage::new) {
                let range = regions.range_of(GuestPages::new(page, 1));
                prop_assert_eq!(regions.page_at(range.start), Some(page));
                prop_assert_eq!(regions.page_at(range.start + 4095), Some(page));
            }
            for region in list {
                prop_assert_eq!(regions.page_at(region.start - 1), None);
                prop_assert_eq!(regions.page_at(region.start + region.bytes), None);
            }
        }

        #[test]
        fn the_pages_in_a_range_are_those_whose_bytes_it_has(
            (list, pages) in any_regions(),
            from in 0..200 * PAGE,
            bytes in 0..200 * PAGE,
        ) {
            let regions = Regions::new(list, pages).unwrap();
            let range = GuestRange { start: 0x7f00_0000_0000 + from, bytes };
            let mut found: Vec<_> = regions.pages_in(range).flat_map(GuestPages::iter).collect();
            found.sort();
            let expected: Vec<_> = (0..pages)
                .map(GuestPage::new)
                .filter(|&page| {
                    let at = regions.range_of(GuestPages::new(page, 1));
                    at.start < range.start + range.bytes && range.start < at.start + at.bytes
                })
                .collect();
            prop_assert_eq!(found, expected);
        }
    }
}
