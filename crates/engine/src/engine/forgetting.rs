//! Forgets a snapshot on this node that the store or another node has; it stays there.

use std::sync::Arc;

use super::Engine;
use crate::catalog::CatalogError;
use crate::life::Work;
use crate::limits;
use crate::snapshot::Snapshot;
use crate::sync::lock;

/// Handles of a snapshot that nothing uses: the engine's, and the caller's.
const IDLE_HANDLES: usize = 2;

/// Reason that a snapshot is not forgotten.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// Its manifest is not in the store: this node has the only copy.
    #[error("it is not in the store, and only here")]
    OnlyHere,
    /// Something reads it: a guest, a snapshot that is being saved, or a request.
    #[error("it is in use")]
    InUse,
    /// It was deleted or forgotten meanwhile.
    #[error("it is not known any more")]
    Unknown,
    /// Its records cannot be removed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl Engine {
    /// Forgets a snapshot for which the caller has the last handle but for the engine's own: its records, and the layer
    /// files that no other snapshot names, go. The store keeps it, and [`Engine::open`] finds it there again. One that is
    /// not in the store can be forgotten if another node has it, which keeps it.
    #[expect(clippy::needless_pass_by_value, reason = "the caller has no other handle")]
    pub fn forget(&self, snapshot: Arc<Snapshot>) -> Result<(), ForgetError> {
        let id = snapshot.id();
        // Nobody opens it from the store while its records are removed.
        let _opening = self.openings.begin(id, || {});
        snapshot.let_go();
        self.wait_until_idle(&snapshot);
        let forgotten = self.forget_idle(&snapshot);
        if forgotten.is_err() && snapshot.needs_new_follower() {
            self.begin_life(&snapshot, Work::Follow);
        }
        forgotten
    }

    fn forget_idle(&self, snapshot: &Arc<Snapshot>) -> Result<(), ForgetError> {
        let id = snapshot.id();
        {
            let mut known = lock(&self.there.known);
            if !known.get(&id).is_some_and(|there| Arc::ptr_eq(there, snapshot)) {
                return Err(ForgetError::Unknown);
            }
            if !snapshot.is_published() && snapshot.peer().is_none() && snapshot.refuted().is_none() {
                return Err(ForgetError::OnlyHere);
            }
            // New handles come from the map, which is locked, or from those there are.
            if Arc::strong_count(snapshot) > IDLE_HANDLES {
                return Err(ForgetError::InUse);
            }
            known.remove(&id);
        }
        let removed = self.background.records.as_ref().map_or(Ok(()), |records| records.remove(id));
        if let (Ok(()), Some(records)) = (&removed, &self.background.records) {
            records.forget(id);
        }
        if removed.is_err() {
            lock(&self.there.known).insert(id, Arc::clone(snapshot));
        }
        Ok(removed?)
    }

    /// Waits a little for the end of its background life, which goes on after it is published, and of short reads.
    /// Handles go without telling anybody, so this looks again and again.
    fn wait_until_idle(&self, snapshot: &Arc<Snapshot>) {
        let idle = async {
            while Arc::strong_count(snapshot) > IDLE_HANDLES {
                tokio::time::sleep(limits::FORGET_LOOK_EVERY).await;
            }
        };
        // In use still after that: the caller is told.
        self.runtime.block_on(async { tokio::time::timeout(limits::FORGET_WAIT, idle).await }).ok();
    }
}
