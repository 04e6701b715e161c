//! Uploads a sealed snapshot: every layer not known to be stored, on whichever node it was made, then the manifest.

use std::sync::Arc;

use bytes::Bytes;

use crate::byte_budget::{ByteBudget, ByteLease};
use crate::catalog::CatalogError;
use crate::frame::FrameNumber;
use crate::geometry::{bytes_of_pages, u64_of};
use crate::identity::SnapshotId;
use crate::key_ring::DomainKey;
use crate::layer::Layer;
use crate::limits;
use crate::local_file::LayerError;
use crate::manifest::{Edition, ObjectName, Publication, StoredLayer};
use crate::named::Named;
use crate::object::{EncodedFrame, ObjectTable, StoredFrame};
use crate::pool::PoolHandle;
use crate::stop::{Stop, Stopped};
use crate::store::{LayerUpload, Store, StoreError};

/// Reason that a snapshot was not published; the objects uploaded so far stay and are not uploaded again.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer's object is not in the store any more, and this node cannot upload it again.
    #[error(
        "{0}, and this disk does not have the whole layer to upload it again: bring the object back, or delete the snapshot"
    )]
    Gone(StoreError),
    /// A layer could not be read on this disk.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A frame could not be compressed.
    #[error("compressing a frame: {0}")]
    Encode(#[from] std::io::Error),
    /// The catalog could not be written.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The engine ends; the next one finds the snapshot unpublished.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Publishes snapshots, as tasks that share a budget.
#[derive(Debug)]
pub struct Publisher {
    /// The store.
    pub store: Store,
    /// Compresses frames and encodes manifests.
    pub pool: PoolHandle,
    /// Bytes that all uploads together may hold.
    pub budget: ByteBudget<SnapshotId>,
    /// Tags manifests.
    pub key: DomainKey,
    /// Cuts uploads short.
    pub stop: Stop,
}

impl Publisher {
    /// Waits for as many bytes as publishing `named` holds at one moment. Older snapshots go first.
    pub async fn room(&self, named: &Named) -> Result<ByteLease<SnapshotId>, Stopped> {
        let lease = self.budget.lease(named.manifest().snapshot(), bytes_held_by(named));
        self.stop.unless_said(lease).await
    }

    /// Publishes `named` within `room`. `uploaded` is told where its layers are, on the pool, before the manifest is put;
    /// what it answers is returned.
    pub async fn publish<T: Send + 'static>(
        &self,
        named: &Named,
        room: ByteLease<SnapshotId>,
        uploaded: impl FnOnce(&Publication) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<T, PublishError> {
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
        let publication = Publication::new(Edition::FIRST, (**named.manifest()).clone(), stored.collect());
        let told = self.stop.unless_said(self.commit(publication, uploaded)).await??;
        drop(room);
        Ok(told)
    }

    /// Puts the manifest.
    async fn commit<T: Send + 'static>(
        &self,
        publication: Publication,
        uploaded: impl FnOnce(&Publication) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<T, PublishError> {
        let id = publication.manifest().snapshot();
        let key = self.key.clone();
        let encode = move || {
            let told = uploaded(&publication)?;
            Ok::<_, CatalogError>((told, Bytes::from(publication.encode(&key))))
        };
        let (told, bytes) = self.pool.run(id, encode).await?;
        self.store.put_manifest(id, bytes).await?;
        Ok(told)
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
            layer.facts().add_stored(&self.upload(layer, publisher).await?);
            if let Some(gone) = gone {
                layer.facts().note_gone(gone);
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
            if !layer.local().may_be_whole() {
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

    async fn upload(&self, layer: &Arc<Layer>, publisher: SnapshotId) -> Result<StoredLayer, PublishError> {
        let object = ObjectName::new(publisher);
        let mut upload = self.stop.unless_said(self.store.begin_layer(layer.id(), &object)).await??;
        let written = self.stop.unless_said(self.write_object(layer, publisher, &mut upload)).await;
        match written.map_err(PublishError::from).flatten() {
            Ok(table) => {
                self.stop.unless_said(upload.finish()).await??;
                let WrittenTable { table_digest, table_bytes, object_bytes } = table;
                Ok(StoredLayer { object, table_digest, table_bytes, object_bytes })
            }
            Err(error) => {
                upload.abort().await;
                Err(error)
            }
        }
    }

    /// Compresses a few frames at a time, and gives them to the upload.
    async fn write_object(
        &self,
        layer: &Arc<Layer>,
        publisher: SnapshotId,
        upload: &mut LayerUpload,
    ) -> Result<WrittenTable, PublishError> {
        let frames =
            layer.index().expect("a layer that is not stored was packed here, with its index").frames();
        let mut stored = Vec::with_capacity(frames);
        while stored.len() < frames {
            let (layer, first) = (Arc::clone(layer), stored.len());
            for EncodedFrame { codec, bytes } in
                self.pool.run(publisher, move || encode_from(&layer, first)).await?
            {
                stored.push(StoredFrame { codec, bytes: u64_of(bytes.len()) });
                upload.write(Bytes::from(bytes)).await?;
            }
        }
        let layer = Arc::clone(layer);
        let (table, encoded) = self.pool.run(publisher, move || encode_table(&layer, &stored)).await;
        upload.write(encoded).await?;
        Ok(table)
    }
}

/// An object of a layer that is not in the store.
struct Missing {
    object: ObjectName,
    error: StoreError,
}

/// The table at the end of an object that is being written.
struct WrittenTable {
    table_digest: [u8; 32],
    table_bytes: u64,
    object_bytes: u64,
}

/// Bytes that publishing `named` holds at most at one moment, other uploads of the same layers not counted.
fn bytes_held_by(named: &Named) -> u64 {
    let (manifest, layers) = (named.manifest(), named.layers());
    let unstored = layers.iter().filter(|layer| layer.facts().is_only_copy());
    let parts = unstored.map(|layer| bytes_held_by_upload(layer)).max().unwrap_or_default();
    let blobs: usize = manifest.blobs().values().map(Bytes::len).sum();
    let encoded = u64_of(blobs) + limits::MANIFEST_RUN_BYTES * manifest.runs_count();
    parts.max(encoded).max(limits::UPLOAD_LEASE_BYTES_MIN)
}

/// Bytes that uploading a layer holds at most at one moment.
fn bytes_held_by_upload(layer: &Layer) -> u64 {
    bytes_of_pages(layer.pages()).clamp(limits::UPLOAD_LEASE_BYTES_MIN, limits::UPLOAD_HELD_BYTES_MAX)
}

/// The frames from `first` on that fill a part of an upload together, compressed.
fn encode_from(layer: &Layer, first: usize) -> Result<Vec<EncodedFrame>, PublishError> {
    let frames = layer.index().map_or(0, |index| index.frames());
    let local = layer.local();
    let (mut encoded, mut bytes) = (Vec::new(), 0);
    for number in first..frames {
        let frame = EncodedFrame::of(&local.read_frame(FrameNumber::new(number))?)?;
        bytes += frame.bytes.len();
        encoded.push(frame);
        if bytes >= limits::UPLOAD_PART_BYTES {
            break;
        }
    }
    Ok(encoded)
}

fn encode_table(layer: &Layer, frames: &[StoredFrame]) -> (WrittenTable, Bytes) {
    let index = layer.index().expect("its frames were compressed by it").clone();
    let table = ObjectTable::new(index, frames);
    let bytes = table.encode();
    let table_bytes = u64_of(bytes.len());
    let written = WrittenTable {
        table_digest: *blake3::hash(&bytes).as_bytes(),
        table_bytes,
        object_bytes: table.frames_bytes() + table_bytes,
    };
    (written, Bytes::from(bytes))
}
