//! State of a fault server, for its watchers.

use std::time::Duration;

use crate::deadline::Deadline;
use crate::geometry::GuestPage;
use crate::sync::{Condvar, Mutex, lock};

/// State of serving a guest's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServeStatus {
    /// Every requested page is there, or is being fetched.
    Running,
    /// The guest waits for an unavailable page, which is tried again until it is there.
    Stalled {
        /// The page.
        page: GuestPage,
        /// The reason.
        reason: String,
    },
    /// Serving has ended.
    Ended {
        /// The reason.
        why: EndReason,
    },
}

/// Reason that serving ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The VMM closed its hand-over connection: it is gone.
    HungUp,
    /// The guest's address space does not exist any more.
    MemoryGone,
    /// The epoch was ended by our side.
    EpochEnded,
    /// The serving thread failed: a bug, or descriptors that cannot be waited on or read. The guest is still there.
    Failed {
        /// The error's words.
        reason: String,
    },
}

/// The present status, with a way to wait for another.
#[derive(Debug)]
pub(super) struct StatusBoard {
    status: Mutex<ServeStatus>,
    changed: Condvar,
}

impl StatusBoard {
    pub(super) fn new() -> Self {
        Self { status: Mutex::new(ServeStatus::Running), changed: Condvar::new() }
    }

    pub(super) fn get(&self) -> ServeStatus {
        lock(&self.status).clone()
    }

    /// Sets the status. An ended server stays ended, with the first reason.
    pub(super) fn set(&self, next: ServeStatus) {
        let mut status = lock(&self.status);
        if matches!(*status, ServeStatus::Ended { .. }) || *status == next {
            return;
        }
        *status = next;
        drop(status);
        self.changed.notify_all();
    }

    /// Waits until `wanted` accepts the status, at most `limit`; returns the status then.
    pub(super) fn wait(&self, limit: Duration, wanted: &dyn Fn(&ServeStatus) -> bool) -> ServeStatus {
        let deadline = Deadline::after(limit);
        let mut status = lock(&self.status);
        while !wanted(&status) {
            let left = deadline.left();
            if left.is_zero() {
                break;
            }
            let woken = self.changed.wait_timeout(status, left);
            status = woken.expect("no thread panics while it holds a lock").0;
        }
        status.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_server_stays_ended() {
        let board = StatusBoard::new();
        board.set(ServeStatus::Ended { why: EndReason::HungUp });
        board.set(ServeStatus::Running);
        board.set(ServeStatus::Ended { why: EndReason::EpochEnded });
        assert_eq!(board.get(), ServeStatus::Ended { why: EndReason::HungUp });
    }

    #[test]
    fn a_wait_ends_with_the_status_it_waits_for_or_with_its_limit() {
        let board = StatusBoard::new();
        let stalled = ServeStatus::Stalled { page: GuestPage::new(3), reason: "away".into() };
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                board.wait(Duration::from_secs(60), &|status| matches!(status, ServeStatus::Stalled { .. }))
            });
            board.set(stalled.clone());
            assert_eq!(waiting.join().unwrap(), stalled);
        });
        assert_eq!(board.wait(Duration::ZERO, &|status| *status == ServeStatus::Running), stalled);
    }
}
