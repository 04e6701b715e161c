//! Faults that wait for a frame to be fetched.

use std::collections::{BTreeMap, HashMap};

use super::fault::{Access, Fault};
use crate::fetch::FrameKey;
use crate::geometry::{GuestPage, GuestPages};

/// The waiting faults. Each page waits for one frame at a time, however many threads fault on it.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pages: BTreeMap<GuestPage, Waiting>,
    frames: HashMap<FrameKey, Awaited>,
}

#[derive(Debug)]
struct Waiting {
    access: Access,
    frame: FrameKey,
}

/// A frame that at least one page waits for.
#[derive(Debug, Default)]
struct Awaited {
    pages: Vec<GuestPage>,
    /// Error of the last failed try.
    failure: Option<String>,
}

/// A page whose fetches have failed so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failing {
    pub(super) page: GuestPage,
    pub(super) reason: String,
}

impl Pending {
    /// Makes `fault` wait for `frame`. True if it is the first to wait for that frame, so that it must be requested.
    pub(super) fn wait(&mut self, fault: Fault, frame: FrameKey) -> bool {
        if let Some(waiting) = self.pages.get_mut(&fault.page) {
            waiting.access = waiting.access.join(fault.access);
            if waiting.frame == frame {
                return false;
            }
            let before = std::mem::replace(&mut waiting.frame, frame);
            self.leave(before, fault.page);
        } else {
            self.pages.insert(fault.page, Waiting { access: fault.access, frame });
        }
        let awaited = self.frames.entry(frame).or_default();
        awaited.pages.push(fault.page);
        awaited.pages.len() == 1
    }

    /// Takes the faults that waited for `frame`, in page order.
    pub(super) fn take_frame(&mut self, frame: FrameKey) -> Vec<Fault> {
        let mut pages = self.frames.remove(&frame).map(|awaited| awaited.pages).unwrap_or_default();
        pages.sort_unstable();
        let mut taken = Vec::with_capacity(pages.len());
        for page in pages {
            let waiting = self.pages.remove(&page).expect("a frame knows only waiting pages");
            taken.push(Fault { page, access: waiting.access });
        }
        taken
    }

    /// Takes the faults on `pages`, which no longer need a frame.
    pub(super) fn take_pages(&mut self, pages: GuestPages) -> Vec<Fault> {
        let found: Vec<_> = self.pages.range(pages.start()..pages.end()).map(|(&page, _)| page).collect();
        let mut taken = Vec::with_capacity(found.len());
        for page in found {
            let waiting = self.pages.remove(&page).expect("found just now");
            self.leave(waiting.frame, page);
            taken.push(Fault { page, access: waiting.access });
        }
        taken
    }

    /// Notes that a try to fetch `frame` failed. False if no page waits for it.
    pub(super) fn fail(&mut self, frame: FrameKey, reason: &str) -> bool {
        let Some(awaited) = self.frames.get_mut(&frame) else { return false };
        awaited.failure = Some(reason.to_owned());
        true
    }

    /// The first page whose fetches have failed so far.
    pub(super) fn failing(&self) -> Option<Failing> {
        let failing = |awaited: &Awaited| {
            let page = awaited.pages.iter().min().copied()?;
            Some(Failing { page, reason: awaited.failure.clone()? })
        };
        self.frames.values().filter_map(failing).min_by_key(|failing| failing.page)
    }

    fn leave(&mut self, frame: FrameKey, page: GuestPage) {
        let awaited = self.frames.get_mut(&frame).expect("a waiting page's frame is awaited");
        awaited.pages.retain(|&waiting| waiting != page);
        if awaited.pages.is_empty() {
            self.frames.remove(&frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameNumber;
    use crate::identity::LayerId;

    fn fault(page: u32, access: Access) -> Fault {
        Fault { page: GuestPage::new(page), access }
    }

    fn frame(number: usize) -> FrameKey {
        (LayerId::from_bytes([1; 32]).into(), FrameNumber::new(number))
    }

    #[test]
    fn a_frame_is_requested_once_however_many_pages_wait() {
        let mut pending = Pending::default();
        assert!(pending.wait(fault(9, Access::Read), frame(0)));
        assert!(!pending.wait(fault(5, Access::Read), frame(0)));
        assert!(!pending.wait(fault(5, Access::Write), frame(0)));
        assert!(pending.wait(fault(6, Access::Read), frame(1)));
        assert_eq!(pending.pages.len(), 3);
        assert_eq!(pending.take_frame(frame(0)), [fault(5, Access::Write), fault(9, Access::Read)]);
        assert_eq!(pending.take_frame(frame(0)), []);
        assert_eq!(pending.pages.len(), 1);
    }

    #[test]
    fn every_page_that_waits_for_a_frame_is_taken_with_it_however_many_there_are() {
        let mut pending = Pending::default();
        (0..9).for_each(|page| assert_eq!(pending.wait(fault(page, Access::Read), frame(0)), page == 0));
        let taken: Vec<_> = (0..9).map(|page| fault(page, Access::Read)).collect();
        assert_eq!(pending.take_frame(frame(0)), taken);
        assert!(pending.pages.is_empty());
    }

    #[test]
    fn a_page_that_moves_to_another_frame_leaves_the_first() {
        let mut pending = Pending::default();
        pending.wait(fault(5, Access::Read), frame(0));
        assert!(pending.wait(fault(5, Access::Read), frame(1)));
        assert_eq!(pending.take_frame(frame(0)), []);
        assert_eq!(pending.take_frame(frame(1)), [fault(5, Access::Read)]);
    }

    #[test]
    fn a_removed_page_waits_no_more() {
        let mut pending = Pending::default();
        pending.wait(fault(5, Access::Read), frame(0));
        pending.wait(fault(6, Access::Write), frame(0));
        let removed = GuestPages::new(GuestPage::new(6), 10);
        assert_eq!(pending.take_pages(removed), [fault(6, Access::Write)]);
        assert_eq!(pending.take_frame(frame(0)), [fault(5, Access::Read)]);
    }

    #[test]
    fn the_first_failing_page_is_named_until_its_frame_comes() {
        let mut pending = Pending::default();
        assert!(!pending.fail(frame(0), "nobody waits"));
        pending.wait(fault(9, Access::Read), frame(0));
        pending.wait(fault(5, Access::Read), frame(1));
        assert_eq!(pending.failing(), None);
        assert!(pending.fail(frame(0), "the store is away"));
        assert!(pending.fail(frame(1), "so is the peer"));
        let failing = pending.failing().unwrap();
        assert_eq!((failing.page, failing.reason.as_str()), (GuestPage::new(5), "so is the peer"));
        pending.take_frame(frame(1));
        assert_eq!(pending.failing().unwrap().page, GuestPage::new(9));
        pending.take_frame(frame(0));
        assert_eq!(pending.failing(), None);
    }
}
