//! The map from each page of a volume to a page of a layer, by name; shared structurally between generations.
//!
//! The map is cut into chunks of 512 pages. Generations that did not change a chunk share it by an `Arc`.

mod chunk;
mod codec;
mod overlay;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::geometry::{GuestPage, GuestPages, LayerPage, usize_of};
use crate::page_set::PageSet;
use chunk::{CHUNK_PAGES, Chunk};
pub use codec::RunToken;
use overlay::{Overlay, count_in};

/// A position in a manifest's list of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerSlot(u16);

impl LayerSlot {
    /// Largest number of slots; inside a chunk the next number means "no layer".
    pub const COUNT_MAX: u16 = u16::MAX;

    /// The slot with this number; one past the last slot is a bug of the caller.
    #[must_use]
    pub fn new(number: u16) -> Self {
        Self::checked(number).expect("a slot's number is below the most slots there can be")
    }

    /// The slot with this number, if it is below the limit.
    #[must_use]
    pub fn checked(number: u16) -> Option<Self> {
        (number < Self::COUNT_MAX).then_some(Self(number))
    }

    /// The slot's number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }

    /// The slot's number as an index into memory.
    #[must_use]
    pub fn index(self) -> usize {
        self.0.into()
    }
}

/// Place of a page's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Nowhere: the page is zero.
    Zero,
    /// In a layer.
    Layer {
        /// The layer.
        slot: LayerSlot,
        /// The page in it.
        page: LayerPage,
    },
}

impl Place {
    /// The place `pages` further on in the same run.
    #[must_use]
    pub fn plus(self, pages: u32) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::Layer { slot, page } => Self::Layer { slot, page: page.plus(pages) },
        }
    }
}

/// Place of each page of a volume.
///
/// A run is a maximal sequence of pages that are all zero, or follow each other in one layer. Cloning is cheap.
#[derive(Clone, PartialEq, Eq)]
pub struct PageMap {
    chunks: Arc<[Chunk]>,
    /// Pages in each slot, up to the last slot in use.
    live: Arc<[u32]>,
    pages: u32,
    runs: u32,
}

impl PageMap {
    /// The map of a volume of `pages`, all of them zero.
    #[must_use]
    pub fn zero(pages: u32) -> Self {
        let chunks = vec![Chunk::Uniform(Place::Zero); usize_of(pages.div_ceil(CHUNK_PAGES))];
        Self { chunks: chunks.into(), live: Arc::new([]), pages, runs: pages.min(1) }
    }

    /// Number of pages in the volume.
    #[must_use]
    pub const fn pages(&self) -> u32 {
        self.pages
    }

    /// Number of runs in the map.
    #[must_use]
    pub const fn runs_count(&self) -> u32 {
        self.runs
    }

    /// Place of `page`; a page outside the volume is a bug of the caller.
    #[must_use]
    pub fn lookup(&self, page: GuestPage) -> Place {
        self.assert_holds(page);
        self.chunks[usize_of(page.number() / CHUNK_PAGES)].lookup(page.number() % CHUNK_PAGES)
    }

    /// Place of `page`, and the number of pages from it, at most `limit`, in the same run.
    ///
    /// The count ends at the volume's last page, and is 0 only if `limit` is 0.
    #[must_use]
    pub fn run_at(&self, page: GuestPage, limit: u32) -> (Place, u32) {
        let place = self.lookup(page);
        let limit = limit.min(self.pages - page.number());
        let offset = page.number() % CHUNK_PAGES;
        let mut next = usize_of(page.number() / CHUNK_PAGES);
        let mut count = self.chunks[next].run_end(offset) - offset;
        while count < limit && (offset + count).is_multiple_of(CHUNK_PAGES) {
            next += 1;
            let chunk = &self.chunks[next];
            if chunk.lookup(0) != place.plus(count) {
                break;
            }
            count += chunk.run_end(0);
        }
        (place, count.min(limit))
    }

    /// All runs, in order.
    pub fn runs(&self) -> impl Iterator<Item = (GuestPages, Place)> + '_ {
        let mut rest = GuestPages::new(GuestPage::FIRST, self.pages);
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let (place, count) = self.run_at(rest.start(), rest.count());
            let run = rest.first_pages(count);
            rest = rest.after(count);
            Some((run, place))
        })
    }

    /// Number of pages in `slot`.
    #[must_use]
    pub fn live_pages(&self, slot: LayerSlot) -> u32 {
        self.live.get(slot.index()).copied().unwrap_or(0)
    }

    /// The slots that have at least one page, in order.
    pub fn live_slots(&self) -> impl Iterator<Item = LayerSlot> + '_ {
        (0..).zip(self.live.iter()).filter(|(_, live)| **live > 0).map(|(number, _)| LayerSlot(number))
    }

    /// This map with the pages `kept` in the layer at `slot`, each at its rank in `kept`, and those of `zero` zero.
    ///
    /// The cost is that of the changed chunks; all others are shared. No other page may be in the slot.
    #[must_use]
    pub fn overlay(&self, kept: &PageSet, slot: LayerSlot, zero: &PageSet) -> Self {
        assert_eq!(kept.pages(), self.pages, "the sets are of the volume that the map is of");
        let map = Overlay::new(kept, slot, zero).over(self);
        assert_eq!(map.live_pages(slot), kept.len(), "no other page lies in the slot of the new layer");
        map
    }

    /// This map with each slot replaced by the slot given for it; chunks without a changed slot stay shared.
    ///
    /// Every slot in use must have a new one, and no two the same.
    #[must_use]
    pub fn renumber(&self, slots: &[Option<LayerSlot>]) -> Self {
        let moved =
            |slot: LayerSlot| slots.get(slot.index()).copied().flatten().expect("a slot in use stays in use");
        let mut live = Vec::new();
        for slot in self.live_slots() {
            count_in(
                &mut live,
                Place::Layer { slot: moved(slot), page: LayerPage::FIRST },
                self.live_pages(slot),
            );
        }
        assert_eq!(
            live.iter().filter(|live| **live > 0).count(),
            self.live_slots().count(),
            "slots stay apart"
        );
        let chunks = self.chunks.iter().map(|chunk| chunk.renumbered(&moved)).collect();
        Self { chunks, live: live.into(), pages: self.pages, runs: self.runs }
    }

    /// Bytes of heap the map holds, shared chunks included.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let counts = 2 * size_of::<usize>();
        let tables = size_of_val::<[Chunk]>(&self.chunks) + size_of_val::<[u32]>(&self.live) + 2 * counts;
        tables + self.chunks.iter().map(Chunk::heap_bytes).sum::<usize>()
    }

    /// Number of chunks that this map shares with `other`.
    #[must_use]
    pub fn chunks_shared_with(&self, other: &Self) -> usize {
        self.chunks
            .iter()
            .zip(other.chunks.iter())
            .filter(|(chunk, other)| chunk.is_the_same_as(other))
            .count()
    }

    fn assert_holds(&self, page: GuestPage) {
        assert!(page.number() < self.pages, "page {page} is outside a volume of {} pages", self.pages);
    }
}

impl std::fmt::Debug for PageMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.runs().map(|(run, place)| (run.to_string(), place))).finish()
    }
}
