//! Uploads a sealed snapshot: every layer not known to be stored, on whichever node it was made, then the manifest.

use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path as ObjectPath;

use crate::byte_budget::{ByteBudget, ByteLease};
use crate::catalog::CatalogError;
use crate::editions::Editions;
use crate::geometry::u64_of;
use crate::identity::{LayerId, SnapshotId};
use crate::key_ring::DomainKey;
use crate::layer::Layer;
use crate::limits;
use crate::local_file::LayerError;
use crate::manifest::{ObjectName, Publication, StoredLayer};
use crate::named::Named;
use crate::object::FramePlaces;
use crate::object_tables;
use crate::pool::PoolHandle;
use crate::stop::{Stop, Stopped};
use crate::store::{Store, StoreError};
use crate::upload::{Unfinished, Uploader, bytes_held_by_upload};
use crate::upload_record::UploadRecords;

pub use crate::publish_error::PublishError;

/// Publishes snapshots, as tasks that share a budget.
#[derive(Debug)]
pub struct Publisher {
    /// The store.
    pub store: Store,
    /// Encodes manifests and writes records.
    pub pool: PoolHandle,
    /// Compresses frames.
    pub encoding: PoolHandle,
    /// Bytes that all uploads together may hold.
    pub budget: ByteBudget<SnapshotId>,
    /// Tags manifests.
    pub key: DomainKey,
    /// Cuts uploads short.
    pub stop: Stop,
    /// Unfinished uploads, if this node has a catalog.
    pub uploads: Option<UploadRecords>,
    /// Bytes of a part of an upload.
    pub part_bytes: usize,
}

impl Publisher {
    /// Waits for as many bytes as publishing `named` holds at one moment. Older snapshots go first.
    pub async fn room(&self, named: &Named) -> Result<ByteLease<SnapshotId>, Stopped> {
        let lease = self.budget.lease(named.manifest().snapshot(), bytes_held_by(named));
        self.stop.unless_said(lease).await
    }

    /// Publishes `named` within `room`, in the edition that `editions` says. `uploaded` is told where its layers are, on
    /// the pool, before the manifest is put; its answer is returned, with the manifest's name in the store.
    pub(crate) async fn publish<T: Send + 'static>(
        &self,
        named: &Named,
        editions: &Editions,
        room: ByteLease<SnapshotId>,
        uploaded: impl FnOnce(&Publication) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<(T, ObjectPath), PublishError> {
        let (id, layers) = (named.manifest().snapshot(), named.layers());
        let mut room = Some(room);
        for layer in layers {
            self.upload_unless_stored(layer, None, id).await?;
        }
        // After the last upload: the store may have been another one meanwhile.
        if self.upload_missing(layers, id, &mut room).await? {
            for layer in layers {
                if let Some(missing) = self.missing(layer).await? {
                    return Err(missing.error.into());
                }
            }
        }
        let stored = layers.iter().map(|layer| layer.stored_at().expect("it is stored by now"));
        let stored: Vec<_> = stored.collect();
        let tables = self.tables(id, layers, &stored).await?;
        let edition = editions.for_places(&stored);
        let publication = Publication::new(edition, (**named.manifest()).clone(), stored).with_tables(tables);
        let put = self.stop.unless_said(self.commit(publication, uploaded)).await??;
        self.settle_uploads(id, layers).await?;
        drop(room);
        Ok(put)
    }

    /// Tables for the manifest of layers that are stored there.
    async fn tables(
        &self,
        id: SnapshotId,
        layers: &[Arc<Layer>],
        stored: &[StoredLayer],
    ) -> Result<Vec<Option<Bytes>>, PublishError> {
        let (of, places) = (layers.to_vec(), stored.to_vec());
        let mut tables = self.pool.run(id, move || object_tables::known(&of, &places)).await;
        let complete = object_tables::complete(&mut tables, layers, stored, &self.store);
        self.stop.unless_said(complete).await??;
        Ok(tables)
    }

    /// Puts the manifest.
    async fn commit<T: Send + 'static>(
        &self,
        publication: Publication,
        uploaded: impl FnOnce(&Publication) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<(T, ObjectPath), PublishError> {
        let (id, edition) = (publication.manifest().snapshot(), publication.edition());
        let key = self.key.clone();
        let encode = move || {
            let told = uploaded(&publication)?;
            Ok::<_, CatalogError>((told, Bytes::from(publication.encode(&key))))
        };
        let (told, bytes) = self.pool.run(id, encode).await?;
        let manifest = self.store.put_manifest(id, edition, bytes).await?;
        Ok((told, manifest))
    }

    /// Uploads a layer of which no object is known but the one that is `gone`.
    async fn upload_unless_stored(
        &self,
        layer: &Arc<Layer>,
        gone: Option<ObjectName>,
        publisher: SnapshotId,
    ) -> Result<(), PublishError> {
        let turn = self.stop.unless_said(layer.upload_turn()).await?;
        // Others may have uploaded it while this waited for its turn.
        if layer.stored_at().map(|stored| stored.object) == gone {
            let (place, frames) = self.upload(layer, publisher).await?;
            layer.facts().add_stored(&place);
            if let Some(gone) = gone {
                layer.facts().note_gone(gone);
            }
            if let Some(object) = layer.facts().stored().filter(|object| *object.place() == place) {
                object.set_frames(frames);
            }
        }
        drop(turn);
        Ok(())
    }

    /// The last known object of a layer, if not even that is in the store.
    async fn missing(&self, layer: &Layer) -> Result<Option<Missing>, PublishError> {
        loop {
            let object = layer.stored_at().expect("it was uploaded").object;
            match self.stop.unless_said(self.store.see_layer(layer.id(), &object)).await? {
                Ok(()) => return Ok(None),
                Err(error @ StoreError::NotFound(_)) => {
                    layer.facts().note_gone(object);
                    if layer.stored_at().is_some_and(|stored| stored.object == object) {
                        return Ok(Some(Missing { object, error }));
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Uploads every layer again whose objects are gone from the store; whether there was one. The bytes for that are
    /// lent anew: `room` is for the uploads that were known of.
    async fn upload_missing(
        &self,
        layers: &[Arc<Layer>],
        publisher: SnapshotId,
        room: &mut Option<ByteLease<SnapshotId>>,
    ) -> Result<bool, PublishError> {
        let mut was_missing = false;
        for layer in layers {
            let Some(Missing { object, error }) = self.missing(layer).await? else { continue };
            let local = Arc::clone(layer);
            if !self.pool.run(publisher, move || local.local().may_be_whole()).await {
                return Err(PublishError::Gone(error));
            }
            tracing::warn!(%error, "a layer's object is gone; the layer is uploaded again");
            // Given back before more is asked for: nobody waits for bytes while holding some.
            drop(room.take());
            *room =
                Some(self.stop.unless_said(self.budget.lease(publisher, bytes_held_by_upload(layer))).await?);
            match self.upload_unless_stored(layer, Some(object), publisher).await {
                Err(PublishError::Layer(LayerError::Digest { .. })) => return Err(PublishError::Gone(error)),
                uploaded => uploaded?,
            }
            was_missing = true;
        }
        Ok(was_missing)
    }

    async fn upload(
        &self,
        layer: &Arc<Layer>,
        publisher: SnapshotId,
    ) -> Result<(StoredLayer, FramePlaces), PublishError> {
        self.stop.unless_said(self.uploader().upload(layer, publisher)).await?
    }

    fn uploader(&self) -> Uploader<'_> {
        let Self { store, pool, encoding, uploads, part_bytes, .. } = self;
        Uploader { store, pool, encoding, records: uploads.as_ref(), part_bytes: *part_bytes }
    }

    /// Forgets the unfinished uploads of layers that are stored by now.
    async fn settle_uploads(&self, id: SnapshotId, layers: &[Arc<Layer>]) -> Result<(), PublishError> {
        let stored = |layer: LayerId| layers.iter().find(|named| named.id() == layer)?.stored_at();
        let settle = self.uploader().settle(id, |layer, object| match stored(layer) {
            Some(stored) if stored.object == *object => Unfinished::Done,
            Some(_) => Unfinished::GivenUp,
            None => Unfinished::Wanted,
        });
        self.stop.unless_said(settle).await?
    }

    /// Deletes the parts of the unfinished uploads that a deleted snapshot had begun.
    pub(crate) async fn give_up_uploads(&self, named: &Named) -> Result<(), PublishError> {
        let publisher = named.manifest().snapshot();
        for layer in named.layers() {
            let turn = layer.upload_turn().await;
            // Another snapshot may have gone on with it.
            if layer.stored_at().is_none() {
                let is_its = |of, object: &ObjectName| of == layer.id() && object.publisher == publisher;
                let settle = self.uploader().settle(publisher, |of, object| {
                    if is_its(of, object) { Unfinished::GivenUp } else { Unfinished::Wanted }
                });
                settle.await?;
            }
            drop(turn);
        }
        Ok(())
    }

    /// Gives up the unfinished uploads of layers that this node does not have any more; `find` finds those it has. Tries
    /// again until that is done, or the engine ends.
    pub(crate) async fn give_up_lost_uploads(&self, find: impl Fn(LayerId) -> Option<Arc<Layer>>) {
        let settle = || {
            self.uploader().settle(SnapshotId::new(), |layer, object| match find(layer) {
                None => Unfinished::GivenUp,
                Some(layer) => match layer.stored_at() {
                    None => Unfinished::Wanted,
                    Some(stored) if stored.object == *object => Unfinished::Done,
                    Some(_) => Unfinished::GivenUp,
                },
            })
        };
        let until_settled = async {
            while let Err(error) = settle().await {
                tracing::warn!(%error, "unfinished uploads of layers that are gone stay for now");
                tokio::time::sleep(limits::WORK_RETRY_LAST).await;
            }
        };
        self.stop.unless_said(until_settled).await.ok();
    }
}

/// An object of a layer that is not in the store.
struct Missing {
    object: ObjectName,
    error: StoreError,
}

/// Bytes that publishing `named` holds at most at one moment, other uploads of the same layers not counted.
fn bytes_held_by(named: &Named) -> u64 {
    let (manifest, layers) = (named.manifest(), named.layers());
    let unstored = layers.iter().filter(|layer| layer.facts().is_only_copy());
    let parts = unstored.map(|layer| bytes_held_by_upload(layer)).max().unwrap_or_default();
    let blobs: usize = manifest.blobs().values().map(Bytes::len).sum();
    let beside = blobs + limits::MANIFEST_TABLES_BYTES_MAX;
    let encoded = u64_of(beside) + limits::MANIFEST_RUN_BYTES * manifest.runs_count();
    parts.max(encoded).max(limits::UPLOAD_LEASE_BYTES_MIN)
}
