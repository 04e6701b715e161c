//! A set of pages of one volume, as a bitset over all of them.

use crate::geometry::{GuestPage, GuestPages, usize_of};

/// Pages in a word.
const WORD_PAGES: u32 = u64::BITS;

/// A set of pages of a volume of a fixed number of pages, one bit for each.
#[derive(Clone, PartialEq, Eq)]
pub struct PageSet {
    words: Box<[u64]>,
    pages: u32,
}

impl PageSet {
    /// The empty set of pages of a volume of `pages`.
    #[must_use]
    pub fn new(pages: u32) -> Self {
        Self { words: vec![0; word_count(pages)].into_boxed_slice(), pages }
    }

    /// The set of all pages of a volume of `pages`.
    #[must_use]
    pub fn full(pages: u32) -> Self {
        let mut set = Self::new(pages);
        set.insert_run(GuestPages::new(GuestPage::FIRST, pages));
        set
    }

    /// The set with these [`PageSet::words`]; none if their number does not fit a volume of `pages`, or if they have a
    /// page past its last.
    #[must_use]
    pub fn from_words(pages: u32, words: Vec<u64>) -> Option<Self> {
        let past_last = match (words.last(), pages % WORD_PAGES) {
            (Some(last), used) if used > 0 => last >> used,
            (Some(_) | None, _) => 0,
        };
        let fits = words.len() == word_count(pages) && past_last == 0;
        fits.then(|| Self { words: words.into_boxed_slice(), pages })
    }

    /// Number of pages of the volume, in the set or not.
    #[must_use]
    pub const fn pages(&self) -> u32 {
        self.pages
    }

    /// Number of pages in the set.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// True if no page is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// True if `page` is in the set.
    #[must_use]
    pub fn contains(&self, page: GuestPage) -> bool {
        self.assert_holds(page);
        let (word, bit) = position(page);
        self.words[word] & bit != 0
    }

    /// Adds `page`; true if it was new.
    pub fn insert(&mut self, page: GuestPage) -> bool {
        self.assert_holds(page);
        let (word, bit) = position(page);
        let was = self.words[word];
        self.words[word] = was | bit;
        was & bit == 0
    }

    /// Removes `page`; true if it was in the set.
    pub fn remove(&mut self, page: GuestPage) -> bool {
        self.assert_holds(page);
        let (word, bit) = position(page);
        let was = self.words[word];
        self.words[word] = was & !bit;
        was & bit != 0
    }

    /// Adds every page of `run`.
    pub fn insert_run(&mut self, run: GuestPages) {
        self.for_each_word_of(run, |word, mask| *word |= mask);
    }

    /// Removes every page of `run`.
    pub fn remove_run(&mut self, run: GuestPages) {
        self.for_each_word_of(run, |word, mask| *word &= !mask);
    }

    /// Adds every page of `other`, a set of the same volume.
    pub fn union_with(&mut self, other: &Self) {
        self.combine(other, |word, other| word | other);
    }

    /// Removes every page of `other`, a set of the same volume.
    pub fn subtract(&mut self, other: &Self) {
        self.combine(other, |word, other| word & !other);
    }

    /// Keeps only the pages that are also in `other`, a set of the same volume.
    pub fn intersect_with(&mut self, other: &Self) {
        self.combine(other, |word, other| word & other);
    }

    /// True if no page is in both sets, which must be of the same volume.
    #[must_use]
    pub fn is_disjoint_from(&self, other: &Self) -> bool {
        assert_eq!(self.pages, other.pages, "sets of one volume are compared");
        self.words.iter().zip(&other.words).all(|(word, other)| word & other == 0)
    }

    /// The pages of the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = GuestPage> + '_ {
        self.runs().flat_map(GuestPages::iter)
    }

    /// The set as maximal runs, in order.
    pub fn runs(&self) -> impl Iterator<Item = GuestPages> + '_ {
        self.runs_in(GuestPages::new(GuestPage::FIRST, self.pages))
    }

    /// The part of the set inside `window` as runs, in order, maximal within the window.
    pub fn runs_in(&self, window: GuestPages) -> impl Iterator<Item = GuestPages> + '_ {
        let mut rest = window;
        std::iter::from_fn(move || {
            while !rest.is_empty() {
                let (inside, count) = self.run_at(rest.start(), rest.count());
                let run = rest.first_pages(count);
                rest = rest.after(count);
                if inside {
                    return Some(run);
                }
            }
            None
        })
    }

    /// True if `page` is in the set; with the number of pages from it, at most `limit`, that have the same answer.
    ///
    /// The count ends at the volume's last page, and is 0 only if `limit` is 0.
    #[must_use]
    pub fn run_at(&self, page: GuestPage, limit: u32) -> (bool, u32) {
        self.assert_holds(page);
        let limit = limit.min(self.pages - page.number());
        let (first, bit) = position(page);
        let inside = self.words[first] & bit != 0;
        let flip = if inside { u64::MAX } else { 0 };
        let offset = page.number() % WORD_PAGES;
        let mut count = ((self.words[first] ^ flip) >> offset).trailing_zeros().min(WORD_PAGES - offset);
        if count == WORD_PAGES - offset {
            for word in &self.words[first + 1..] {
                let same = (word ^ flip).trailing_zeros();
                count += same;
                if same < WORD_PAGES || count >= limit {
                    break;
                }
            }
        }
        (inside, count.min(limit))
    }

    /// The set as words of 64 pages, the lowest page in the lowest bit; bits past the last page are 0.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Bytes of heap the set holds.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        size_of_val::<[u64]>(&self.words)
    }

    fn assert_holds(&self, page: GuestPage) {
        assert!(page.number() < self.pages, "page {page} is outside a volume of {} pages", self.pages);
    }

    fn combine(&mut self, other: &Self, join: impl Fn(u64, u64) -> u64) {
        assert_eq!(self.pages, other.pages, "sets of one volume are joined");
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word = join(*word, *other);
        }
    }

    fn for_each_word_of(&mut self, run: GuestPages, change: impl Fn(&mut u64, u64)) {
        assert!(run.end().number() <= self.pages, "run {run} is outside a volume of {} pages", self.pages);
        let mut rest = run;
        while !rest.is_empty() {
            let (word, _) = position(rest.start());
            let offset = rest.start().number() % WORD_PAGES;
            let count = rest.count().min(WORD_PAGES - offset);
            change(&mut self.words[word], (u64::MAX >> (WORD_PAGES - count)) << offset);
            rest = rest.after(count);
        }
    }
}

impl std::fmt::Debug for PageSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.runs().map(|run| run.to_string())).finish()
    }
}

/// The word of a page, and its bit in the word.
fn position(page: GuestPage) -> (usize, u64) {
    (usize_of(page.number() / WORD_PAGES), 1 << (page.number() % WORD_PAGES))
}

fn word_count(pages: u32) -> usize {
    usize_of(pages.div_ceil(WORD_PAGES))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u32),
        Remove(u32),
        InsertRun(u32, u32),
        RemoveRun(u32, u32),
    }

    fn step(pages: u32) -> impl Strategy<Value = Step> {
        let run = (0..pages).prop_flat_map(move |start| (Just(start), 0..=pages - start));
        prop_oneof![
            (0..pages).prop_map(Step::Insert),
            (0..pages).prop_map(Step::Remove),
            run.clone().prop_map(|(start, count)| Step::InsertRun(start, count)),
            run.prop_map(|(start, count)| Step::RemoveRun(start, count)),
        ]
    }

    fn history() -> impl Strategy<Value = (u32, Vec<Step>)> {
        (1_u32..300).prop_flat_map(|pages| (Just(pages), prop::collection::vec(step(pages), 0..12)))
    }

    fn play(pages: u32, steps: &[Step]) -> (PageSet, Vec<bool>) {
        let mut set = PageSet::new(pages);
        let mut model = vec![false; usize_of(pages)];
        for step in steps {
            let (start, count, value) = match *step {
                Step::Insert(page) => (page, 1, true),
                Step::Remove(page) => (page, 1, false),
                Step::InsertRun(start, count) => (start, count, true),
                Step::RemoveRun(start, count) => (start, count, false),
            };
            let run = GuestPages::new(GuestPage::new(start), count);
            match *step {
                Step::Insert(_) => assert_eq!(set.insert(run.start()), !model[usize_of(start)]),
                Step::Remove(_) => assert_eq!(set.remove(run.start()), model[usize_of(start)]),
                Step::InsertRun(..) => set.insert_run(run),
                Step::RemoveRun(..) => set.remove_run(run),
            }
            model[usize_of(start)..usize_of(start + count)].fill(value);
        }
        (set, model)
    }

    proptest! {
        #[test]
        fn a_set_equals_its_model((pages, steps) in history(), limit in 1_u32..400) {
            let (set, model) = play(pages, &steps);
            let members: Vec<u32> = (0..pages).filter(|page| model[usize_of(*page)]).collect();
            prop_assert_eq!(set.iter().map(GuestPage::number).collect::<Vec<_>>(), members.clone());
            prop_assert_eq!(usize_of(set.len()), members.len());
            prop_assert_eq!(set.is_empty(), members.is_empty());
            for page in 0..pages {
                let value = model[usize_of(page)];
                let same = model[usize_of(page)..].iter().take_while(|other| **other == value).count();
                let expected = u32::try_from(same).expect("small").min(limit);
                prop_assert_eq!(set.run_at(GuestPage::new(page), limit), (value, expected));
                prop_assert_eq!(set.contains(GuestPage::new(page)), value);
            }
        }

        #[test]
        fn runs_are_maximal_and_clipped_to_their_window((pages, steps) in history(), cut in 0.0..1.0, length in 0.0..1.0) {
            let (set, model) = play(pages, &steps);
            let share = |of: u32, share: f64| (0..=of).find(|n| f64::from(*n) >= f64::from(of) * share).unwrap_or(of);
            let start = share(pages, cut);
            let window = GuestPages::new(GuestPage::new(start), share(pages - start, length));
            let mut seen = vec![false; usize_of(pages)];
            let mut after = None;
            for run in set.runs_in(window) {
                prop_assert!(!run.is_empty() && run.intersect(window) == run);
                prop_assert!(after.is_none_or(|after| run.start() > after), "runs keep apart");
                after = Some(run.end());
                seen[run.start().index()..run.end().index()].fill(true);
            }
            for page in window.iter() {
                prop_assert_eq!(seen[page.index()], model[page.index()]);
            }
        }

        #[test]
        fn joins_equal_their_models((pages, steps) in history(), others in prop::collection::vec((0.0..1.0, 0.0..1.0), 0..6)) {
            let (set, model) = play(pages, &steps);
            let mut other = PageSet::new(pages);
            for (start, _) in others {
                other.insert(GuestPage::new((0..pages).find(|n| f64::from(*n) >= f64::from(pages - 1) * start).unwrap_or(0)));
            }
            let (mut union, mut less, mut both) = (set.clone(), set.clone(), set.clone());
            union.union_with(&other);
            less.subtract(&other);
            both.intersect_with(&other);
            for page in (0..pages).map(GuestPage::new) {
                let (mine, theirs) = (model[page.index()], other.contains(page));
                prop_assert_eq!(union.contains(page), mine || theirs);
                prop_assert_eq!(less.contains(page), mine && !theirs);
                prop_assert_eq!(both.contains(page), mine && theirs);
            }
            prop_assert_eq!(set.is_disjoint_from(&other), both.is_empty());
        }
    }

    #[test]
    fn words_that_are_no_set_of_the_volume_are_refused() {
        let of = |words: &[u64], pages| PageSet::from_words(pages, words.to_vec());
        for pages in [0, 1, 63, 64, 65, 300] {
            let full = PageSet::full(pages);
            assert_eq!(of(full.words(), pages), Some(full.clone()));
            assert_eq!(of(&[full.words(), &[0]].concat(), pages), None, "{pages} pages, a word too many");
        }
        assert_eq!(of(&[], 1), None);
        assert_eq!(of(&[0, 2], 65), None, "page 65 of 65");
        assert_eq!(of(&[1 << 63], 63), None, "page 63 of 63");
    }

    #[test]
    fn a_set_of_no_pages_has_no_runs() {
        assert_eq!(PageSet::full(0).runs().count(), 0);
        assert!(PageSet::full(0).is_empty());
    }

    #[test]
    fn a_full_set_is_one_run_whatever_its_length() {
        for pages in [1, 63, 64, 65, 511, 512, 513] {
            let all = GuestPages::new(GuestPage::FIRST, pages);
            assert_eq!(PageSet::full(pages).runs().collect::<Vec<_>>(), [all]);
            assert_eq!(PageSet::full(pages).len(), pages);
        }
    }

    #[test]
    #[should_panic(expected = "outside a volume")]
    fn a_page_outside_the_volume_is_a_bug() {
        PageSet::new(65).insert(GuestPage::new(65));
    }

    #[test]
    fn words_are_read_back_unless_they_are_another_volumes() {
        for pages in [0, 1, 63, 64, 65, 130] {
            let set = PageSet::full(pages);
            assert_eq!(PageSet::from_words(pages, set.words().to_vec()), Some(set.clone()));
            let longer = [set.words(), &[0]].concat();
            assert_eq!(PageSet::from_words(pages, longer), None);
        }
        assert_eq!(PageSet::from_words(70, vec![0, 1 << 6]), None, "a page past the last");
    }
}
