//! The end of a snapshot's life, when it is removed from the store, and the roots for what goes on without it.

use super::Life;
use crate::publish::PublishError;
use crate::publish_steps::DeleteStep;

impl Life {
    /// Deletes the snapshot, or puts the sign that it is deleted if that can be undone.
    pub(super) async fn delete(&self) -> Result<(), PublishError> {
        let (store, id) = (self.background.store(), self.snapshot.id());
        // From here on a collector may take what only this node's sandboxes and unpublished snapshots need.
        self.background.run_roots.look(store).await?;
        if let Some(withdrawal) = self.snapshot.withdrawal.get()
            && store.withdraw(id, *withdrawal).await?
        {
            return Ok(());
        }
        let last = self.snapshot.editions().last();
        for step in DeleteStep::ALL {
            match step {
                DeleteStep::PutTombstone => store.put_tombstone(id).await?,
                DeleteStep::DeleteManifests => store.delete_manifest(id, last).await?,
                DeleteStep::TakeRootsAway => self.background.publisher.roots.take_away(store, id).await?,
            }
        }
        store.delete_working_sets(id).await?;
        match self.snapshot.named_now() {
            Some(named) => self.background.publisher.give_up_uploads(&named).await,
            None => Ok(()),
        }
    }

    /// Takes the roots of a deleted snapshot away, once others are there for what is needed of its uploads.
    pub(super) async fn let_roots_go(&self) {
        let (store, id) = (self.background.store(), self.snapshot.id());
        match self.background.run_roots.look(store).await {
            Ok(()) => self.background.publisher.roots.let_go(store, id).await,
            Err(error) => tracing::warn!(snapshot = %id, %error, "a root stays in the store for now"),
        }
    }

    /// Puts a root for the sandboxes that may run from the snapshot already: this node's own copies may go from now on.
    pub(super) async fn take_root_over(&self) {
        if let Err(error) = self.background.run_roots.take_over(self.background.store(), &self.snapshot).await
        {
            tracing::warn!(snapshot = %self.snapshot.id(), %error, "a sandbox that runs has no root in the store for now");
        }
    }
}
