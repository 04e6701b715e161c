//! Tells other nodes where a snapshot is, as long as it is not in the store.

use super::{Life, Work, longer};
use crate::limits;
use crate::origin::Origin;

impl Life {
    /// Puts the snapshot's origin record beside its saving, and takes it away once nobody needs it. Nothing waits for it.
    pub(super) fn tell_origin(&self, work: &Work) -> impl Future<Output = ()> + Send + use<> {
        let is_unsaved = matches!(work, Work::Seal(_) | Work::Publish(_));
        let (life, origin) = (self.clone(), self.background.origin.clone().filter(|_| is_unsaved));
        async move {
            if let Some(origin) = origin {
                // The record stays if the engine ends: the snapshot stays too.
                life.background.stop().unless_said(life.tell(&origin)).await.ok();
            }
        }
    }

    async fn tell(&self, origin: &Origin) {
        let (store, id) = (self.background.store(), self.snapshot.id());
        tokio::select! {
            () = self.put_origin(origin) => self.snapshot.saved_or_gone().await,
            () = self.snapshot.saved_or_gone() => {}
        }
        if let Err(error) = store.take_origin_away(id).await {
            tracing::warn!(snapshot = %id, %error, "an origin record stays in the store until it is collected");
        }
    }

    /// Tries until it is there.
    async fn put_origin(&self, origin: &Origin) {
        let (store, id, mut pause) = (self.background.store(), self.snapshot.id(), limits::WORK_RETRY_FIRST);
        while let Err(error) = store.put_origin(id, origin).await {
            tracing::debug!(snapshot = %id, %error, "its origin record is put again later");
            tokio::time::sleep(longer(&mut pause)).await;
        }
    }
}
