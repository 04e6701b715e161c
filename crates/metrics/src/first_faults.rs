//! Time of each pause's answer, until the first fault of its snapshot is served.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rekindle_engine::identity::SnapshotId;

/// Answered snapshots that are remembered: most are never resumed on this node, and the oldest are forgotten first.
const ANSWERED_MAX: usize = 4096;

/// Snapshots whose pauses were answered and of which nothing was served yet, oldest first.
#[derive(Debug, Default)]
pub(super) struct FirstFaults(Mutex<VecDeque<(SnapshotId, Instant)>>);

impl FirstFaults {
    pub(super) fn answered(&self, snapshot: SnapshotId, at: Instant) {
        let mut answered = self.lock();
        if answered.len() == ANSWERED_MAX {
            answered.pop_front();
        }
        answered.push_back((snapshot, at));
    }

    /// Time of the answer to the snapshot's pause, if that was before `at` and was not taken yet.
    pub(super) fn take(&self, snapshot: SnapshotId, at: Instant) -> Option<Instant> {
        let mut answered = self.lock();
        let position = answered.iter().position(|(known, since)| *known == snapshot && *since <= at)?;
        answered.remove(position).map(|(_, since)| since)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(SnapshotId, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten_where_there_are_too_many() {
        let (answers, now) = (FirstFaults::default(), Instant::now());
        let ids: Vec<_> = (0..=ANSWERED_MAX).map(|_| SnapshotId::new()).collect();
        ids.iter().for_each(|id| answers.answered(*id, now));
        assert_eq!(answers.take(ids[0], now), None);
        assert_eq!(answers.take(ids[1], now), Some(now));
        assert_eq!(answers.take(ids[1], now), None);
    }
}
