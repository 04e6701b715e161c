//! The history of a guest's pages since its epoch began: removed, written, installed.

use super::journal::Journal;
use crate::geometry::{GuestPage, GuestPages};
use crate::page_set::PageSet;

/// Three facts about each page, kept by the one thread that reads events and installs pages. The journal has the first
/// two as well; the third only saves work, and may be wrong for any page.
#[derive(Debug)]
pub(super) struct EpochPages {
    journal: Journal,
    removed: PageSet,
    written: PageSet,
    installed: PageSet,
}

impl EpochPages {
    /// The history at the start, for an empty journal.
    pub(super) fn new(journal: Journal) -> Self {
        let none = PageSet::new(journal.pages());
        Self::recovered(journal, none.clone(), none)
    }

    /// The history in a journal.
    pub(super) fn recovered(journal: Journal, removed: PageSet, written: PageSet) -> Self {
        let installed = PageSet::new(journal.pages());
        Self { journal, removed, written, installed }
    }

    pub(super) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Notes that the guest gave `run` back: until the epoch ends it reads zeroes there, or what it writes.
    pub(super) fn remove(&mut self, run: GuestPages) {
        self.journal.remove(run);
        self.removed.insert_run(run);
        self.installed.remove_run(run);
    }

    pub(super) fn install(&mut self, run: GuestPages) {
        self.installed.insert_run(run);
    }

    /// Notes that the guest can write `run` untracked from now on.
    pub(super) fn write(&mut self, run: GuestPages) {
        self.journal.write(run);
        self.written.insert_run(run);
    }

    /// Forgets what a snapshot of this moment has: every removed page, and the written ones in `captured`, whose next
    /// write is seen again.
    pub(super) fn forget(&mut self, captured: &PageSet) {
        self.removed = PageSet::new(self.journal.pages());
        self.written.subtract(captured);
        self.journal.shrink(&self.removed, &self.written);
    }

    pub(super) fn is_removed(&self, page: GuestPage) -> bool {
        self.removed.contains(page)
    }

    /// True if every page of `run` was given back.
    pub(super) fn is_all_removed(&self, run: GuestPages) -> bool {
        self.removed.run_at(run.start(), run.count()) == (true, run.count())
    }

    /// The pages given back in this epoch, including those installed again since.
    pub(super) fn removed(&self) -> &PageSet {
        &self.removed
    }

    /// The pages that were open to untracked writes.
    pub(super) fn written(&self) -> &PageSet {
        &self.written
    }

    /// The installed pages, without those given back since.
    pub(super) fn installed(&self) -> &PageSet {
        &self.installed
    }

    /// The part of `window` around `page`, its first or last page, in which no other page was installed or removed.
    pub(super) fn untouched(&self, window: GuestPages, page: GuestPage) -> GuestPages {
        if window.start() == page {
            let free =
                free_prefix(&self.removed, window, free_prefix(&self.installed, window, window.count()));
            return window.first_pages(free);
        }
        let touched = |page: &GuestPage| self.installed.contains(*page) || self.removed.contains(*page);
        let below = GuestPages::between(window.start(), page);
        let start = below.iter().rev().find(touched).map_or(window.start(), |touched| touched.plus(1));
        GuestPages::between(start, window.end())
    }
}

/// Number of the first `limit` pages of `window` before the first member of `set`, not counting the first page as a
/// member.
fn free_prefix(set: &PageSet, window: GuestPages, limit: u32) -> u32 {
    if limit <= 1 {
        return limit;
    }
    match set.run_at(window.start().plus(1), limit - 1) {
        (true, _) => 1,
        (false, free) => 1 + free,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(start: u32, count: u32) -> GuestPages {
        GuestPages::new(GuestPage::new(start), count)
    }

    #[test]
    fn a_removed_page_stays_one_after_it_is_installed_again() {
        let mut pages = EpochPages::new(Journal::of_pages(100));
        pages.install(run(0, 50));
        pages.remove(run(10, 10));
        assert!(!pages.installed().contains(GuestPage::new(10)));
        pages.install(run(10, 1));
        assert!(pages.is_removed(GuestPage::new(10)));
        assert!(pages.installed().contains(GuestPage::new(10)));
    }

    proptest! {
        #[test]
        fn an_untouched_window_is_the_longest_there_is(
            installed in proptest::collection::vec(0..90_u32, 0..10),
            removed in proptest::collection::vec(0..90_u32, 0..10),
            start in 0..60_u32,
            count in 1..30_u32,
            upwards: bool,
        ) {
            let mut pages = EpochPages::new(Journal::of_pages(90));
            removed.iter().for_each(|&page| pages.remove(run(page, 1)));
            installed.iter().for_each(|&page| pages.install(run(page, 1)));
            let window = run(start, count);
            let page = GuestPage::new(if upwards { start } else { start + count - 1 });
            let free = |other: &u32| *other == page.number() || !(installed.contains(other) || removed.contains(other));
            let expected: Vec<u32> = if upwards {
                (start..start + count).take_while(free).collect()
            } else {
                let mut down: Vec<_> = (start..start + count).rev().take_while(free).collect();
                down.reverse();
                down
            };
            let found: Vec<_> = pages.untouched(window, page).iter().map(GuestPage::number).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
