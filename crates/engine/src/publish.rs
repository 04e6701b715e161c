//! Uploads a sealed snapshot: every layer not known to be stored, on whichever node it was made, then the manifest.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path as ObjectPath;

use crate::age::Age;
use crate::byte_budget::{ByteBudget, ByteLease};
use crate::catalog::CatalogError;
use crate::collectable::LayerCopy;
use crate::editions::Editions;
use crate::geometry::u64_of;
use crate::identity::{DomainName, LayerId, SnapshotId};
use crate::key_ring::{DomainKey, KeyRing};
use crate::layer::Layer;
use crate::limits;
use crate::local_file::LayerError;
use crate::manifest::{ObjectName, Publication, StoredLayer};
use crate::named::Named;
use crate::object_tables;
use crate::pool::PoolHandle;
use crate::publish_steps::{PublishStep, Publishing};
use crate::roots::Roots;
use crate::stop::{Stop, Stopped};
use crate::store::{Store, StoreError, layer_path};
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
    /// Tag manifests.
    pub keys: KeyRing,
    /// Cuts uploads short.
    pub stop: Stop,
    /// Unfinished uploads, if this node has a catalog.
    pub uploads: Option<UploadRecords>,
    /// Bytes of a part of an upload.
    pub part_bytes: usize,
    /// This node's roots in the store.
    pub roots: Roots,
}

impl Publisher {
    /// Waits for as many bytes as publishing `named` holds at one moment. Older snapshots go first.
    pub async fn room(&self, named: &Named) -> Result<ByteLease<SnapshotId>, Stopped> {
        let lease = self.budget.lease(named.manifest().snapshot(), bytes_held_by(named));
        self.stop.unless_said(lease).await
    }

    /// Publishes `named` within `room`, with the key of its domain, in the edition that `editions` says. `uploaded` is told
    /// where its layers are, on the pool, before the manifest is put; its answer is returned, with the manifest's name in
    /// the store.
    pub(crate) async fn publish<T: Send + 'static>(
        &self,
        named: &Named,
        (domain, editions): (&DomainName, &Editions),
        room: ByteLease<SnapshotId>,
        uploaded: impl FnOnce(&Publication) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<(T, ObjectPath), PublishError> {
        let (id, layers) = (named.manifest().snapshot(), named.layers());
        let key = self.keys.of_domain(domain)?;
        self.stop.unless_said(self.store.agree_on(key)).await??;
        let put = self.stop.unless_said(self.take_steps(named, (key, editions), room, uploaded)).await??;
        self.settle_uploads(id, layers).await?;
        Ok(put)
    }

    /// Takes the steps that lead to the manifest, in the order that keeps collectors from what it names.
    async fn take_steps<T: Send + 'static>(
        &self,
        named: &Named,
        (key, editions): (&DomainKey, &Editions),
        room: ByteLease<SnapshotId>,
        uploaded: impl FnOnce(&Publication) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<(T, ObjectPath), PublishError> {
        let (id, layers) = (named.manifest().snapshot(), named.layers());
        let (mut publishing, mut gone) = (Publishing::of(id), HashSet::new());
        let mut room = Some(room);
        let mut rooted = Age::now();
        loop {
            let stored: Vec<_> = layers.iter().map(|layer| layer.stored_at()).collect();
            let copies = layers.iter().zip(&stored).map(|(layer, stored)| {
                let object = stored.as_ref().map(|stored| stored.object);
                (layer.id(), object.filter(|object| !gone.contains(object)))
            });
            match publishing.next(&copies.collect::<Vec<_>>()) {
                PublishStep::PutRoot(root) => {
                    rooted = Age::now();
                    self.roots.put(&self.store, &root).await?;
                    publishing.rooted(root);
                }
                PublishStep::ListCondemned => publishing.listed(self.store.condemned_copies().await?),
                PublishStep::Upload(layer) => {
                    let layer = layers.iter().find(|named| named.id() == layer);
                    let layer = layer.expect("it is a step for one of these layers");
                    if let Some(copy) = self.upload_anew(layer, id, &gone, &mut room).await? {
                        publishing.uploaded(copy);
                    }
                }
                PublishStep::See(copy) => match self.store.layer_bytes(copy.layer, &copy.object).await {
                    Ok(_) => publishing.seen(copy),
                    Err(StoreError::NotFound(_)) if !publishing.has_uploaded(&copy) => {
                        gone.insert(copy.object);
                        layers
                            .iter()
                            .filter(|layer| layer.id() == copy.layer)
                            .for_each(|layer| layer.facts().note_gone(copy.object));
                    }
                    Err(error) => return Err(error.into()),
                },
                PublishStep::LookForTombstone if self.store.has_tombstone(id).await? => {
                    return Err(PublishError::Deleted(id));
                }
                PublishStep::LookForTombstone => publishing.has_no_tombstone(),
                PublishStep::PutManifest if rooted.is_over(limits::ROOT_TRUSTED_FOR) => publishing.doubted(),
                PublishStep::PutManifest => {
                    let stored: Vec<_> = stored.into_iter().flatten().collect();
                    let tables = self.tables(id, layers, &stored).await?;
                    let edition = editions.for_places(&stored);
                    let manifest = (**named.manifest()).clone();
                    let publication = Publication::new(edition, manifest, stored).with_tables(tables);
                    return self.commit(publication, key.clone(), uploaded).await;
                }
                PublishStep::TakeRootsAway => {
                    unreachable!("the life does that once the snapshot is published")
                }
            }
        }
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
        object_tables::complete(&mut tables, layers, stored, &self.store).await?;
        Ok(tables)
    }

    /// Puts the manifest.
    async fn commit<T: Send + 'static>(
        &self,
        publication: Publication,
        key: DomainKey,
        uploaded: impl FnOnce(&Publication) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<(T, ObjectPath), PublishError> {
        let (id, edition) = (publication.manifest().snapshot(), publication.edition());
        let encode = move || {
            let told = uploaded(&publication)?;
            Ok::<_, CatalogError>((told, Bytes::from(publication.encode(&key))))
        };
        let (told, bytes) = self.pool.run(id, encode).await?;
        let manifest = self.store.put_manifest(id, edition, bytes).await?;
        Ok((told, manifest))
    }

    /// Uploads a layer of which no object is known that can be relied on; none if another snapshot has done so meanwhile.
    async fn upload_anew(
        &self,
        layer: &Arc<Layer>,
        publisher: SnapshotId,
        gone: &HashSet<ObjectName>,
        room: &mut Option<ByteLease<SnapshotId>>,
    ) -> Result<Option<LayerCopy>, PublishError> {
        let Some(unreliable) = layer.stored_at() else {
            return self.upload_unless_stored(layer, None, publisher).await;
        };
        let copy = LayerCopy { layer: layer.id(), object: unreliable.object };
        let is_gone = gone.contains(&copy.object);
        let refusal = || match is_gone {
            true => PublishError::Gone(StoreError::NotFound(layer_path(copy.layer, &copy.object))),
            false => PublishError::Condemned(copy),
        };
        let local = Arc::clone(layer);
        if !self.pool.run(publisher, move || local.local().may_be_whole()).await {
            return Err(refusal());
        }
        tracing::warn!(%copy, is_gone, "a layer's object cannot be relied on; the layer is uploaded again");
        // Given back before more is asked for: nobody waits for bytes while holding some.
        drop(room.take());
        *room = Some(self.budget.lease(publisher, bytes_held_by_upload(layer)).await);
        let uploaded = match self.upload_unless_stored(layer, Some(copy.object), publisher).await {
            Err(PublishError::Layer(LayerError::Digest { .. })) => Err(refusal()),
            uploaded => uploaded,
        };
        // A condemned one may stay: another snapshot may name it that was published meanwhile.
        if is_gone && uploaded.is_ok() {
            layer.facts().note_gone(copy.object);
        }
        uploaded
    }

    /// Uploads a layer unless an object of it is known by now beside `unreliable`.
    async fn upload_unless_stored(
        &self,
        layer: &Arc<Layer>,
        unreliable: Option<ObjectName>,
        publisher: SnapshotId,
    ) -> Result<Option<LayerCopy>, PublishError> {
        let _turn = layer.upload_turn().await;
        // Others may have uploaded it while this waited for its turn.
        if layer.stored_at().map(|stored| stored.object) != unreliable {
            return Ok(None);
        }
        let (stored, frames) = self.uploader().upload(layer, publisher).await?;
        layer.facts().prefer_stored(&stored);
        if let Some(object) = layer.facts().stored().filter(|object| *object.place() == stored) {
            object.set_frames(frames);
        }
        Ok(Some(LayerCopy { layer: layer.id(), object: stored.object }))
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
