//! The two page sizes of guest memory.

/// Bytes of a small page: the unit of every page map and page set.
pub const PAGE_BYTES: usize = 4096;

/// Bytes of a huge page, where guest memory is hugetlb.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Size of the pages of some memory: the unit in which they are allocated and freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PageKind {
    /// 4 KiB pages.
    Small,
    /// 2 MiB hugetlb pages.
    Huge,
}

impl PageKind {
    /// Bytes of one page of this kind.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Small => PAGE_BYTES,
            Self::Huge => HUGE_PAGE_BYTES,
        }
    }

    /// The kind with pages of `bytes` bytes, if there is one.
    pub const fn of_bytes(bytes: u64) -> Option<Self> {
        match bytes {
            0x1000 => Some(Self::Small),
            0x20_0000 => Some(Self::Huge),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_and_its_size_name_each_other() {
        for kind in [PageKind::Small, PageKind::Huge] {
            assert_eq!(PageKind::of_bytes(crate::number::word(kind.bytes())), Some(kind));
        }
        assert_eq!(PageKind::of_bytes(0), None);
        assert_eq!(PageKind::of_bytes(1 << 30), None);
    }
}
