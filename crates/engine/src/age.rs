//! The time since something was done, as long as the machine may have slept.

use std::time::{Duration, Instant, SystemTime};

/// A moment, from which time counts by the clock that says more: one stands still while a machine sleeps, the other may
/// be set back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Age {
    monotonic: Instant,
    wall: SystemTime,
}

impl Age {
    pub(crate) fn now() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }

    /// True if `time` has gone by.
    pub(crate) fn is_over(&self, time: Duration) -> bool {
        let by_wall = self.wall.elapsed().unwrap_or_default();
        self.monotonic.elapsed().max(by_wall) > time
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn time_counts_while_a_machine_sleeps_and_also_if_its_clock_is_set_back() {
        let (day, now) = (Duration::from_secs(86_400), Age::now());
        assert!(!now.is_over(day));
        let slept = Age { wall: now.wall - 2 * day, ..now };
        assert!(slept.is_over(day));
        let set_back = Age { wall: now.wall + 2 * day, ..now };
        assert!(set_back.is_over(Duration::ZERO));
        assert!(!set_back.is_over(day));
    }
}
