//! Pages and runs of pages, in a volume and in a layer.

use std::fmt;

/// Bytes of a page in maps and layers; guest memory with larger pages is counted in these too.
pub const PAGE_BYTES: usize = rekindle_kernel::page::PAGE_BYTES;

/// The index of a page in a volume.
///
/// It never converts into a [`LayerPage`]: only a page map or a layer's index relates the two.
///
/// ```
/// use rekindle_engine::geometry::{GuestPage, LayerPage};
/// let page: GuestPage = GuestPage::new(7);
/// let packed: LayerPage = LayerPage::new(page.number());
/// let page: GuestPage = GuestPage::new(packed.number());
/// let same = GuestPage::new(7) == page;
/// # let _ = same;
/// ```
///
/// Each of these is one of the lines above with one of the types changed:
///
/// ```compile_fail,E0277
/// use rekindle_engine::geometry::{GuestPage, LayerPage};
/// let page: GuestPage = GuestPage::new(7);
/// let packed: LayerPage = LayerPage::from(page);
/// # let _ = packed;
/// ```
///
/// ```compile_fail,E0277
/// use rekindle_engine::geometry::{GuestPage, LayerPage};
/// let packed: LayerPage = LayerPage::new(7);
/// let page: GuestPage = packed.into();
/// # let _ = page;
/// ```
///
/// ```compile_fail,E0308
/// use rekindle_engine::geometry::{GuestPage, LayerPage};
/// let same = GuestPage::new(7) == LayerPage::new(7);
/// # let _ = same;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestPage(u32);

/// The index of a packed page in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerPage(u32);

macro_rules! page_index {
    ($page:ident) => {
        impl $page {
            /// The first page.
            pub const FIRST: Self = Self(0);

            /// The page with this number.
            #[must_use]
            pub const fn new(number: u32) -> Self {
                Self(number)
            }

            /// The page's number.
            #[must_use]
            pub const fn number(self) -> u32 {
                self.0
            }

            /// The page's number as an index into memory.
            #[must_use]
            pub fn index(self) -> usize {
                usize_of(self.0)
            }

            /// Offset of the page's start, in bytes.
            #[must_use]
            pub fn offset_bytes(self) -> u64 {
                bytes_of_pages(self.0)
            }

            /// Offset of the page's start in memory, in bytes.
            #[must_use]
            pub fn offset(self) -> usize {
                usize_of(self.0) * PAGE_BYTES
            }

            /// The page `pages` further on; overflow is a bug of the caller.
            #[must_use]
            pub fn plus(self, pages: u32) -> Self {
                Self(self.0.checked_add(pages).expect("a page number fits 32 bits"))
            }

            /// The page `pages` further on, if its number fits.
            #[must_use]
            pub fn checked_add(self, pages: u32) -> Option<Self> {
                self.0.checked_add(pages).map(Self)
            }

            /// Number of pages between `earlier` and this one; an earlier page that is later is a bug.
            #[must_use]
            pub fn pages_since(self, earlier: Self) -> u32 {
                self.0.checked_sub(earlier.0).expect("the earlier page comes first")
            }
        }

        impl fmt::Display for $page {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

page_index!(GuestPage);
page_index!(LayerPage);

/// A run of consecutive pages of a volume; may be empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestPages {
    start: GuestPage,
    count: u32,
}

impl GuestPages {
    /// The run of `count` pages from `start`; a run that ends past page 2^32 - 1 is a bug of the caller.
    #[must_use]
    pub fn new(start: GuestPage, count: u32) -> Self {
        Self::checked(start, count).expect("a run of pages ends within 32 bits")
    }

    /// The run of `count` pages from `start`, if its end fits.
    #[must_use]
    pub fn checked(start: GuestPage, count: u32) -> Option<Self> {
        start.checked_add(count).map(|_| Self { start, count })
    }

    /// The run from `start` up to, but without, `end`; an end before the start is a bug of the caller.
    #[must_use]
    pub fn between(start: GuestPage, end: GuestPage) -> Self {
        Self { start, count: end.pages_since(start) }
    }

    /// The first page.
    #[must_use]
    pub const fn start(self) -> GuestPage {
        self.start
    }

    /// The page after the last one.
    #[must_use]
    pub fn end(self) -> GuestPage {
        self.start.plus(self.count)
    }

    /// Number of pages.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.count
    }

    /// Number of bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        bytes_of_pages(self.count)
    }

    /// True if the run has no page.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.count == 0
    }

    /// True if `page` is one of these.
    #[must_use]
    pub fn contains(self, page: GuestPage) -> bool {
        self.start <= page && page < self.end()
    }

    /// The pages, one by one.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = GuestPage> + ExactSizeIterator {
        (0..self.count).map(move |index| self.start.plus(index))
    }

    /// The first `pages` pages of the run, or all of a shorter one.
    #[must_use]
    pub fn first_pages(self, pages: u32) -> Self {
        Self { start: self.start, count: self.count.min(pages) }
    }

    /// The pages after the first `pages`.
    #[must_use]
    pub fn after(self, pages: u32) -> Self {
        let skipped = self.count.min(pages);
        Self { start: self.start.plus(skipped), count: self.count - skipped }
    }

    /// The pages that are in both runs; empty if there are none.
    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end()).max(start);
        Self::between(start, end)
    }
}

impl fmt::Display for GuestPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end())
    }
}

/// A 32-bit count as a size in memory.
#[must_use]
pub fn usize_of(count: u32) -> usize {
    usize::try_from(count).expect("addresses have at least 32 bits")
}

/// A size in memory as a size in a file or a guest.
#[must_use]
pub fn u64_of(size: usize) -> u64 {
    u64::try_from(size).expect("addresses have at most 64 bits")
}

/// The bytes of this many pages.
#[must_use]
pub fn bytes_of_pages(pages: u32) -> u64 {
    u64::from(pages) * u64_of(PAGE_BYTES)
}

/// Number of pages that cover `bytes`, the last one perhaps in part; `None` past 2^32 - 1 pages.
#[must_use]
pub fn pages_covering(bytes: u64) -> Option<u32> {
    u32::try_from(bytes.div_ceil(u64_of(PAGE_BYTES))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u32, count: u32) -> GuestPages {
        GuestPages::new(GuestPage::new(start), count)
    }

    #[test]
    fn a_run_that_overflows_is_refused() {
        assert!(GuestPages::checked(GuestPage::new(u32::MAX), 1).is_none());
        assert_eq!(GuestPages::checked(GuestPage::new(u32::MAX), 0).map(GuestPages::count), Some(0));
        assert!(GuestPage::new(u32::MAX).checked_add(1).is_none());
    }

    #[test]
    fn a_run_contains_its_start_and_not_its_end() {
        let pages = run(3, 4);
        assert!(pages.contains(GuestPage::new(3)) && pages.contains(GuestPage::new(6)));
        assert!(!pages.contains(GuestPage::new(2)) && !pages.contains(pages.end()));
        assert_eq!(pages.iter().map(GuestPage::number).collect::<Vec<_>>(), [3, 4, 5, 6]);
    }

    #[test]
    fn runs_that_do_not_touch_intersect_in_nothing() {
        assert_eq!(run(0, 8).intersect(run(4, 8)), run(4, 4));
        assert!(run(0, 4).intersect(run(9, 4)).is_empty());
        assert!(run(9, 4).intersect(run(0, 4)).is_empty());
    }

    #[test]
    fn a_run_is_cut_at_its_own_length() {
        assert_eq!(run(5, 3).first_pages(9), run(5, 3));
        assert_eq!(run(5, 3).after(2), run(7, 1));
        assert!(run(5, 3).after(9).is_empty());
    }

    #[test]
    fn a_partial_last_page_is_a_page() {
        assert_eq!(pages_covering(0), Some(0));
        assert_eq!(pages_covering(1), Some(1));
        assert_eq!(pages_covering(u64_of(PAGE_BYTES)), Some(1));
        assert_eq!(pages_covering(u64_of(PAGE_BYTES) + 1), Some(2));
        assert_eq!(pages_covering(u64::MAX), None);
    }
}
