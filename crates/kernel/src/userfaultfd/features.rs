//! Features that a userfaultfd is opened with, and operations that a registered range offers.

use linux_raw_sys::general as raw;

use crate::number::wide;

/// A set of userfaultfd features.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Features(u64);

impl Features {
    /// Nothing beyond missing pages.
    pub const NONE: Self = Self(0);
    /// Write-protect faults.
    pub const PAGEFAULT_FLAG_WP: Self = Self(wide(raw::UFFD_FEATURE_PAGEFAULT_FLAG_WP));
    /// Events for pages given back.
    pub const EVENT_REMOVE: Self = Self(wide(raw::UFFD_FEATURE_EVENT_REMOVE));
    /// Events for addresses unmapped.
    pub const EVENT_UNMAP: Self = Self(wide(raw::UFFD_FEATURE_EVENT_UNMAP));
    /// Missing pages of hugetlb memory.
    pub const MISSING_HUGETLBFS: Self = Self(wide(raw::UFFD_FEATURE_MISSING_HUGETLBFS));
    /// Missing pages of shared memory.
    pub const MISSING_SHMEM: Self = Self(wide(raw::UFFD_FEATURE_MISSING_SHMEM));
    /// The faulting thread's number in each fault.
    pub const THREAD_ID: Self = Self(wide(raw::UFFD_FEATURE_THREAD_ID));
    /// Faults for hugetlb pages that are in the file and not mapped.
    pub const MINOR_HUGETLBFS: Self = Self(wide(raw::UFFD_FEATURE_MINOR_HUGETLBFS));
    /// Faults for shared pages that are in the file and not mapped.
    pub const MINOR_SHMEM: Self = Self(wide(raw::UFFD_FEATURE_MINOR_SHMEM));
    /// The exact address in each fault, not its page's.
    pub const EXACT_ADDRESS: Self = Self(wide(raw::UFFD_FEATURE_EXACT_ADDRESS));
    /// Write protection of shared and hugetlb memory.
    pub const WP_HUGETLBFS_SHMEM: Self = Self(wide(raw::UFFD_FEATURE_WP_HUGETLBFS_SHMEM));
    /// Protection of pages that were never touched (Linux 6.4).
    pub const WP_UNPOPULATED: Self = Self(wide(raw::UFFD_FEATURE_WP_UNPOPULATED));
    /// Pages that fail when they are used (Linux 6.6).
    pub const POISON: Self = Self(wide(raw::UFFD_FEATURE_POISON));
    /// Protection that the kernel lifts by itself, for page-table scans to find (Linux 6.7).
    pub const WP_ASYNC: Self = Self(wide(raw::UFFD_FEATURE_WP_ASYNC));
    /// Moving pages instead of copying them (Linux 6.8).
    pub const MOVE: Self = Self(wide(raw::UFFD_FEATURE_MOVE));

    const NAMES: [(Self, &'static str); 14] = [
        (Self::PAGEFAULT_FLAG_WP, "PAGEFAULT_FLAG_WP"),
        (Self::EVENT_REMOVE, "EVENT_REMOVE"),
        (Self::EVENT_UNMAP, "EVENT_UNMAP"),
        (Self::MISSING_HUGETLBFS, "MISSING_HUGETLBFS"),
        (Self::MISSING_SHMEM, "MISSING_SHMEM"),
        (Self::THREAD_ID, "THREAD_ID"),
        (Self::MINOR_HUGETLBFS, "MINOR_HUGETLBFS"),
        (Self::MINOR_SHMEM, "MINOR_SHMEM"),
        (Self::EXACT_ADDRESS, "EXACT_ADDRESS"),
        (Self::WP_HUGETLBFS_SHMEM, "WP_HUGETLBFS_SHMEM"),
        (Self::WP_UNPOPULATED, "WP_UNPOPULATED"),
        (Self::POISON, "POISON"),
        (Self::WP_ASYNC, "WP_ASYNC"),
        (Self::MOVE, "MOVE"),
    ];

    /// The features of both sets.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The features that both sets have.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The features that `other` lacks.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// True if all of `other` is in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// True if the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) const fn of_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(super) const fn bits(self) -> u64 {
        self.0
    }
}

impl std::ops::BitOr for Features {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

impl std::fmt::Display for Features {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut between = "";
        for (feature, name) in Self::NAMES {
            if self.contains(feature) {
                write!(f, "{between}{name}")?;
                between = " | ";
            }
        }
        let unnamed = Self::NAMES.iter().fold(*self, |left, (feature, _)| left.without(*feature));
        if !unnamed.is_empty() || self.is_empty() {
            write!(f, "{between}{:#x}", unnamed.0)?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Features {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Features({self})")
    }
}

/// The installs that a registered range offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegisteredIoctls(u64);

impl RegisteredIoctls {
    pub(super) const fn of_bits(bits: u64) -> Self {
        Self(bits)
    }

    const fn offers(self, number: u32) -> bool {
        self.0 >> number & 1 == 1
    }

    /// True if [`super::Userfaultfd::copy`] works there.
    pub const fn copy(self) -> bool {
        self.offers(raw::_UFFDIO_COPY)
    }

    /// True if [`super::Userfaultfd::zero`] works there; not in hugetlb memory.
    pub const fn zeropage(self) -> bool {
        self.offers(raw::_UFFDIO_ZEROPAGE)
    }

    /// True if [`super::Userfaultfd::write_protect`] works there.
    pub const fn write_protect(self) -> bool {
        self.offers(raw::_UFFDIO_WRITEPROTECT)
    }

    /// True if [`super::Userfaultfd::continue_shared`] works there.
    pub const fn continue_shared(self) -> bool {
        self.offers(raw::_UFFDIO_CONTINUE)
    }

    /// True if [`super::Userfaultfd::poison`] works there.
    pub const fn poison(self) -> bool {
        self.offers(raw::_UFFDIO_POISON)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits as linux/userfaultfd.h of Linux 6.12 has them.
    #[test]
    fn feature_bits_are_those_of_the_kernel() {
        let bits = Features::NAMES.map(|(feature, _)| feature.bits().trailing_zeros());
        assert_eq!(bits, [0, 3, 6, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
    }

    #[test]
    fn a_set_prints_its_names_and_what_has_none() {
        assert_eq!((Features::EVENT_REMOVE | Features::WP_ASYNC).to_string(), "EVENT_REMOVE | WP_ASYNC");
        assert_eq!(Features::of_bits(1 << 60 | 8).to_string(), "EVENT_REMOVE | 0x1000000000000000");
        assert_eq!(Features::NONE.to_string(), "0x0");
    }

    #[test]
    fn a_set_contains_its_parts_only() {
        let set = Features::EVENT_REMOVE | Features::POISON;
        assert!(set.contains(Features::POISON) && set.contains(Features::NONE));
        assert!(!set.contains(Features::POISON | Features::MOVE));
        assert_eq!(set.without(Features::POISON), Features::EVENT_REMOVE);
        assert!(set.intersection(Features::MOVE).is_empty());
    }
}
