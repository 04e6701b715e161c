//! The state of each page of a disk since the last pause: two bits a page in a memory file, so that a kill at any
//! instant leaves each page in the state before or after a change.
//!
//! Thirty-two pages to a little-endian 64-bit word, the lowest bits first.

use std::io;

use rekindle_engine::geometry::{GuestPage, GuestPages, u64_of, usize_of};
use rekindle_engine::page_set::PageSet;
use rekindle_kernel::{Memfd, PAGE_BYTES, PageKind, SharedBuffer};

/// Pages a word tells of.
const WORD_PAGES: u32 = 32;

/// One bit of each pair of a word.
const EACH: u64 = 0x5555_5555_5555_5555;

/// State of a page of an overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageState {
    /// As it was at the last pause.
    Base,
    /// In the overlay's file.
    Written,
    /// Zero.
    Zero,
}

/// The states of all pages. Those of one word are changed by one thread at a time, and read by any.
#[derive(Debug)]
pub(super) struct Marks {
    words: SharedBuffer,
    pages: u32,
}

impl PageState {
    /// A word all of whose pages are in this state.
    const fn word(self) -> u64 {
        match self {
            Self::Base => 0,
            Self::Written => EACH,
            Self::Zero => EACH << 1,
        }
    }

    fn of_bits(bits: u64) -> Option<Self> {
        match bits & 3 {
            0 => Some(Self::Base),
            1 => Some(Self::Written),
            2 => Some(Self::Zero),
            _ => None,
        }
    }
}

impl Marks {
    /// Marks of `pages` pages in a file of their own, all of them what they were.
    pub(super) fn create(pages: u32) -> io::Result<Self> {
        let memfd = Memfd::create("rekindle-disk-marks", bytes_for(pages), PageKind::Small)?;
        Self::of(&memfd, pages)
    }

    /// The marks in a file that another server left. An error if they are not of `pages` pages.
    pub(super) fn of(memfd: &Memfd, pages: u32) -> io::Result<Self> {
        let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
        if memfd.bytes() != bytes_for(pages) {
            return Err(invalid("the marks of a disk are not as many as it has pages"));
        }
        let words = SharedBuffer::of_memfd(memfd, 0, usize_of(pages.div_ceil(WORD_PAGES)) * 8)?;
        let marks = Self { words, pages };
        let torn = (0..marks.word_count()).any(|index| {
            let word = marks.word(index);
            word & (word >> 1) & EACH != 0
        });
        if torn { Err(invalid("a page of a disk is marked as nothing a page can be")) } else { Ok(marks) }
    }

    /// True if any page is not as it was at the last pause.
    pub(super) fn is_any_changed(&self) -> bool {
        (0..self.word_count()).any(|index| self.word(index) != 0)
    }

    /// Pages of the disk.
    pub(super) fn pages(&self) -> u32 {
        self.pages
    }

    /// The file, which another process may hold.
    pub(super) fn memfd(&self) -> &Memfd {
        self.words.memfd()
    }

    /// The state of a page.
    pub(super) fn state(&self, page: GuestPage) -> PageState {
        self.run_at(page, 1).0
    }

    /// The state of `page`, and how many pages from it on have the same, at most `limit`.
    pub(super) fn run_at(&self, page: GuestPage, limit: u32) -> (PageState, u32) {
        assert!(page.number() < self.pages && limit > 0, "page {page} is one of {}", self.pages);
        let limit = limit.min(self.pages - page.number());
        let bits = self.word(page.number() / WORD_PAGES) >> (2 * (page.number() % WORD_PAGES));
        let state = PageState::of_bits(bits).expect("only the three states are ever stored");
        let mut count = 0;
        while count < limit {
            let at = page.number() + count;
            let (index, skipped) = (at / WORD_PAGES, at % WORD_PAGES);
            let differing = (self.word(index) ^ state.word()) >> (2 * skipped);
            let here = WORD_PAGES - skipped;
            let same = (differing.trailing_zeros() / 2).min(here);
            count += same;
            if same < here {
                break;
            }
        }
        // Another thread may have changed the page since its state was read: it was in that state a moment ago.
        (state, count.clamp(1, limit))
    }

    /// Puts pages into `state`, after all that was stored before. The caller is the only one who changes them.
    pub(super) fn set(&self, run: GuestPages, state: PageState) {
        assert!(run.end().number() <= self.pages, "run {run} lies in a disk of {} pages", self.pages);
        let mut rest = run;
        while !rest.is_empty() {
            let (index, skipped) = (rest.start().number() / WORD_PAGES, rest.start().number() % WORD_PAGES);
            let count = rest.count().min(WORD_PAGES - skipped);
            let mask = (u64::MAX >> (64 - 2 * count)) << (2 * skipped);
            let before = self.word(index);
            let after = before & !mask | state.word() & mask;
            if after != before {
                self.words.set_word(usize_of(index) * 8, after);
            }
            rest = rest.after(count);
        }
    }

    /// The pages in `state`.
    pub(super) fn pages_in(&self, state: PageState) -> PageSet {
        let mut words = Vec::with_capacity(usize_of(self.pages.div_ceil(u64::BITS)));
        for pair in 0..self.pages.div_ceil(u64::BITS) {
            let low = gathered(self.word(2 * pair), state);
            let high =
                if 2 * pair + 1 < self.word_count() { gathered(self.word(2 * pair + 1), state) } else { 0 };
            words.push(low | high << 32);
        }
        if let (Some(last), used @ 1..) = (words.last_mut(), self.pages % u64::BITS) {
            *last &= u64::MAX >> (u64::BITS - used);
        }
        PageSet::from_words(self.pages, words).expect("as many words as the volume's pages take")
    }

    fn word_count(&self) -> u32 {
        self.pages.div_ceil(WORD_PAGES)
    }

    fn word(&self, index: u32) -> u64 {
        self.words.word(usize_of(index) * 8)
    }
}

/// Bytes of the file of the marks of this many pages.
fn bytes_for(pages: u32) -> u64 {
    u64_of((usize_of(pages.div_ceil(WORD_PAGES)) * 8).next_multiple_of(PAGE_BYTES))
}

/// One bit for each page of a word that is in `state`: the low 32 of the answer.
fn gathered(word: u64, state: PageState) -> u64 {
    let differing = word ^ state.word();
    let mut bits = !(differing | differing >> 1) & EACH;
    for (shift, mask) in [
        (1, 0x3333_3333_3333_3333),
        (2, 0x0f0f_0f0f_0f0f_0f0f),
        (4, 0x00ff_00ff_00ff_00ff),
        (8, 0x0000_ffff_0000_ffff),
        (16, 0x0000_0000_ffff_ffff),
    ] {
        bits = (bits | bits >> shift) & mask;
    }
    bits
}

#[cfg(test)]
mod tests {
    use rekindle_testkit::random::Random;

    use super::*;

    const STATES: [PageState; 3] = [PageState::Base, PageState::Written, PageState::Zero];

    #[test]
    fn marks_are_what_an_array_of_states_is() {
        for pages in [1, 31, 32, 33, 64, 65, 200, 4097] {
            let (marks, mut random) = (Marks::create(pages).unwrap(), Random::new(u64::from(pages)));
            let mut model = vec![PageState::Base; usize_of(pages)];
            for _ in 0..50 {
                let start = random.below(pages);
                let run = GuestPages::new(GuestPage::new(start), 1 + random.below(pages - start));
                let state = STATES[random.position(3)];
                marks.set(run, state);
                run.iter().for_each(|page| model[page.index()] = state);
            }
            for page in 0..pages {
                let (state, count) = marks.run_at(GuestPage::new(page), u32::MAX);
                let same = model[usize_of(page)..].iter().take_while(|found| **found == state).count();
                assert_eq!(usize_of(count), same, "page {page} of {pages}");
            }
            for state in STATES {
                let found: Vec<_> = marks.pages_in(state).iter().map(GuestPage::index).collect();
                let wanted: Vec<_> = (0..usize_of(pages)).filter(|page| model[*page] == state).collect();
                assert_eq!(found, wanted, "{state:?} of {pages}");
            }
            let again = Marks::of(marks.memfd(), pages).unwrap();
            assert_eq!(again.pages_in(PageState::Zero), marks.pages_in(PageState::Zero));
        }
    }

    #[test]
    fn what_are_no_marks_is_refused() {
        let marks = Marks::create(100_000).unwrap();
        assert!(Marks::of(marks.memfd(), 16_384).is_err(), "a file of another size");
        marks.memfd().write_at(&[0xc0], 5).unwrap();
        assert!(Marks::of(marks.memfd(), 100_000).is_err(), "a state that is none");
    }
}
