//! An immutable set of pages that knows each member's rank, and is small if the set is sparse.

use crate::geometry::{GuestPage, GuestPages, LayerPage, usize_of};
use crate::page_set::PageSet;

/// Words of 64 pages in a block.
const BLOCK_WORDS: usize = 8;
/// Pages of a block: one rank is kept for each.
const BLOCK_PAGES: u32 = 512;

/// An immutable set of pages of a volume in which every member has a rank: its place in the layer that packs them.
///
/// An empty or full block of 512 pages takes 8 bytes, any other 64 more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankedSet {
    blocks: Box<[Block]>,
    words: Box<[u64]>,
    pages: u32,
    len: u32,
}

/// One block: the number of members before it, and the place of its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    rank: u32,
    members: Members,
}

/// Index of the words of a block: none if it is empty or full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Members(u32);

impl Members {
    const NONE: Self = Self(u32::MAX);
    const ALL: Self = Self(u32::MAX - 1);
}

impl RankedSet {
    /// The ranked set of the pages in `set`.
    #[must_use]
    pub fn new(set: &PageSet) -> Self {
        let mut ranking = Ranking::of(set.pages());
        for words in set.words().chunks(BLOCK_WORDS) {
            let mut block = [0; BLOCK_WORDS];
            block[..words.len()].copy_from_slice(words);
            ranking.push(&block);
        }
        ranking.done()
    }

    /// The ranked set of the pages in `runs`, which are in order and within a volume of `pages`.
    #[must_use]
    pub fn of_runs(pages: u32, runs: &[GuestPages]) -> Self {
        let mut ranking = Ranking::of(pages);
        let mut rest = runs;
        while let Some(first) = rest.first() {
            // A run may continue from the previous block.
            let block = usize_of(first.start().number() / BLOCK_PAGES).max(ranking.blocks.len());
            ranking.leave_empty_to(block);
            ranking.push(&take_block(&mut rest, block));
        }
        ranking.done()
    }

    /// Number of pages of the volume, in the set or not.
    #[must_use]
    pub const fn pages(&self) -> u32 {
        self.pages
    }

    /// Number of pages in the set.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// True if no page is in the set.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of members before `page`, if it is a member itself.
    #[must_use]
    pub fn rank(&self, page: GuestPage) -> Option<LayerPage> {
        let block = self.block_of(page);
        let offset = page.number() % BLOCK_PAGES;
        match block.members {
            Members::NONE => None,
            Members::ALL => Some(LayerPage::new(block.rank + offset)),
            members => {
                let words = self.words_of(members);
                let word = usize_of(offset / u64::BITS);
                let bit = 1_u64 << (offset % u64::BITS);
                let before: u32 = words[..word].iter().map(|word| word.count_ones()).sum();
                let within = (words[word] & (bit - 1)).count_ones();
                (words[word] & bit != 0).then(|| LayerPage::new(block.rank + before + within))
            }
        }
    }

    /// True if `page` is in the set.
    #[must_use]
    pub fn contains(&self, page: GuestPage) -> bool {
        self.rank(page).is_some()
    }

    /// The rank of `page`, if it is a member, and the number of pages from it, at most `limit`, that are all members,
    /// or all absent.
    ///
    /// The count ends at the volume's last page, and is 0 only if `limit` is 0.
    #[must_use]
    pub fn run_at(&self, page: GuestPage, limit: u32) -> (Option<LayerPage>, u32) {
        let rank = self.rank(page);
        let limit = limit.min(self.pages - page.number());
        let mut count = 0;
        while count < limit {
            let (same, room) = self.same_in_block(page.plus(count), rank.is_some());
            count += same;
            if same < room {
                break;
            }
        }
        (rank, count.min(limit))
    }

    /// The set as maximal runs, in order.
    pub fn runs(&self) -> impl Iterator<Item = GuestPages> + '_ {
        let mut rest = GuestPages::new(GuestPage::FIRST, self.pages);
        std::iter::from_fn(move || {
            while !rest.is_empty() {
                let (rank, count) = self.run_at(rest.start(), rest.count());
                let run = rest.first_pages(count);
                rest = rest.after(count);
                if rank.is_some() {
                    return Some(run);
                }
            }
            None
        })
    }

    /// The same pages as a mutable set.
    #[must_use]
    pub fn to_set(&self) -> PageSet {
        let mut set = PageSet::new(self.pages);
        self.runs().for_each(|run| set.insert_run(run));
        set
    }

    /// Bytes of heap the set holds.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        size_of_val::<[Block]>(&self.blocks) + size_of_val::<[u64]>(&self.words)
    }

    fn block_of(&self, page: GuestPage) -> Block {
        assert!(page.number() < self.pages, "page {page} is outside a volume of {} pages", self.pages);
        self.blocks[usize_of(page.number() / BLOCK_PAGES)]
    }

    fn words_of(&self, members: Members) -> &[u64] {
        let first = usize_of(members.0) * BLOCK_WORDS;
        &self.words[first..first + BLOCK_WORDS]
    }

    /// Number of pages from `page` on in its word or uniform block that are members (or absent, as `member` asks), and
    /// the number of pages from there to the end of that word or block.
    fn same_in_block(&self, page: GuestPage, member: bool) -> (u32, u32) {
        let offset = page.number() % BLOCK_PAGES;
        let uniform = |all: bool| if all == member { BLOCK_PAGES - offset } else { 0 };
        match self.block_of(page).members {
            Members::NONE => (uniform(false), BLOCK_PAGES - offset),
            Members::ALL => (uniform(true), BLOCK_PAGES - offset),
            members => {
                let word = self.words_of(members)[usize_of(offset / u64::BITS)];
                let bit = offset % u64::BITS;
                let differing = if member { !word } else { word };
                ((differing >> bit).trailing_zeros().min(u64::BITS - bit), u64::BITS - bit)
            }
        }
    }
}

/// A ranked set while it is being built, block by block.
struct Ranking {
    blocks: Vec<Block>,
    words: Vec<u64>,
    rank: u32,
    pages: u32,
}

impl Ranking {
    fn of(pages: u32) -> Self {
        let blocks = Vec::with_capacity(usize_of(pages.div_ceil(BLOCK_PAGES)));
        Self { blocks, words: Vec::new(), rank: 0, pages }
    }

    fn push(&mut self, block: &[u64; BLOCK_WORDS]) {
        let count: u32 = block.iter().map(|word| word.count_ones()).sum();
        let members = match count {
            0 => Members::NONE,
            BLOCK_PAGES => Members::ALL,
            _ => {
                let before = self.words.len() / BLOCK_WORDS;
                self.words.extend_from_slice(block);
                Members(u32::try_from(before).expect("a volume has fewer blocks than pages"))
            }
        };
        self.blocks.push(Block { rank: self.rank, members });
        self.rank += count;
    }

    fn leave_empty_to(&mut self, block: usize) {
        self.blocks.resize(block, Block { rank: self.rank, members: Members::NONE });
    }

    fn done(mut self) -> RankedSet {
        self.leave_empty_to(usize_of(self.pages.div_ceil(BLOCK_PAGES)));
        let Self { blocks, words, rank, pages } = self;
        RankedSet { blocks: blocks.into_boxed_slice(), words: words.into_boxed_slice(), pages, len: rank }
    }
}

/// The words of a block, filled from the first of `runs`; removes the runs that end in the block.
fn take_block(runs: &mut &[GuestPages], block: usize) -> [u64; BLOCK_WORDS] {
    let first = u32::try_from(block).expect("a volume has fewer blocks than pages") * BLOCK_PAGES;
    let block = GuestPages::new(GuestPage::new(first), BLOCK_PAGES);
    let mut words = [0; BLOCK_WORDS];
    while let Some((run, later)) = runs.split_first() {
        let mut rest = run.intersect(block);
        while !rest.is_empty() {
            let offset = rest.start().pages_since(block.start());
            let bit = offset % u64::BITS;
            let count = rest.count().min(u64::BITS - bit);
            words[usize_of(offset / u64::BITS)] |= (u64::MAX >> (u64::BITS - count)) << bit;
            rest = rest.after(count);
        }
        if run.end() > block.end() {
            break;
        }
        *runs = later;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set() -> impl Strategy<Value = PageSet> {
        (1_u32..3000)
            .prop_flat_map(|pages| (Just(pages), prop::collection::vec((0..pages, 1_u32..1400), 0..20)))
            .prop_map(|(pages, runs)| {
                let mut set = PageSet::new(pages);
                for (start, count) in runs {
                    set.insert_run(GuestPages::new(GuestPage::new(start), count.min(pages - start)));
                }
                set
            })
    }

    proptest! {
        #[test]
        fn a_rank_counts_the_members_before(set in set()) {
            let ranked = RankedSet::new(&set);
            let mut before = 0;
            for page in (0..set.pages()).map(GuestPage::new) {
                let expected = set.contains(page).then_some(LayerPage::new(before));
                prop_assert_eq!(ranked.rank(page), expected);
                before += u32::from(set.contains(page));
            }
            prop_assert_eq!((ranked.len(), ranked.pages()), (before, set.pages()));
        }

        #[test]
        fn runs_are_those_of_the_set(set in set(), limit in 1_u32..900) {
            let ranked = RankedSet::new(&set);
            let runs: Vec<_> = set.runs().collect();
            prop_assert_eq!(&RankedSet::of_runs(set.pages(), &runs), &ranked);
            prop_assert_eq!(ranked.runs().collect::<Vec<_>>(), set.runs().collect::<Vec<_>>());
            prop_assert_eq!(&ranked.to_set(), &set);
            for page in (0..set.pages()).step_by(7).map(GuestPage::new) {
                let (rank, count) = ranked.run_at(page, limit);
                prop_assert_eq!((rank.is_some(), count), set.run_at(page, limit));
            }
        }
    }

    #[test]
    fn a_sparse_set_of_a_large_volume_is_small() {
        let mut set = PageSet::new(4 << 20);
        set.insert_run(GuestPages::new(GuestPage::new(1_000_000), 2000));
        assert!(RankedSet::new(&set).heap_bytes() < set.heap_bytes() / 7);
    }
}
