//! Counts the failed requests to a bucket, and lets publishers wait while the service asks for fewer requests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use rekindle_engine::store_opener::{FailedRequests, Failures};
use tokio::time::Instant;

/// Work that a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Reads and lists: guests may wait for them.
    Reading,
    /// Writes and deletions.
    Publishing,
}

/// Reason that a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// The service asked for fewer requests.
    SlowDown,
    /// It did not answer in time.
    Timeout,
    /// The connection broke, or the service had an error of its own.
    Other,
}

/// Watches the requests to one bucket.
#[derive(Debug, Default)]
pub struct RequestWatch {
    reading: Counts,
    publishing: Counts,
    turn: Mutex<Turn>,
}

#[derive(Debug, Default)]
struct Counts {
    slow_downs: AtomicU64,
    timeouts: AtomicU64,
    others: AtomicU64,
}

/// Publishers' turn: they wait until an instant, and the next wait is twice as long.
#[derive(Debug, Default)]
struct Turn {
    from: Option<Instant>,
    pause: Duration,
}

/// First time that publishers wait after the service asked for fewer requests.
const PAUSE_FIRST: Duration = Duration::from_millis(100);

/// The longest such time.
const PAUSE_LAST: Duration = Duration::from_secs(10);

impl RequestWatch {
    /// Counts so far.
    pub fn failed(&self) -> FailedRequests {
        FailedRequests { reading: self.reading.get(), publishing: self.publishing.get() }
    }

    /// Notes a failed request.
    pub(super) fn note(&self, class: Class, failure: Failure) {
        let counts = match class {
            Class::Reading => &self.reading,
            Class::Publishing => &self.publishing,
        };
        let count = match failure {
            Failure::SlowDown => &counts.slow_downs,
            Failure::Timeout => &counts.timeouts,
            Failure::Other => &counts.others,
        };
        count.fetch_add(1, Ordering::Relaxed);
        if failure == Failure::SlowDown {
            self.turn().slow_down(Instant::now());
        }
    }

    /// Waits while publishers have to.
    pub(super) async fn publishers_turn(&self) {
        loop {
            let from = self.turn().from;
            match from {
                Some(from) if Instant::now() < from => tokio::time::sleep_until(from).await,
                Some(_) | None => return,
            }
        }
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().expect("no thread panics while it holds this lock")
    }
}

impl Counts {
    fn get(&self) -> Failures {
        Failures {
            slow_downs: self.slow_downs.load(Ordering::Relaxed),
            timeouts: self.timeouts.load(Ordering::Relaxed),
            others: self.others.load(Ordering::Relaxed),
        }
    }
}

impl Turn {
    /// The service asks for fewer requests. Answers to requests that were under way together count once.
    fn slow_down(&mut self, now: Instant) {
        match self.from {
            Some(from) if now < from => return,
            Some(from) if now < from + self.pause => self.pause = (self.pause * 2).min(PAUSE_LAST),
            Some(_) | None => self.pause = PAUSE_FIRST,
        }
        self.from = Some(now + self.pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishers_wait_longer_each_time_the_service_asks_again_and_anew_after_a_quiet_time() {
        let (mut turn, begun) = (Turn::default(), Instant::now());
        turn.slow_down(begun);
        assert_eq!(turn.from, Some(begun + PAUSE_FIRST));
        turn.slow_down(begun);
        assert_eq!(turn.pause, PAUSE_FIRST, "one that was under way already");
        let mut now = begun;
        for _ in 0..20 {
            now = turn.from.expect("it waits");
            turn.slow_down(now);
        }
        assert_eq!((turn.pause, turn.from), (PAUSE_LAST, Some(now + PAUSE_LAST)));
        turn.slow_down(now + PAUSE_LAST * 3);
        assert_eq!(turn.pause, PAUSE_FIRST);
    }

    #[test]
    fn failed_requests_are_counted_by_their_work_and_reason() {
        let watch = RequestWatch::default();
        watch.note(Class::Reading, Failure::Timeout);
        watch.note(Class::Publishing, Failure::SlowDown);
        watch.note(Class::Publishing, Failure::Other);
        let FailedRequests { reading, publishing } = watch.failed();
        assert_eq!(reading, Failures { timeouts: 1, ..Failures::default() });
        assert_eq!(publishing, Failures { slow_downs: 1, others: 1, ..Failures::default() });
    }
}
