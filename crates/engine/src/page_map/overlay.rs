//! Puts one layer's pages over a map; makes only the changed chunks anew.

use super::chunk::{CHUNK_PAGES, Chunk, ChunkDraft};
use super::{LayerSlot, PageMap, Place};
use crate::geometry::{GuestPage, GuestPages, LayerPage};
use crate::page_set::PageSet;

/// Words of a page set for the pages of one chunk.
const CHUNK_WORDS: usize = 8;

/// The pages that move into a new layer and those that become zero.
pub(super) struct Overlay<'a> {
    kept: &'a PageSet,
    slot: LayerSlot,
    zero: &'a PageSet,
}

impl<'a> Overlay<'a> {
    /// Moves the pages of `kept` to the layer at `slot` in their order, and makes those of `zero` zero.
    pub(super) fn new(kept: &'a PageSet, slot: LayerSlot, zero: &'a PageSet) -> Self {
        assert!(kept.is_disjoint_from(zero), "a page is kept or zero, not both");
        Self { kept, slot, zero }
    }

    /// The new map over `base`.
    pub(super) fn over(&self, base: &PageMap) -> PageMap {
        let mut change = Change::of(base);
        let mut draft = ChunkDraft::default();
        let mut rank = LayerPage::FIRST;
        for (number, chunk) in base.chunks.iter().enumerate() {
            if self.touches(number) {
                rank = self.draw(chunk, window_of(number, base.pages), rank, &mut draft);
                change.replace(number, draft.finish());
            }
        }
        change.finish()
    }

    fn touches(&self, chunk: usize) -> bool {
        let words = |set: &'a PageSet| set.words()[chunk * CHUNK_WORDS..].iter().take(CHUNK_WORDS);
        words(self.kept).chain(words(self.zero)).any(|word| *word != 0)
    }

    /// Makes the chunk anew. Its first kept page gets this rank; returns the rank after its last one.
    fn draw(&self, old: &Chunk, window: GuestPages, rank: LayerPage, draft: &mut ChunkDraft) -> LayerPage {
        let mut rank = rank;
        let mut rest = window;
        while !rest.is_empty() {
            let (is_kept, same_kept) = self.kept.run_at(rest.start(), rest.count());
            let (is_zero, same_both) = self.zero.run_at(rest.start(), same_kept);
            let offset = window.count() - rest.count();
            let (place, count) = if is_kept {
                (Place::Layer { slot: self.slot, page: rank }, same_kept)
            } else if is_zero {
                (Place::Zero, same_both)
            } else {
                (old.lookup(offset), same_both.min(old.run_end(offset) - offset))
            };
            rank = rank.plus(if is_kept { count } else { 0 });
            draft.push(place, count);
            rest = rest.after(count);
        }
        rank
    }
}

/// A map that differs from its base in some chunks.
struct Change<'a> {
    base: &'a PageMap,
    chunks: Vec<Chunk>,
    live: Vec<u32>,
    replaced: Vec<usize>,
}

impl<'a> Change<'a> {
    fn of(base: &'a PageMap) -> Self {
        Self { base, chunks: base.chunks.to_vec(), live: base.live.to_vec(), replaced: Vec::new() }
    }

    /// Puts a chunk in place of another, unless they are equal: then the old one stays shared.
    fn replace(&mut self, number: usize, chunk: Chunk) {
        if chunk == self.chunks[number] {
            return;
        }
        let window = window_of(number, self.base.pages);
        let old = std::mem::replace(&mut self.chunks[number], chunk);
        old.for_each_run(window.count(), |place, count| {
            if let Place::Layer { slot, .. } = place {
                self.live[slot.index()] -= count;
            }
        });
        self.chunks[number]
            .for_each_run(window.count(), |place, count| count_in(&mut self.live, place, count));
        self.replaced.push(number);
    }

    fn finish(mut self) -> PageMap {
        while self.live.last() == Some(&0) {
            self.live.pop();
        }
        PageMap {
            runs: self.runs(),
            pages: self.base.pages,
            live: self.live.into(),
            chunks: self.chunks.into(),
        }
    }

    /// The base's runs, less those that started in a replaced chunk or right after one, plus those that do now.
    fn runs(&self) -> u32 {
        let mut runs = self.base.runs;
        let mut counted = None;
        for number in self.replaced.iter().flat_map(|number| [*number, number + 1]) {
            if counted < Some(number) && number < self.chunks.len() {
                runs -= runs_starting_in(&self.base.chunks, number);
                runs += runs_starting_in(&self.chunks, number);
                counted = Some(number);
            }
        }
        runs
    }
}

/// The pages of the chunk of this number in a volume of `pages`.
fn window_of(number: usize, pages: u32) -> GuestPages {
    let start = u32::try_from(number).expect("a volume has less than 2^32 pages") * CHUNK_PAGES;
    GuestPages::new(GuestPage::new(start), CHUNK_PAGES.min(pages - start))
}

/// Adds `count` pages at `place` to the pages of each slot.
pub(super) fn count_in(live: &mut Vec<u32>, place: Place, count: u32) {
    if let Place::Layer { slot, .. } = place {
        if live.len() <= slot.index() {
            live.resize(slot.index() + 1, 0);
        }
        live[slot.index()] += count;
    }
}

/// Number of runs that start in this chunk, not counting one that goes on from the chunk before.
fn runs_starting_in(chunks: &[Chunk], number: usize) -> u32 {
    let before = number.checked_sub(1).map(|before| chunks[before].lookup(CHUNK_PAGES - 1).plus(1));
    chunks[number].runs_count() - u32::from(before == Some(chunks[number].lookup(0)))
}
