//! Deleted snapshots that are held with everything they have, as long as something that was not found again yet may
//! depend on them.
//!
//! A snapshot that was found holds its own base. A sandbox that is not taken over yet does not, nor does an undecided
//! snapshot, whose parent and layers are only names in its record.

use std::collections::HashSet;
use std::sync::Arc;

use crate::identity::SnapshotId;
use crate::snapshot::Snapshot;
use crate::sync::{Mutex, lock};

/// The deleted snapshots that an engine has to hold.
#[derive(Debug, Default)]
pub(crate) struct Deleted(Mutex<HeldDeleted>);

#[derive(Debug, Default)]
struct HeldDeleted {
    held: Vec<Arc<Snapshot>>,
    /// True while a sandbox of the previous process may still ask for the snapshot it runs from.
    origins_may_be_asked: bool,
}

impl Deleted {
    /// The ones that the start found.
    pub(crate) fn new(held: Vec<Arc<Snapshot>>, origins_may_be_asked: bool) -> Self {
        Self(Mutex::new(HeldDeleted { held, origins_may_be_asked }))
    }

    /// Holds one more until [`Self::let_go`] releases it.
    pub(crate) fn hold(&self, snapshot: Arc<Snapshot>) {
        lock(&self.0).held.push(snapshot);
    }

    /// All that are held.
    pub(crate) fn held(&self) -> Vec<Arc<Snapshot>> {
        lock(&self.0).held.clone()
    }

    /// The one with this id, if it is held.
    pub(crate) fn find(&self, id: SnapshotId) -> Option<Arc<Snapshot>> {
        lock(&self.0).held.iter().find(|snapshot| snapshot.id() == id).cloned()
    }

    /// Releases one.
    pub(crate) fn release(&self, id: SnapshotId) {
        let mut deleted = lock(&self.0);
        let at = deleted.held.iter().position(|held| held.id() == id);
        let released = at.map(|at| deleted.held.swap_remove(at));
        drop(deleted);
        drop(released);
    }

    /// True while a sandbox of the previous process may still ask for its snapshot.
    pub(crate) fn origins_may_be_asked(&self) -> bool {
        lock(&self.0).origins_may_be_asked
    }

    /// Notes that all sandboxes have their origins.
    pub(crate) fn origins_are_had(&self) {
        lock(&self.0).origins_may_be_asked = false;
    }

    /// Releases all, unless something that was not found again may depend on one of them; `listed` are all snapshots
    /// that were not deleted.
    pub(crate) fn let_go(&self, listed: &[Arc<Snapshot>]) {
        let is_undecided = |snapshot: &&Arc<Snapshot>| snapshot.is_undecided();
        if listed.iter().any(|snapshot| is_undecided(&snapshot)) {
            return;
        }
        let held = self.held();
        let undecided: HashSet<_> = held.iter().filter(is_undecided).map(|snapshot| snapshot.id()).collect();
        drop(held);
        let mut deleted = lock(&self.0);
        // A deleted undecided snapshot needs the others as long as it has another holder, which runs from it.
        let is_run_from =
            |held: &Arc<Snapshot>| undecided.contains(&held.id()) && Arc::strong_count(held) > 1;
        if deleted.origins_may_be_asked || deleted.held.iter().any(is_run_from) {
            return;
        }
        let gone = std::mem::take(&mut deleted.held);
        drop(deleted);
        drop(gone);
    }
}
