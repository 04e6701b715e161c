//! Decides how many pages to install beside a faulting one, from the faults so far.

use crate::geometry::{GuestPage, GuestPages};
use crate::limits;

/// Setting for pages that are installed before the guest asks for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbours {
    /// As many as the faults so far suggest: none for random faults, more and more for a guest that walks.
    Adaptive,
    /// None.
    None,
}

/// The walks of a guest through its memory. A fault that fits none begins a new one with a single page, so that a
/// random trace costs the same as single pages.
#[derive(Debug)]
pub(super) struct Walks {
    walks: [Walk; WALKS],
    /// Slot of the next new walk.
    next: usize,
    enabled: bool,
}

/// One walk: the pages that it covered last, and the number to install next.
#[derive(Clone, Copy, Debug)]
struct Walk {
    low: u32,
    high: u32,
    pages: u32,
}

/// Number of walks: several threads may walk at once.
const WALKS: usize = 8;

impl Walks {
    pub(super) fn new(neighbours: Neighbours) -> Self {
        // Beyond every page, so that the first fault fits no walk.
        let nowhere = Walk { low: u32::MAX, high: u32::MAX, pages: 0 };
        Self { walks: [nowhere; WALKS], next: 0, enabled: neighbours == Neighbours::Adaptive }
    }

    /// The pages to install for a fault on `page`, itself included: the first on a walk upwards, the last on a walk
    /// downwards. They may reach beyond the volume; the caller clips them.
    pub(super) fn window(&mut self, page: GuestPage) -> GuestPages {
        if !self.enabled {
            return GuestPages::new(page, 1);
        }
        for walk in &mut self.walks {
            if let Some(window) = walk.step(page.number()) {
                return window;
            }
        }
        self.walks[self.next] = Walk { low: page.number(), high: page.number() + 1, pages: 1 };
        self.next = (self.next + 1) % WALKS;
        GuestPages::new(page, 1)
    }
}

impl Walk {
    /// The next window if a fault on `page` continues this walk: at most one window's length beyond either end.
    fn step(&mut self, page: u32) -> Option<GuestPages> {
        let upwards = self.high <= page && page - self.high <= self.pages;
        let downwards = page < self.low && self.low - page <= self.pages + 1;
        if self.pages == 0 || !(upwards || downwards) {
            return None;
        }
        self.pages = (self.pages * 2).min(limits::NEIGHBOUR_PAGES_MAX);
        (self.low, self.high) = if upwards {
            (page, page.saturating_add(self.pages))
        } else {
            ((page + 1).saturating_sub(self.pages), page + 1)
        };
        Some(GuestPages::between(GuestPage::new(self.low), GuestPage::new(self.high)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page(number: u32) -> GuestPage {
        GuestPage::new(number)
    }

    /// Number of faults until every page of `trace` is there, with the window of each fault installed at once.
    fn faults(walks: &mut Walks, trace: impl Iterator<Item = u32>) -> u32 {
        let mut there = std::collections::HashSet::new();
        let mut faults = 0;
        for number in trace {
            if !there.contains(&number) {
                faults += 1;
                there.extend(walks.window(page(number)).iter().map(GuestPage::number));
            }
        }
        faults
    }

    #[test]
    fn a_walk_upwards_soon_installs_whole_windows() {
        let mut walks = Walks::new(Neighbours::Adaptive);
        let faults = faults(&mut walks, 1000..1000 + 64 * 64);
        assert!(faults <= 6 + 64, "{faults} faults");
    }

    #[test]
    fn no_walk_is_so_long_that_its_window_passes_the_limit() {
        let mut walks = Walks::new(Neighbours::Adaptive);
        let mut next = page(0);
        let windows: Vec<_> = (0..20)
            .map(|_| {
                let window = walks.window(next);
                next = window.end();
                window.count()
            })
            .collect();
        assert_eq!(windows.iter().max(), Some(&limits::NEIGHBOUR_PAGES_MAX), "{windows:?}");
    }

    #[test]
    fn a_walk_downwards_is_a_walk_too() {
        let mut walks = Walks::new(Neighbours::Adaptive);
        let faults = faults(&mut walks, (0..64 * 64).rev());
        assert!(faults <= 6 + 65, "{faults} faults");
        assert_eq!(Walks::new(Neighbours::Adaptive).window(page(0)).start(), page(0));
    }

    #[test]
    fn walks_of_several_threads_do_not_disturb_each_other() {
        let mut walks = Walks::new(Neighbours::Adaptive);
        let trace = (0..4096).flat_map(|step| [step, 1 << 20 | step, 1 << 21 | step, (1 << 22) - step]);
        let faults = faults(&mut walks, trace);
        assert!(faults <= 4 * (6 + 65), "{faults} faults");
    }

    #[test]
    fn a_stride_of_two_is_a_walk() {
        let mut walks = Walks::new(Neighbours::Adaptive);
        let faults = faults(&mut walks, (0..4096).step_by(2));
        assert!(faults <= 6 + 65, "{faults} faults");
    }

    #[test]
    fn random_faults_install_single_pages() {
        let mut walks = Walks::new(Neighbours::Adaptive);
        let mut installed = 0;
        let mut state = 1_u64;
        for _ in 0..1000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let number = u32::try_from(state >> 42).unwrap();
            installed += walks.window(page(number)).count();
        }
        assert!(installed < 1010, "{installed} pages for 1000 faults");
    }

    #[test]
    fn switched_off_it_installs_single_pages() {
        let mut walks = Walks::new(Neighbours::None);
        assert_eq!(faults(&mut walks, 0..100), 100);
    }

    proptest! {
        #[test]
        fn a_window_is_bounded_and_has_its_page(numbers in proptest::collection::vec(0..300_u32, 1..200)) {
            let mut walks = Walks::new(Neighbours::Adaptive);
            for number in numbers {
                let window = walks.window(page(number));
                prop_assert!(window.contains(page(number)));
                prop_assert!(window.count() <= limits::NEIGHBOUR_PAGES_MAX);
                prop_assert!(window.start() == page(number) || window.end() == page(number + 1));
            }
        }
    }
}
