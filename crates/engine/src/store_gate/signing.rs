//! The signs that a node leaves in its store, one after each manifest.

use std::sync::Arc;

use object_store::{ObjectStore, ObjectStoreExt};

use super::{OpenedStore, StoreGate};
use crate::catalog::Change;
use crate::sign::Sign;
use crate::sync::lock;

/// A sign that is in the store, but not yet in the catalog.
#[derive(Debug)]
pub(crate) struct NewSign {
    gate: Arc<StoreGate>,
    objects: Arc<dyn ObjectStore>,
    pub(super) sign: Sign,
    _turn: tokio::sync::OwnedMutexGuard<()>,
}

impl StoreGate {
    /// Leaves a sign in the store. Any state of the store with this sign has all manifests put before it.
    pub(crate) async fn leave_sign(
        self: &Arc<Self>,
        objects: Arc<dyn ObjectStore>,
    ) -> object_store::Result<NewSign> {
        let turn = Arc::clone(&self.signing).lock_owned().await;
        let sign = self.next_sign();
        sign.put(&objects).await?;
        Ok(NewSign { gate: Arc::clone(self), objects, sign, _turn: turn })
    }

    /// Deletes outdated signs. One that cannot be deleted now is found again after a later one.
    pub(crate) async fn delete_old_signs(&self) {
        let Some(OpenedStore { objects, .. }) = self.open_now() else { return };
        let over = std::mem::take(&mut lock(&self.known).found.left_over);
        for path in over {
            if let Err(error) = objects.delete(&path).await {
                tracing::debug!(%path, %error, "a sign that means nothing any more stays for now");
            }
        }
    }

    pub(super) fn next_sign(&self) -> Sign {
        let known = lock(&self.known);
        Sign::next(known.sign, &known.found)
    }
}

impl NewSign {
    /// The change of the catalog that remembers it.
    pub(crate) fn change(&self) -> Change {
        self.sign.change()
    }

    /// Notes that the catalog remembers it: the previous sign is outdated.
    pub(crate) fn remembered(self) {
        let mut known = lock(&self.gate.known);
        if let Some(before) = known.sign.replace(self.sign) {
            known.found.left_over.push(before.path());
        }
    }

    /// Deletes it again.
    pub(crate) async fn take_back(self) {
        if let Err(error) = self.objects.delete(&self.sign.path()).await {
            tracing::warn!(%error, "a sign stays in a store that does not have the manifest before it");
        }
    }
}
