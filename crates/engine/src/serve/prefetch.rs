//! The pages to install before the guest asks for them.

use std::collections::{HashMap, VecDeque};

use crate::fetch::FrameKey;
use crate::geometry::{GuestPage, GuestPages};
use crate::limits;
use crate::page_set::PageSet;

/// Pages still to be installed ahead, and those of them that wait for a frame.
#[derive(Debug)]
pub(super) struct Prefetch {
    /// Runs in the order to install them, all before the pages of the set.
    first: VecDeque<GuestPages>,
    wanted: PageSet,
    /// All pages of the set before this one are done.
    cursor: GuestPage,
    waiting: HashMap<FrameKey, Vec<GuestPages>>,
    idle: bool,
}

impl Prefetch {
    pub(super) fn new(pages: u32) -> Self {
        Self {
            first: VecDeque::new(),
            wanted: PageSet::new(pages),
            cursor: GuestPage::FIRST,
            waiting: HashMap::new(),
            idle: true,
        }
    }

    /// Adds pages to install.
    pub(super) fn want(&mut self, pages: &PageSet) {
        self.wanted.union_with(pages);
        self.restart();
    }

    /// Adds runs to install in their order, behind earlier ones.
    pub(super) fn want_in_order(&mut self, runs: impl IntoIterator<Item = GuestPages>) {
        self.first.extend(runs);
        self.restart();
    }

    /// True if nothing can be installed now.
    pub(super) fn is_idle(&self) -> bool {
        self.idle || self.is_full()
    }

    /// True if the limit of awaited frames is reached.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= limits::PREFETCH_FRAMES_MAX
    }

    /// Takes the next run, of at most `limit` pages.
    pub(super) fn next_run(&mut self, limit: u32) -> Option<GuestPages> {
        if self.is_idle() {
            return None;
        }
        if let Some(run) = self.first.pop_front() {
            let rest = run.after(limit);
            if !rest.is_empty() {
                self.first.push_front(rest);
            }
            return Some(run.first_pages(limit));
        }
        let rest = GuestPages::between(self.cursor, GuestPage::new(self.wanted.pages()));
        let Some(run) = self.wanted.runs_in(rest).next() else {
            self.idle = true;
            return None;
        };
        let run = run.first_pages(limit);
        self.wanted.remove_run(run);
        self.cursor = run.end();
        Some(run)
    }

    /// Defers `run` until `frame` is there. True if the frame must be requested.
    pub(super) fn wait(&mut self, run: GuestPages, frame: FrameKey) -> bool {
        let waiting = self.waiting.entry(frame).or_default();
        waiting.push(run);
        waiting.len() == 1
    }

    /// Puts `run` back as the next one, since it could not be installed now.
    pub(super) fn put_back(&mut self, run: GuestPages) {
        self.first.push_front(run);
        self.restart();
    }

    /// Puts the runs that waited for `frame` before all others.
    pub(super) fn frame_ready(&mut self, frame: FrameKey) {
        for run in self.waiting.remove(&frame).unwrap_or_default().into_iter().rev() {
            self.put_back(run);
        }
        // The rest may have waited for room for another frame.
        self.restart();
    }

    fn restart(&mut self) {
        self.cursor = GuestPage::FIRST;
        self.idle = self.first.is_empty() && self.wanted.is_empty();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameNumber;
    use crate::identity::LayerId;

    fn run(start: u32, count: u32) -> GuestPages {
        GuestPages::new(GuestPage::new(start), count)
    }

    fn wanting(runs: &[GuestPages]) -> Prefetch {
        let mut pages = PageSet::new(1000);
        runs.iter().for_each(|&run| pages.insert_run(run));
        let mut prefetch = Prefetch::new(1000);
        prefetch.want(&pages);
        prefetch
    }

    fn frame(number: usize) -> FrameKey {
        (LayerId::from_bytes([1; 32]).into(), FrameNumber::new(number))
    }

    #[test]
    fn every_wanted_page_is_taken_once_in_bounded_runs() {
        let mut prefetch = wanting(&[run(3, 100), run(500, 1)]);
        let mut taken = Vec::new();
        while let Some(run) = prefetch.next_run(64) {
            taken.push(run);
        }
        assert_eq!(taken, [run(3, 64), run(67, 36), run(500, 1)]);
        assert!(prefetch.is_idle());
    }

    #[test]
    fn a_run_waits_for_its_frame_and_comes_back() {
        let mut prefetch = wanting(&[run(0, 10)]);
        let first = prefetch.next_run(10).unwrap();
        assert!(prefetch.wait(first, frame(0)));
        assert!(!prefetch.wait(run(20, 1), frame(0)));
        assert_eq!(prefetch.next_run(10), None);
        prefetch.frame_ready(frame(1));
        assert_eq!(prefetch.next_run(10), None);
        prefetch.frame_ready(frame(0));
        assert_eq!(prefetch.next_run(64), Some(first));
        assert_eq!(prefetch.next_run(64), Some(run(20, 1)));
    }

    #[test]
    fn runs_in_order_come_before_pages_of_a_set_and_the_first_of_them_first() {
        let mut prefetch = wanting(&[run(0, 2)]);
        prefetch.want_in_order([run(500, 10), run(30, 1)]);
        prefetch.want_in_order([run(7, 1)]);
        let taken: Vec<_> = std::iter::from_fn(|| prefetch.next_run(6)).collect();
        assert_eq!(taken, [run(500, 6), run(506, 4), run(30, 1), run(7, 1), run(0, 2)]);
    }

    #[test]
    fn what_waited_for_a_frame_is_next_in_its_order() {
        let mut prefetch = wanting(&[]);
        prefetch.want_in_order([run(1, 1), run(2, 1), run(3, 1), run(4, 1)]);
        for number in [0, 1, 0] {
            let taken = prefetch.next_run(9).unwrap();
            prefetch.wait(taken, frame(number));
        }
        prefetch.frame_ready(frame(0));
        let taken: Vec<_> = std::iter::from_fn(|| prefetch.next_run(9)).collect();
        assert_eq!(taken, [run(1, 1), run(3, 1), run(4, 1)]);
    }

    #[test]
    fn only_so_many_frames_are_asked_for_at_once() {
        let pages = u32::try_from(limits::PREFETCH_FRAMES_MAX).unwrap() + 1;
        let mut prefetch = Prefetch::new(pages);
        prefetch.want(&PageSet::full(pages));
        for number in 0..limits::PREFETCH_FRAMES_MAX {
            let run = prefetch.next_run(1).unwrap();
            prefetch.wait(run, frame(number));
        }
        assert!(prefetch.is_idle());
        prefetch.frame_ready(frame(0));
        assert_eq!(prefetch.next_run(1), Some(run(0, 1)));
    }
}
