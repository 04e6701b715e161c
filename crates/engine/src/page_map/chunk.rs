//! The places of 512 consecutive pages, in the smallest of three forms.

use std::sync::Arc;

use super::{LayerSlot, Place};
use crate::geometry::{LayerPage, usize_of};

/// Pages of a chunk: 2 MiB of guest memory.
pub(super) const CHUNK_PAGES: u32 = 512;

/// Largest number of runs in a `Few` chunk: up to it, looking at every start is cheaper than a bitmap.
const FEW_RUNS_MAX: usize = 24;
/// Bytes of a run's start in `Few`.
const START_BYTES: usize = 2;
/// Bytes of an entry: the layer page that the run would have at the chunk's first page, 4 bytes, and the slot, 2 bytes.
const ENTRY_BYTES: usize = 6;
/// Bytes of a head in `Many`: a bit for each of 64 pages that starts a run, 8 bytes, and the number of runs before, 2
/// bytes.
const HEAD_BYTES: usize = 10;
/// Bytes of all heads of a chunk.
const HEADS_BYTES: usize = 8 * HEAD_BYTES;
/// The slot of an entry of zero pages.
const ZERO_SLOT: u16 = LayerSlot::COUNT_MAX;

/// The places of a chunk's pages. Equal places have equal forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// One run; the place is that of the first page.
    Uniform(Place),
    /// Starts of runs, ascending, then an entry for each.
    Few(Arc<[u8]>),
    /// A head for each 64 pages, then an entry for each run.
    Many(Arc<[u8]>),
}

impl Chunk {
    /// Place of the page at `offset`.
    #[inline]
    pub(super) fn lookup(&self, offset: u32) -> Place {
        match self {
            Self::Uniform(first) => first.plus(offset),
            Self::Few(bytes) => {
                let (starts, entries) = few_parts(bytes);
                place_in(entries, few_runs_until(starts, offset) - 1, offset)
            }
            Self::Many(bytes) => {
                let (heads, entries) = bytes.split_at(HEADS_BYTES);
                let (starts, before) = head_at(heads, offset / u64::BITS);
                let until = starts & (u64::MAX >> (63 - offset % u64::BITS));
                place_in(entries, before + usize_of(until.count_ones()) - 1, offset)
            }
        }
    }

    /// End in this chunk of the run that has the page at `offset`; 512 for the last run.
    #[inline]
    pub(super) fn run_end(&self, offset: u32) -> u32 {
        match self {
            Self::Uniform(_) => CHUNK_PAGES,
            Self::Few(bytes) => {
                let (starts, _) = few_parts(bytes);
                let next = few_runs_until(starts, offset);
                starts
                    .chunks_exact(START_BYTES)
                    .nth(next)
                    .map_or(CHUNK_PAGES, |start| u16_at(start, 0).into())
            }
            Self::Many(bytes) => many_run_end(&bytes[..HEADS_BYTES], offset),
        }
    }

    /// Calls `each` with the place and length of every run among the chunk's first `pages`.
    pub(super) fn for_each_run(&self, pages: u32, mut each: impl FnMut(Place, u32)) {
        let mut offset = 0;
        while offset < pages {
            let end = self.run_end(offset).min(pages);
            each(self.lookup(offset), end - offset);
            offset = end;
        }
    }

    /// Number of runs in the chunk.
    pub(super) fn runs_count(&self) -> u32 {
        let count = match self {
            Self::Uniform(_) => 1,
            Self::Few(bytes) => bytes.len() / (START_BYTES + ENTRY_BYTES),
            Self::Many(bytes) => (bytes.len() - HEADS_BYTES) / ENTRY_BYTES,
        };
        u32::try_from(count).expect("a chunk has at most 512 runs")
    }

    /// The chunk with every slot replaced by `moved`; shares its memory if no slot changes.
    pub(super) fn renumbered(&self, moved: &impl Fn(LayerSlot) -> LayerSlot) -> Self {
        let renumbered = |bytes: &Arc<[u8]>, entries_at| match renumbered_entries(bytes, entries_at, moved) {
            Some(changed) => changed.into(),
            None => Arc::clone(bytes),
        };
        match self {
            Self::Uniform(Place::Zero) => Self::Uniform(Place::Zero),
            Self::Uniform(Place::Layer { slot, page }) => {
                Self::Uniform(Place::Layer { slot: moved(*slot), page: *page })
            }
            Self::Few(bytes) => Self::Few(renumbered(bytes, few_parts(bytes).0.len())),
            Self::Many(bytes) => Self::Many(renumbered(bytes, HEADS_BYTES)),
        }
    }

    /// Bytes of heap behind the chunk.
    pub(super) fn heap_bytes(&self) -> usize {
        match self {
            Self::Uniform(_) => 0,
            Self::Few(bytes) | Self::Many(bytes) => bytes.len() + 2 * size_of::<usize>(),
        }
    }

    /// True if both share their memory, or have none.
    pub(super) fn is_the_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Few(bytes), Self::Few(other)) | (Self::Many(bytes), Self::Many(other)) => {
                Arc::ptr_eq(bytes, other)
            }
            (Self::Uniform(place), Self::Uniform(other)) => place == other,
            (Self::Uniform(_) | Self::Few(_) | Self::Many(_), _) => false,
        }
    }
}

/// The runs of a chunk while they are being collected.
#[derive(Debug, Default)]
pub(super) struct ChunkDraft {
    starts: Vec<u16>,
    firsts: Vec<Place>,
    pages: u32,
}

impl ChunkDraft {
    /// Number of pages collected.
    pub(super) const fn pages(&self) -> u32 {
        self.pages
    }

    /// Adds `count` pages, the first of them at `place`; joins them to the last run if they continue it.
    pub(super) fn push(&mut self, place: Place, count: u32) {
        assert!(count > 0 && count <= CHUNK_PAGES - self.pages, "a run lies within its chunk");
        let offset = self.offset();
        let follows = self
            .starts
            .last()
            .zip(self.firsts.last())
            .is_some_and(|(start, first)| first.plus(u32::from(offset - start)) == place);
        if !follows {
            self.starts.push(offset);
            self.firsts.push(place);
        }
        self.pages += count;
    }

    /// The chunk of the collected pages; the draft is empty again.
    pub(super) fn finish(&mut self) -> Chunk {
        let chunk = match self.firsts.as_slice() {
            [place] => Chunk::Uniform(*place),
            firsts if firsts.len() <= FEW_RUNS_MAX => Chunk::Few(self.few()),
            _ => Chunk::Many(self.many()),
        };
        self.starts.clear();
        self.firsts.clear();
        self.pages = 0;
        chunk
    }

    fn offset(&self) -> u16 {
        u16::try_from(self.pages).expect("a chunk has 512 pages")
    }

    fn few(&self) -> Arc<[u8]> {
        let mut bytes = Vec::with_capacity(self.starts.len() * (START_BYTES + ENTRY_BYTES));
        bytes.extend(self.starts.iter().flat_map(|start| start.to_le_bytes()));
        self.append_entries(&mut bytes);
        bytes.into()
    }

    fn many(&self) -> Arc<[u8]> {
        let mut heads = [(0_u64, 0_u16); HEADS_BYTES / HEAD_BYTES];
        for start in &self.starts {
            heads[usize::from(start / 64)].0 |= 1 << (start % 64);
        }
        let mut bytes = Vec::with_capacity(HEADS_BYTES + self.starts.len() * ENTRY_BYTES);
        let mut before = 0;
        for (starts, _) in heads {
            bytes.extend(starts.to_le_bytes());
            bytes.extend(u16::to_le_bytes(before));
            before += u16::try_from(starts.count_ones()).expect("a word has 64 bits");
        }
        self.append_entries(&mut bytes);
        bytes.into()
    }

    fn append_entries(&self, bytes: &mut Vec<u8>) {
        for (start, first) in self.starts.iter().zip(&self.firsts) {
            let (at_chunk_start, slot) = match *first {
                Place::Zero => (0, ZERO_SLOT),
                Place::Layer { slot, page } => (page.number().wrapping_sub((*start).into()), slot.number()),
            };
            bytes.extend(at_chunk_start.to_le_bytes());
            bytes.extend(slot.to_le_bytes());
        }
    }
}

/// The place of the page at `offset`, which is in the run of this entry.
#[inline]
fn place_in(entries: &[u8], entry: usize, offset: u32) -> Place {
    let entry = &entries[entry * ENTRY_BYTES..][..ENTRY_BYTES];
    let at_chunk_start = u32::from_le_bytes(entry[..4].try_into().expect("four bytes"));
    match u16_at(entry, 4) {
        ZERO_SLOT => Place::Zero,
        slot => {
            Place::Layer { slot: LayerSlot(slot), page: LayerPage::new(at_chunk_start.wrapping_add(offset)) }
        }
    }
}

/// The bytes with the slot of every entry moved, if any changes.
fn renumbered_entries(
    bytes: &[u8],
    entries_at: usize,
    moved: &impl Fn(LayerSlot) -> LayerSlot,
) -> Option<Vec<u8>> {
    let mut changed: Option<Vec<u8>> = None;
    for slot_at in (entries_at..bytes.len()).step_by(ENTRY_BYTES).map(|entry| entry + 4) {
        let slot = u16_at(bytes, slot_at);
        let new = if slot == ZERO_SLOT { slot } else { moved(LayerSlot(slot)).number() };
        if new != slot {
            let changed = changed.get_or_insert_with(|| bytes.to_vec());
            changed[slot_at..slot_at + 2].copy_from_slice(&new.to_le_bytes());
        }
    }
    changed
}

/// The starts and the entries of a `Few`.
fn few_parts(bytes: &[u8]) -> (&[u8], &[u8]) {
    bytes.split_at(bytes.len() / (START_BYTES + ENTRY_BYTES) * START_BYTES)
}

/// Number of runs that start at `offset` or before.
#[inline]
fn few_runs_until(starts: &[u8], offset: u32) -> usize {
    starts.chunks_exact(START_BYTES).filter(|start| u32::from(u16_at(start, 0)) <= offset).count()
}

/// The bits of the pages that start a run among the 64 of this head, and the number of runs before them.
#[inline]
fn head_at(heads: &[u8], number: u32) -> (u64, usize) {
    let head = &heads[usize_of(number) * HEAD_BYTES..][..HEAD_BYTES];
    (u64::from_le_bytes(head[..8].try_into().expect("eight bytes")), u16_at(head, 8).into())
}

fn many_run_end(heads: &[u8], offset: u32) -> u32 {
    let next = offset + 1;
    for number in next / u64::BITS..CHUNK_PAGES / u64::BITS {
        let (starts, _) = head_at(heads, number);
        let first = if number == next / u64::BITS { next % u64::BITS } else { 0 };
        let later = starts >> first;
        if later != 0 {
            return number * u64::BITS + first + later.trailing_zeros();
        }
    }
    CHUNK_PAGES
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}
