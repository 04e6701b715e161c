//! Faults whose install failed or was interrupted, in the order of their next try.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::fault::Fault;
use crate::limits;

/// Reason to try a fault again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RetryCause {
    /// The address space is changing, which is normal and soon over.
    Interrupted,
    /// An install failed, with the error's words.
    Failed(String),
}

/// A fault that waits for another try, with its history.
#[derive(Clone, Debug)]
pub(super) struct RetriedFault {
    pub(super) fault: Fault,
    /// Interruptions so far; beyond the limit each one counts as a failure.
    interruptions: u32,
    /// Failures so far.
    failures: u32,
}

/// Two queues: interrupted faults are tried again at once, a bounded number per turn; failed ones after a growing
/// pause. So a page that keeps failing delays no other, and is never mistaken for load.
#[derive(Debug, Default)]
pub(super) struct Retries {
    soon: VecDeque<RetriedFault>,
    later: Vec<(Instant, RetriedFault)>,
}

/// Consequence for the guest of a fault that was queued again.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RetryEffect {
    /// None: this is normal.
    Ordinary,
    /// The guest is stalled.
    Stalled,
}

impl RetryCause {
    /// The cause in words, as the reason of a stalled guest.
    pub(super) fn words(&self) -> &str {
        match self {
            Self::Interrupted => "the kernel keeps saying that the guest's address space is changing",
            Self::Failed(reason) => reason,
        }
    }
}

impl RetriedFault {
    /// A fault that is tried for the first time.
    pub(super) fn fresh(fault: Fault) -> Self {
        Self { fault, interruptions: 0, failures: 0 }
    }

    /// True if it has not failed yet.
    pub(super) fn is_first_try(&self) -> bool {
        self.interruptions == 0 && self.failures == 0
    }
}

impl Retries {
    /// Keeps `retried` for another try. A fault that has been interrupted very often is paused like a failed one.
    pub(super) fn put(&mut self, mut retried: RetriedFault, cause: &RetryCause, now: Instant) -> RetryEffect {
        match cause {
            RetryCause::Interrupted if retried.interruptions < limits::INTERRUPTIONS_MAX => {
                retried.interruptions += 1;
                self.soon.push_back(retried);
                return RetryEffect::Ordinary;
            }
            RetryCause::Interrupted | RetryCause::Failed(_) => {}
        }
        let pause = pause_after(retried.failures);
        retried.failures = retried.failures.saturating_add(1);
        self.later.push((now + pause, retried));
        RetryEffect::Stalled
    }

    /// The next fault to try at once.
    pub(super) fn next_soon(&mut self) -> Option<RetriedFault> {
        self.soon.pop_front()
    }

    /// Number of faults to be tried at once.
    pub(super) fn soon_count(&self) -> usize {
        self.soon.len()
    }

    /// True if no fault waits for another try.
    pub(super) fn is_empty(&self) -> bool {
        self.soon.is_empty() && self.later.is_empty()
    }

    /// True if any fault waits after a failure.
    pub(super) fn has_failed(&self) -> bool {
        !self.later.is_empty()
    }

    /// A fault whose pause is over by `now`.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<RetriedFault> {
        let due = self.later.iter().position(|(at, _)| *at <= now)?;
        Some(self.later.swap_remove(due).1)
    }

    /// Time from `now` until the next try; `None` if none is due.
    pub(super) fn next_in(&self, now: Instant) -> Option<Duration> {
        if !self.soon.is_empty() {
            return Some(Duration::ZERO);
        }
        self.later.iter().map(|(at, _)| at.saturating_duration_since(now)).min()
    }
}

fn pause_after(failures: u32) -> Duration {
    (limits::INSTALL_RETRY_FIRST * 2_u32.saturating_pow(failures.min(16))).min(limits::INSTALL_RETRY_LAST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::GuestPage;
    use crate::serve::fault::Access;

    fn fresh(page: u32) -> RetriedFault {
        RetriedFault::fresh(Fault { page: GuestPage::new(page), access: Access::Read })
    }

    fn failed() -> RetryCause {
        RetryCause::Failed("bad".into())
    }

    #[test]
    fn interrupted_faults_are_tried_in_turn() {
        let mut retries = Retries::default();
        let now = Instant::now();
        for page in 0..3 {
            assert_eq!(retries.put(fresh(page), &RetryCause::Interrupted, now), RetryEffect::Ordinary);
        }
        assert_eq!(retries.next_in(now), Some(Duration::ZERO));
        let first = retries.next_soon().unwrap();
        assert_eq!(first.fault.page, GuestPage::new(0));
        retries.put(first, &RetryCause::Interrupted, now);
        assert_eq!(retries.next_soon().unwrap().fault.page, GuestPage::new(1));
    }

    #[test]
    fn a_failing_fault_waits_longer_each_time_and_leaves_the_others_alone() {
        let mut retries = Retries::default();
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        let mut retried = fresh(7);
        for _ in 0..20 {
            assert_eq!(retries.put(retried, &failed(), now), RetryEffect::Stalled);
            assert_eq!(retries.soon_count(), 0);
            assert!(retries.next_due(now).is_none());
            let pause = retries.next_in(now).unwrap();
            pauses.push(pause);
            now += pause;
            retried = retries.next_due(now).unwrap();
        }
        assert!(pauses.is_sorted());
        assert_eq!(pauses[0], limits::INSTALL_RETRY_FIRST);
        assert_eq!(pauses[19], limits::INSTALL_RETRY_LAST);
        assert_eq!(retries.next_in(now), None);
    }

    #[test]
    fn a_fault_that_is_interrupted_for_ever_stalls_the_guest_but_is_tried_on() {
        let mut retries = Retries::default();
        let now = Instant::now();
        let mut retried = fresh(7);
        for _ in 0..limits::INTERRUPTIONS_MAX {
            assert_eq!(retries.put(retried, &RetryCause::Interrupted, now), RetryEffect::Ordinary);
            retried = retries.next_soon().unwrap();
        }
        assert_eq!(retries.put(retried, &RetryCause::Interrupted, now), RetryEffect::Stalled);
        assert!(retries.next_due(now + limits::INSTALL_RETRY_FIRST).is_some());
    }
}
