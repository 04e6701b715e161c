//! Who runs from which snapshot, and which deletions wait for them: a deleted snapshot stays recoverable until the last
//! guest that is served from it has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

/// The uses of this node's snapshots.
#[derive(Debug, Default)]
pub(super) struct Uses(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    used: BTreeMap<Uuid, u32>,
    deleted: BTreeSet<Uuid>,
}

/// One guest that is served from a snapshot, or is about to be.
#[derive(Debug)]
pub(super) struct Use {
    uses: Arc<Uses>,
    snapshot: Uuid,
}

impl Uses {
    pub(super) fn new(deleted: impl IntoIterator<Item = Uuid>) -> Arc<Self> {
        let counts = Counts { used: BTreeMap::new(), deleted: deleted.into_iter().collect() };
        Arc::new(Self(Mutex::new(counts)))
    }

    /// A new use of `snapshot`; none if it is deleted.
    pub(super) fn begin(self: &Arc<Self>, snapshot: Uuid) -> Option<Use> {
        let mut counts = self.lock();
        if counts.deleted.contains(&snapshot) {
            return None;
        }
        *counts.used.entry(snapshot).or_default() += 1;
        Some(Use { uses: Arc::clone(self), snapshot })
    }

    /// A use that was there before the last daemon ended, whatever was deleted since.
    pub(super) fn go_on(self: &Arc<Self>, snapshot: Uuid) -> Use {
        *self.lock().used.entry(snapshot).or_default() += 1;
        Use { uses: Arc::clone(self), snapshot }
    }

    /// From now on nobody begins to use `snapshot`.
    pub(super) fn delete(&self, snapshot: Uuid) {
        self.lock().deleted.insert(snapshot);
    }

    pub(super) fn is_deleted(&self, snapshot: Uuid) -> bool {
        self.lock().deleted.contains(&snapshot)
    }

    /// The deleted snapshots that nobody uses.
    pub(super) fn unused_deleted(&self) -> Vec<Uuid> {
        let counts = self.lock();
        counts.deleted.iter().filter(|id| !counts.used.contains_key(id)).copied().collect()
    }

    /// The deletion of `snapshot` is over: it is gone.
    pub(super) fn forget(&self, snapshot: Uuid) {
        self.lock().deleted.remove(&snapshot);
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut counts = self.uses.lock();
        if let Some(count) = counts.used.get_mut(&self.snapshot) {
            *count -= 1;
            if *count == 0 {
                counts.used.remove(&self.snapshot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deletion_waits_for_the_last_use_and_lets_no_other_begin() {
        let uses = Uses::new([]);
        let id = Uuid::from_u128(1);
        let first = uses.begin(id).expect("it is not deleted");
        uses.delete(id);
        assert!(uses.begin(id).is_none());
        let recovered = uses.go_on(id);
        assert!(uses.unused_deleted().is_empty());
        drop((first, recovered));
        assert_eq!(uses.unused_deleted(), [id]);
        uses.forget(id);
        assert!(uses.begin(id).is_some());
    }
}
