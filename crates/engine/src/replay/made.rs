//! The snapshots that were restored so far, and the counts of them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::obstacle::Obstacle;
use super::{LostSnapshot, Replay, Replayed};
use crate::capture::Capture;
use crate::identity::SnapshotId;
use crate::life::Work;
use crate::lifecycle::SnapshotEvent;
use crate::snapshot::Snapshot;
use crate::withdrawal::Withdrawal;

/// Snapshots restored so far.
pub(super) struct Made {
    pub(super) all: HashMap<SnapshotId, Arc<Snapshot>>,
    pub(super) lost: HashSet<SnapshotId>,
    pub(super) undecided: HashSet<SnapshotId>,
    pub(super) deletions: HashMap<SnapshotId, Option<Withdrawal>>,
    /// The snapshots that were undecided until now.
    pub(super) before: HashMap<SnapshotId, Arc<Snapshot>>,
    pub(super) replayed: Replayed,
}

impl Made {
    pub(super) fn new(deletions: HashMap<SnapshotId, Option<Withdrawal>>) -> Self {
        Self {
            all: HashMap::new(),
            lost: HashSet::new(),
            undecided: HashSet::new(),
            deletions,
            before: HashMap::new(),
            replayed: Replayed::default(),
        }
    }

    pub(super) fn parent(&self, parent: SnapshotId) -> Result<&Arc<Snapshot>, Obstacle> {
        if self.undecided.contains(&parent) {
            return Err(Obstacle::Unknown(format!("its parent {parent} cannot be read now")));
        }
        if self.lost.contains(&parent) {
            return Err(Obstacle::Lost(format!("its parent {parent} is lost")));
        }
        let made = self.all.get(&parent);
        made.ok_or_else(|| Obstacle::Lost(format!("its parent {parent} is not in the catalog")))
    }

    pub(super) fn add_named(&mut self, snapshot: Snapshot) {
        if !self.delete_again(&snapshot) {
            let Replay { sealed, published, .. } = &mut self.replayed.replay;
            *if snapshot.is_published() { published } else { sealed } += 1;
        }
        self.add(snapshot, Vec::new());
    }

    pub(super) fn add_captured(&mut self, snapshot: Snapshot, captures: Vec<Arc<Capture>>) {
        if !self.delete_again(&snapshot) {
            self.replayed.replay.captured += 1;
        }
        self.add(snapshot, captures);
    }

    pub(super) fn add_remote(&mut self, snapshot: Snapshot) {
        if !self.delete_again(&snapshot) {
            self.replayed.replay.remote += 1;
        }
        self.add(snapshot, Vec::new());
    }

    /// Adds a snapshot without its bytes.
    pub(super) fn add_unread(&mut self, snapshot: Snapshot) {
        let (id, status) = (snapshot.id(), snapshot.status());
        let (is_deleted, replay) = (self.delete_again(&snapshot), &mut self.replayed.replay);
        match status.failure.filter(|_| !is_deleted) {
            Some(_) if status.is_undecided => replay.undecided += 1,
            Some(reason) => replay.lost.push(LostSnapshot { id, reason }),
            None => {}
        }
        self.add(snapshot, Vec::new());
        let unread = if status.is_undecided { &mut self.undecided } else { &mut self.lost };
        unread.insert(id);
    }

    /// Marks a snapshot as deleted if it is recorded so; true if it is.
    fn delete_again(&self, snapshot: &Snapshot) -> bool {
        let Some(withdrawal) = self.deletions.get(&snapshot.id()) else { return false };
        if let Some(withdrawal) = withdrawal {
            snapshot.withdrawal.set(*withdrawal).ok();
        }
        snapshot.record(SnapshotEvent::Deleted);
        true
    }

    /// Adds a snapshot, with the captures of its seal. If it was undecided before, the existing handle takes over the
    /// new state.
    fn add(&mut self, snapshot: Snapshot, captures: Vec<Arc<Capture>>) {
        let id = snapshot.id();
        let (snapshot, is_new) = match self.before.get(&id) {
            Some(before) => (Arc::clone(before), before.decide(&snapshot)),
            None => (Arc::new(snapshot), true),
        };
        self.undecided.remove(&id);
        self.all.insert(id, Arc::clone(&snapshot));
        let Replayed { known, deleted, work, replay, .. } = &mut self.replayed;
        let left = Work::left(&snapshot, captures);
        if is_new && !matches!(left, Work::Nothing) {
            work.push((Arc::clone(&snapshot), left));
        }
        if snapshot.is_deleted() {
            replay.deleted += 1;
            deleted.push(snapshot);
        } else {
            known.push(snapshot);
        }
    }
}
