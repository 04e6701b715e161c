//! The pages that a guest touched first after a resume, in that order: advice for the next resume, never a source of
//! bytes.

mod codec;
mod known;

use crate::geometry::{GuestPage, GuestPages};
use crate::identity::SnapshotId;
use crate::limits;
use crate::page_set::PageSet;

pub use known::WorkingSetObject;
pub(crate) use known::{Known, Use};

/// A recording of the memory of one snapshot: runs of pages, first touched first, each page once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkingSet {
    snapshot: SnapshotId,
    volume_pages: u32,
    faults: u32,
    runs: Vec<GuestPages>,
}

/// A touch of a page by a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// The guest waited for this page.
    Fault(GuestPage),
    /// These were installed as neighbours of a page that it waited for.
    Beside(GuestPages),
}

impl WorkingSet {
    /// The recording of `touches` of a guest that ran from `snapshot`. Pages past the volume's end, repeated pages, and
    /// pages beyond [`limits::WORKING_SET_PAGES_MAX`] are left out.
    #[must_use]
    pub fn new(snapshot: SnapshotId, volume_pages: u32, touches: impl IntoIterator<Item = Touch>) -> Self {
        let volume_pages = volume_pages.min(limits::MANIFEST_PAGES_MAX);
        let mut seen = PageSet::new(volume_pages);
        let mut set = Self { snapshot, volume_pages, faults: 0, runs: Vec::new() };
        let mut left = limits::WORKING_SET_PAGES_MAX;
        for touch in touches {
            let (run, faults) = match touch {
                Touch::Fault(page) => (GuestPages::new(page, 1), 1),
                Touch::Beside(run) => (run, 0),
            };
            let run = run.intersect(GuestPages::new(GuestPage::FIRST, volume_pages));
            if run.is_empty() {
                continue;
            }
            let new = absent(&seen, run);
            if !new.is_empty() {
                set.faults += faults;
            }
            for run in new {
                let run = run.first_pages(left);
                if run.is_empty() {
                    break;
                }
                left -= run.count();
                seen.insert_run(run);
                set.add(run);
            }
            if left == 0 {
                break;
            }
        }
        set
    }

    /// The pages that a guest touched although this recording was installed ahead, followed by this recording: the
    /// former are touched now, the latter were at some time.
    #[must_use]
    pub fn grown_by(&self, touches: impl IntoIterator<Item = Touch>) -> Self {
        let before = self.runs.iter().map(|run| Touch::Beside(*run));
        let grown = Self::new(self.snapshot, self.volume_pages, touches.into_iter().chain(before));
        Self { faults: grown.faults.saturating_add(self.faults), ..grown }
    }

    /// The same pages of a snapshot that a guest of this one was paused into, as far as it has them.
    pub(crate) fn of_child(&self, child: SnapshotId, volume_pages: u32) -> Self {
        let set = Self::new(child, volume_pages, self.runs.iter().map(|run| Touch::Beside(*run)));
        Self { faults: self.faults, ..set }
    }

    /// The snapshot of the recorded memory.
    #[must_use]
    pub fn snapshot(&self) -> SnapshotId {
        self.snapshot
    }

    /// The runs, first touched first.
    #[must_use]
    pub fn runs(&self) -> &[GuestPages] {
        &self.runs
    }

    /// All pages of the runs.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.runs.iter().map(|run| run.count()).sum()
    }

    /// The number of faults it was recorded from: those of a guest that is resumed without it.
    #[must_use]
    pub fn faults(&self) -> u32 {
        self.faults
    }

    /// True if it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The runs, clipped to a volume of `pages`.
    pub(crate) fn runs_within(&self, pages: u32) -> impl Iterator<Item = GuestPages> + '_ {
        let volume = GuestPages::new(GuestPage::FIRST, pages);
        self.runs.iter().map(move |run| run.intersect(volume)).filter(|run| !run.is_empty())
    }

    /// True if a guest with this recording waited for so many other pages that a new recording is worth its cost.
    pub(crate) fn is_poor(&self, touches: &[Touch]) -> bool {
        let mut known = PageSet::new(self.volume_pages);
        self.runs.iter().for_each(|run| known.insert_run(*run));
        let mut missed = 0;
        for touch in touches {
            match touch {
                Touch::Fault(page) if page.number() < self.volume_pages => {
                    missed += u32::from(known.insert(*page));
                }
                Touch::Fault(_) | Touch::Beside(_) => {}
            }
        }
        missed >= limits::WORKING_SET_MISSES_MIN && missed > self.faults / 4
    }

    fn add(&mut self, run: GuestPages) {
        match self.runs.last_mut() {
            Some(last) if last.end() == run.start() => {
                *last = GuestPages::between(last.start(), run.end());
            }
            Some(_) | None => self.runs.push(run),
        }
    }
}

/// The parts of `run` that are not in `seen`.
fn absent(seen: &PageSet, run: GuestPages) -> Vec<GuestPages> {
    let (mut found, mut rest) = (Vec::new(), run);
    while !rest.is_empty() {
        let (inside, count) = seen.run_at(rest.start(), rest.count());
        if !inside {
            found.push(rest.first_pages(count));
        }
        rest = rest.after(count);
    }
    found
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(start: u32, count: u32) -> GuestPages {
        GuestPages::new(GuestPage::new(start), count)
    }

    fn fault(page: u32) -> Touch {
        Touch::Fault(GuestPage::new(page))
    }

    fn set(touches: impl IntoIterator<Item = Touch>) -> WorkingSet {
        WorkingSet::new(SnapshotId::from_bytes([1; 16]), 1000, touches)
    }

    #[test]
    fn pages_stay_in_the_order_of_their_first_touch_and_come_once() {
        let recorded =
            set([fault(7), fault(500), Touch::Beside(run(501, 3)), fault(7), fault(8), fault(502)]);
        assert_eq!(recorded.runs(), [run(7, 1), run(500, 4), run(8, 1)]);
        assert_eq!((recorded.pages(), recorded.faults()), (6, 3));
    }

    #[test]
    fn what_lies_beyond_the_volume_is_left_out() {
        let recorded = set([Touch::Beside(run(990, 50)), fault(1000), fault(u32::MAX - 1)]);
        assert_eq!(recorded.runs(), [run(990, 10)]);
        assert_eq!(recorded.runs_within(995).collect::<Vec<_>>(), [run(990, 5)]);
        assert_eq!(recorded.runs_within(100).count(), 0);
    }

    #[test]
    fn no_more_pages_are_recorded_than_the_limit_says() {
        let pages = limits::WORKING_SET_PAGES_MAX;
        let touches = [Touch::Beside(run(10, pages - 1)), Touch::Beside(run(0, 3)), fault(9)];
        let recorded = WorkingSet::new(SnapshotId::from_bytes([1; 16]), 2 * pages, touches);
        assert_eq!(recorded.pages(), pages);
        assert_eq!(recorded.runs(), [run(10, pages - 1), run(0, 1)]);
    }

    #[test]
    fn a_recording_grows_by_what_was_waited_for_in_spite_of_it_and_that_comes_first() {
        let recorded = set([fault(7), fault(9)]);
        let grown = recorded.grown_by([fault(40), fault(9)]);
        assert_eq!(grown.runs(), [run(40, 1), run(9, 1), run(7, 1)]);
        assert_eq!(grown.faults(), 4);
    }

    #[test]
    fn a_recording_is_poor_when_the_guest_waits_for_much_that_it_does_not_have() {
        let recorded = set((0..200).map(fault));
        let others = |count: u32| (500..500 + count).map(fault).collect::<Vec<_>>();
        assert!(
            !recorded.is_poor(&(0..200).map(fault).collect::<Vec<_>>()),
            "touched before it was installed"
        );
        assert!(!recorded.is_poor(&others(50)));
        assert!(recorded.is_poor(&others(51)));
        let small = set([fault(1)]);
        assert!(!small.is_poor(&others(limits::WORKING_SET_MISSES_MIN - 1)), "too few to care");
        assert!(small.is_poor(&others(limits::WORKING_SET_MISSES_MIN)));
        let repeated = vec![fault(900); 100];
        assert!(!small.is_poor(&repeated), "one page is one miss");
    }

    fn touch() -> impl Strategy<Value = Touch> {
        let run = (0..120_u32, 0..40_u32).prop_map(|(start, count)| Touch::Beside(run(start, count)));
        prop_oneof![(0..120_u32).prop_map(fault), run]
    }

    proptest! {
        #[test]
        fn a_recording_is_the_model_of_first_touches(touches in proptest::collection::vec(touch(), 0..30)) {
            let recorded = WorkingSet::new(SnapshotId::from_bytes([1; 16]), 100, touches.clone());
            let mut model = Vec::new();
            for touch in touches {
                let pages = match touch {
                    Touch::Fault(page) => GuestPages::new(page, 1),
                    Touch::Beside(run) => run,
                };
                for page in pages.iter().map(GuestPage::number) {
                    if page < 100 && !model.contains(&page) {
                        model.push(page);
                    }
                }
            }
            let found: Vec<_> = recorded.runs().iter().flat_map(|run| run.iter().map(GuestPage::number)).collect();
            prop_assert_eq!(found, model);
            let keys = crate::key_ring::KeyRing::of_name("a");
            prop_assert_eq!(WorkingSet::decode(&recorded.encode(keys.own()), &keys), Ok(recorded));
        }
    }
}
