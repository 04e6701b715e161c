//! The pace of sending: a limit on the bytes in a second that all uploads together send.

use std::num::NonZeroU64;
use std::time::Duration;

use tokio::time::Instant;

use crate::sync::{Mutex, lock};

/// A limit on bytes in a second, over time: a single request is sent as fast as the line allows, and the next ones wait
/// until it would have been sent at this pace.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    bytes_a_second: Option<NonZeroU64>,
    /// The instant at which the next request may begin.
    next: Mutex<Option<Instant>>,
}

impl Pace {
    /// A pace of so many bytes in a second; no limit without.
    pub(crate) fn of(bytes_a_second: Option<NonZeroU64>) -> Self {
        Self { bytes_a_second, next: Mutex::default() }
    }

    /// Waits for the turn of a request that sends `bytes`.
    pub(crate) async fn turn(&self, bytes: u64) {
        if let Some(turn) = self.next_turn(bytes, Instant::now()) {
            tokio::time::sleep_until(turn).await;
        }
    }

    /// The turn of a request that sends `bytes` and is ready now; none if it need not wait.
    fn next_turn(&self, bytes: u64, now: Instant) -> Option<Instant> {
        let bytes_a_second = self.bytes_a_second?.get();
        let whole = Duration::from_secs(bytes / bytes_a_second);
        let rest = u128::from(bytes % bytes_a_second) * 1_000_000_000 / u128::from(bytes_a_second);
        let takes = whole + Duration::from_nanos(u64::try_from(rest).expect("less than a second"));
        let mut next = lock(&self.next);
        let turn = next.map_or(now, |next| next.max(now));
        *next = Some(turn + takes);
        (turn > now).then_some(turn)
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn requests_begin_when_those_before_them_would_be_sent_at_the_pace() {
        let (pace, begun) = (Pace::of(NonZeroU64::new(1000)), Instant::now());
        let after = |ms| Some(begun + Duration::from_millis(ms));
        assert_eq!(pace.next_turn(500, begun), None, "nothing was sent before");
        assert_eq!(pace.next_turn(2000, begun), after(500));
        assert_eq!(pace.next_turn(1, begun + Duration::from_millis(100)), after(2500));
        let idle = begun + Duration::from_secs(60);
        assert_eq!(pace.next_turn(1000, idle), None, "time without requests is not saved up");
        assert_eq!(pace.next_turn(1000, idle), Some(idle + Duration::from_secs(1)));
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let (pace, now) = (Pace::default(), Instant::now());
        assert_eq!([u64::MAX, 1].map(|bytes| pace.next_turn(bytes, now)), [None, None]);
    }
}
