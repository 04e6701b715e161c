//! The steps by which a snapshot is brought back whose deletion can be undone, as values.
//!
//! 1. A sign that each of its deletions is undone.
//! 2. The lists of what collectors are about to delete, until none of them names one of these deletions.
//! 3. **Then** the question whether the snapshot has a tombstone.
//!
//! A collector lists a deletion whose window has passed, looks a second time whether it was undone, puts the tombstone and
//! then takes its list away. So one that did not see the sign has its list there while this reads the lists, or its tombstone
//! after that.

use std::collections::BTreeSet;

use uuid::Uuid;

use crate::collectable::Collectable;
use crate::identity::SnapshotId;
use crate::withdrawal::{Signs, Withdrawal};

/// The next step of a node that brings a snapshot back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UndeleteStep {
    /// Put the sign that this deletion is undone.
    PutUndone(Uuid),
    /// Read all lists of condemned objects; again after a while, if one named a deletion.
    ListCondemned,
    /// Ask whether the snapshot has a tombstone.
    LookForTombstone,
    /// It is back.
    Done,
    /// It is deleted for good.
    Gone,
}

/// The way of a node to bringing one snapshot back.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Undeleting {
    snapshot: SnapshotId,
    withdrawn: BTreeSet<Withdrawal>,
    undone: BTreeSet<Uuid>,
    /// True once no list named a deletion, after all were undone.
    is_uncondemned: bool,
    has_tombstone: Option<bool>,
}

impl Undeleting {
    /// The beginning, with the signs that are there.
    #[must_use]
    pub fn of(snapshot: SnapshotId, signs: Signs) -> Self {
        let Signs { withdrawn, undone } = signs;
        Self { snapshot, withdrawn, undone, is_uncondemned: false, has_tombstone: None }
    }

    /// The next step.
    #[must_use]
    pub fn next(&self) -> UndeleteStep {
        let standing = self.withdrawn.iter().find(|withdrawal| !self.undone.contains(&withdrawal.id));
        match (standing, self.is_uncondemned, self.has_tombstone) {
            (Some(standing), ..) => UndeleteStep::PutUndone(standing.id),
            (None, false, _) => UndeleteStep::ListCondemned,
            (None, true, None) => UndeleteStep::LookForTombstone,
            (None, true, Some(false)) => UndeleteStep::Done,
            (None, true, Some(true)) => UndeleteStep::Gone,
        }
    }

    /// The sign is there.
    pub fn undone(&mut self, id: Uuid) {
        self.undone.insert(id);
    }

    /// These were on lists, all of which were read. False if one of them is a deletion of the snapshot: collectors have still
    /// to decide.
    pub fn listed(&mut self, condemned: &BTreeSet<Collectable>) -> bool {
        let is_listed = |withdrawal: &Withdrawal| {
            condemned.contains(&Collectable::Withdrawal(self.snapshot, *withdrawal))
        };
        self.is_uncondemned = !self.withdrawn.iter().any(is_listed);
        self.is_uncondemned
    }

    /// The snapshot has a tombstone, or not.
    pub const fn looked(&mut self, has_tombstone: bool) {
        self.has_tombstone = Some(has_tombstone);
    }
}
