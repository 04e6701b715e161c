//! A large object of a layer on its way into the store: parts that are sent at once, and joined by one last request.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as ObjectPath;
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload};
use tokio::time::timeout;

use crate::geometry::u64_of;
use crate::identity::LayerId;
use crate::limits;
use crate::manifest::ObjectName;
use crate::store::{Store, StoreError, layer_path};
use crate::store_opener::OpenedStore;

/// An upload in parts.
pub(crate) struct PartsUpload {
    store: Store,
    path: ObjectPath,
    parts: Parts,
}

/// The parts of an upload, by what becomes of them when this process ends.
enum Parts {
    /// They stay, and any process goes on with them by this id.
    Stay { uploads: Arc<dyn MultipartStore>, id: String },
    /// They are lost.
    AreLost(Box<dyn MultipartUpload>),
}

/// The name that a store gives to a part: the joining of the parts names each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PartTag(pub(crate) String);

impl Store {
    /// Writes a whole object of a layer in one request.
    pub(crate) async fn put_layer(
        &self,
        layer: LayerId,
        at: &ObjectName,
        payload: PutPayload,
    ) -> Result<(), StoreError> {
        self.put(&layer_path(layer, at), payload).await
    }

    /// Begins to upload an object of a layer in parts.
    pub(crate) async fn begin_parts(
        &self,
        layer: LayerId,
        at: &ObjectName,
    ) -> Result<PartsUpload, StoreError> {
        let path = layer_path(layer, at);
        let OpenedStore { objects, uploads } = self.checked_store().await?;
        let begun = match uploads {
            Some(uploads) => uploads.create_multipart(&path).await.map(|id| Parts::Stay { uploads, id }),
            None => objects.put_multipart(&path).await.map(Parts::AreLost),
        };
        let parts = begun.map_err(|source| StoreError::from_store(&path, source))?;
        Ok(PartsUpload { store: self.clone(), path, parts })
    }

    /// Goes on with an upload that was begun under this id; none if this store does not keep the parts of others.
    pub(crate) async fn go_on_with_parts(
        &self,
        layer: LayerId,
        at: &ObjectName,
        id: &str,
    ) -> Result<Option<PartsUpload>, StoreError> {
        let path = layer_path(layer, at);
        let uploads = self.checked_store().await?.uploads;
        let parts = uploads.map(|uploads| Parts::Stay { uploads, id: id.to_owned() });
        Ok(parts.map(|parts| PartsUpload { store: self.clone(), path, parts }))
    }
}

impl PartsUpload {
    /// The id by which another process goes on with it; none if its parts are lost with this one.
    pub(crate) fn id(&self) -> Option<&str> {
        match &self.parts {
            Parts::Stay { id, .. } => Some(id),
            Parts::AreLost(_) => None,
        }
    }

    /// Sends the part of this number. In a store that loses parts with the process, they are given in
    /// their order.
    pub(crate) fn send(
        &mut self,
        number: usize,
        payload: PutPayload,
    ) -> BoxFuture<'static, Result<PartTag, StoreError>> {
        let (store, path) = (self.store.clone(), self.path.clone());
        let bytes = u64_of(payload.content_length());
        match &mut self.parts {
            Parts::Stay { uploads, id } => {
                let (uploads, id) = (Arc::clone(uploads), id.clone());
                Box::pin(async move {
                    store.turn_to_send(bytes).await;
                    match uploads.put_part(&path, &id, number, payload).await {
                        Ok(part) => Ok(PartTag(part.content_id)),
                        Err(source) => Err(store.failure(&path, source).await),
                    }
                })
            }
            Parts::AreLost(upload) => {
                let sent = upload.put_part(payload);
                Box::pin(async move {
                    store.turn_to_send(bytes).await;
                    let no_tag = |()| PartTag(String::new());
                    sent.await.map(no_tag).map_err(|source| StoreError::from_store(&path, source))
                })
            }
        }
    }

    /// Joins the parts, all of which were sent, into the object, which has `object_bytes`.
    pub(crate) async fn join(&mut self, tags: Vec<PartTag>, object_bytes: u64) -> Result<(), StoreError> {
        let joined = match &mut self.parts {
            Parts::Stay { uploads, id } => {
                let parts = tags.into_iter().map(|PartTag(content_id)| PartId { content_id }).collect();
                uploads.complete_multipart(&self.path, id, parts).await
            }
            Parts::AreLost(upload) => upload.complete().await,
        };
        if let Err(source) = joined {
            // It may have been joined by a request that had no answer: its id is not known any more then.
            let found = self.store.size_of(&self.path).await;
            if !found.is_ok_and(|bytes| bytes == object_bytes) {
                return Err(self.store.failure(&self.path, source).await);
            }
        }
        self.store.count_stored(object_bytes);
        Ok(())
    }

    /// Gives the upload up if its parts would be lost anyway: they are deleted, unless the store does not answer in time.
    pub(crate) async fn give_up_unless_parts_stay(&mut self) {
        let Parts::AreLost(upload) = &mut self.parts else { return };
        let aborted = timeout(limits::UPLOAD_ABORT_WAIT, upload.abort()).await;
        let error = match aborted {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the store does not answer".to_owned(),
        };
        tracing::warn!(path = %self.path, %error, "parts of a layer object that was given up may stay");
    }

    /// Deletes its parts. An upload that the store does not know is a success.
    pub(crate) async fn abort(&mut self) -> Result<(), StoreError> {
        let aborted = match &mut self.parts {
            Parts::Stay { uploads, id } => uploads.abort_multipart(&self.path, id).await,
            Parts::AreLost(upload) => upload.abort().await,
        };
        match aborted {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(StoreError::from_store(&self.path, source)),
        }
    }
}

impl fmt::Debug for PartsUpload {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("PartsUpload")
            .field("path", &self.path)
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}
