//! Counts guests' waits for pages, in classes of doubling times.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::counter::Counter;
use crate::geometry::GuestPage;

/// Number of classes of latency. The first ends at 1,024 ns, each further one at twice the time, the last has no end.
pub const LATENCY_CLASSES: usize = 25;

/// One in this many faults that are answered at once is timed: reading the clock costs a hundredth of a fault.
const TIMED_EVERY: u32 = 16;

/// Counts of faults by their time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// Faults in each class.
    pub classes: [u64; LATENCY_CLASSES],
    /// Total time of all.
    pub total: Duration,
}

impl Latencies {
    /// End of a class; `None` for the last.
    pub fn class_end(class: usize) -> Option<Duration> {
        let shift = u32::try_from(class).ok().filter(|_| class + 1 < LATENCY_CLASSES)?;
        Some(Duration::from_nanos(1024_u64 << shift))
    }

    /// Adds other counts.
    pub fn add(&mut self, other: &Self) {
        for (class, more) in self.classes.iter_mut().zip(other.classes) {
            *class += more;
        }
        self.total += other.total;
    }
}

/// The cells that the handler thread counts latencies in.
#[derive(Debug, Default)]
pub(super) struct LatencyCounters {
    classes: [Counter; LATENCY_CLASSES],
    nanoseconds: Counter,
}

impl LatencyCounters {
    pub(super) fn note(&self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.classes[class_of(nanoseconds)].add(1);
        self.nanoseconds.add_large(nanoseconds);
    }

    pub(super) fn snapshot(&self) -> Latencies {
        Latencies {
            classes: std::array::from_fn(|class| self.classes[class].get()),
            total: Duration::from_nanos(self.nanoseconds.get()),
        }
    }
}

fn class_of(nanoseconds: u64) -> usize {
    let bits = u64::BITS - (nanoseconds >> 10).leading_zeros();
    usize::try_from(bits).unwrap_or(usize::MAX).min(LATENCY_CLASSES - 1)
}

/// Start times of faults: of one in sixteen of those answered at once, and of all that have to wait.
#[derive(Debug, Default)]
pub(super) struct Stopwatch {
    faults: u32,
    waits: BTreeMap<GuestPage, Instant>,
}

impl Stopwatch {
    /// The present time, if a fault that is tried for the first time is to be timed.
    pub(super) fn take_up(&mut self) -> Option<Instant> {
        self.faults = self.faults.wrapping_add(1);
        self.faults.is_multiple_of(TIMED_EVERY).then(Instant::now)
    }

    /// Notes that a page waits, unless it already does.
    pub(super) fn wait(&mut self, page: GuestPage) {
        self.waits.entry(page).or_insert_with(Instant::now);
    }

    /// Ends the wait for a page that is there now; its time, if there was a wait.
    pub(super) fn end_wait(&mut self, page: GuestPage) -> Option<Duration> {
        if self.waits.is_empty() {
            return None;
        }
        self.waits.remove(&page).map(|since| since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_ends_where_the_next_begins() {
        for class in 0..LATENCY_CLASSES - 1 {
            let end = Latencies::class_end(class).unwrap();
            let end = u64::try_from(end.as_nanos()).unwrap();
            assert_eq!((class_of(end - 1), class_of(end)), (class, class + 1));
        }
        assert_eq!(Latencies::class_end(LATENCY_CLASSES - 1), None);
        assert_eq!((class_of(0), class_of(u64::MAX)), (0, LATENCY_CLASSES - 1));
    }

    #[test]
    fn what_is_noted_is_counted_once_with_its_time() {
        let counters = LatencyCounters::default();
        counters.note(Duration::from_nanos(1500));
        counters.note(Duration::from_secs(100));
        let mut twice = counters.snapshot();
        twice.add(&counters.snapshot());
        assert_eq!((twice.classes[1], twice.classes[LATENCY_CLASSES - 1]), (2, 2));
        assert_eq!(twice.total, Duration::from_nanos(2 * 100_000_001_500));
    }

    #[test]
    fn a_wait_goes_on_until_its_page_is_there() {
        let (mut watch, page) = (Stopwatch::default(), GuestPage::new(3));
        assert_eq!(watch.end_wait(page), None);
        watch.wait(page);
        watch.wait(page);
        assert!(watch.end_wait(page).is_some());
        assert_eq!(watch.end_wait(page), None);
    }

    #[test]
    fn one_fault_in_sixteen_is_timed() {
        let mut watch = Stopwatch::default();
        let timed = (0..TIMED_EVERY * 10).filter(|_| watch.take_up().is_some()).count();
        assert_eq!(timed, 10);
    }
}
