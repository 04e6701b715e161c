//! Uploads a sealed snapshot: every layer not known to be stored, on whichever node it was made, then the manifest.

use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;

use crate::catalog::CatalogError;
use crate::frame::FrameNumber;
use crate::geometry::u64_of;
use crate::identity::SnapshotId;
use crate::layer::{Layer, LayerError};
use crate::manifest::{Manifest, ObjectName, Publication, StoredLayer};
use crate::object::{ObjectTable, encode_frame};
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

/// The store, and how requests to it are made from a thread that may wait.
#[derive(Debug)]
pub struct Requests {
    /// The store.
    pub store: Store,
    /// Runtime on which requests run.
    pub runtime: Handle,
    /// Ends the wait for an answer.
    pub stop: Stop,
}

impl Requests {
    /// Waits for a request's answer, unless the engine ends.
    pub fn wait<T>(&self, request: impl Future<Output = T>) -> Result<T, Stopped> {
        self.runtime.block_on(self.stop.unless_said(request))
    }
}

/// Publishes `manifest`, whose layers are `layers` in its order. `uploaded` is told where they are before the manifest
/// is put. Encoding runs on the calling thread, which is to be one of idle priority.
pub fn publish(
    manifest: &Manifest,
    layers: &[Arc<Layer>],
    requests: &Requests,
    uploaded: impl FnOnce(&Publication) -> Result<(), CatalogError>,
) -> Result<(), PublishError> {
    let publisher = manifest.snapshot();
    for layer in layers {
        upload_unless_stored(layer, None, publisher, requests)?;
    }
    // After the last upload: the store may have been another one meanwhile.
    if upload_missing(layers, publisher, requests)? {
        for layer in layers {
            if let Some(missing) = missing(layer, requests)? {
                return Err(missing.error.into());
            }
        }
    }
    let stored = layers.iter().map(|layer| layer.stored_at().expect("it is stored by now"));
    let publication = Publication::new(manifest.clone(), stored.collect());
    uploaded(&publication)?;
    let bytes = Bytes::from(publication.encode());
    Ok(requests.wait(requests.store.put_manifest(manifest.snapshot(), bytes))??)
}

/// Uploads a layer of which no object is known but the one that is `gone`.
fn upload_unless_stored(
    layer: &Layer,
    gone: Option<ObjectName>,
    publisher: SnapshotId,
    requests: &Requests,
) -> Result<(), PublishError> {
    let turn = requests.wait(layer.upload_turn())?;
    // Others may have uploaded it while this waited for its turn.
    if layer.stored_at().map(|stored| stored.object) == gone {
        layer.add_stored(upload(layer, publisher, requests)?);
        if let Some(gone) = gone {
            layer.note_gone(gone);
        }
    }
    drop(turn);
    Ok(())
}

/// An object of a layer that is not in the store.
struct Missing {
    object: ObjectName,
    error: StoreError,
}

/// The last known object of a layer, if not even that is in the store.
fn missing(layer: &Layer, requests: &Requests) -> Result<Option<Missing>, PublishError> {
    loop {
        let object = layer.stored_at().expect("it was uploaded").object;
        match requests.wait(requests.store.see_layer(layer.id(), &object))? {
            Ok(()) => return Ok(None),
            Err(error @ StoreError::NotFound(_)) => {
                layer.note_gone(object);
                if layer.stored_at().is_some_and(|stored| stored.object == object) {
                    return Ok(Some(Missing { object, error }));
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Uploads every layer again whose objects are gone from the store; whether there was one.
fn upload_missing(
    layers: &[Arc<Layer>],
    publisher: SnapshotId,
    requests: &Requests,
) -> Result<bool, PublishError> {
    let mut was_missing = false;
    for layer in layers {
        let Some(Missing { object, error }) = missing(layer, requests)? else { continue };
        if !layer.may_be_whole() {
            return Err(PublishError::Gone(error));
        }
        tracing::warn!(%error, "a layer's object is gone; the layer is uploaded again");
        match upload_unless_stored(layer, Some(object), publisher, requests) {
            Err(PublishError::Layer(LayerError::Digest { .. })) => return Err(PublishError::Gone(error)),
            uploaded => uploaded?,
        }
        was_missing = true;
    }
    Ok(was_missing)
}

fn upload(layer: &Layer, publisher: SnapshotId, requests: &Requests) -> Result<StoredLayer, PublishError> {
    let object = ObjectName::new(publisher);
    let mut upload = requests.wait(requests.store.begin_layer(layer.id(), &object))??;
    match write_object(layer, &mut upload, requests) {
        Ok((table_digest, table_bytes, object_bytes)) => {
            requests.wait(upload.finish())??;
            Ok(StoredLayer { object, table_digest, table_bytes, object_bytes })
        }
        Err(error) => {
            requests.wait(upload.abort())?;
            Err(error)
        }
    }
}

fn write_object(
    layer: &Layer,
    upload: &mut LayerUpload,
    requests: &Requests,
) -> Result<([u8; 32], u64, u64), PublishError> {
    let index = layer.index().expect("a layer that is not stored was packed here, with its index").clone();
    let mut lengths = Vec::with_capacity(index.frames());
    for number in 0..index.frames() {
        let encoded = encode_frame(&layer.read_frame(FrameNumber::new(number))?)?;
        lengths.push(u64_of(encoded.len()));
        requests.wait(upload.write(Bytes::from(encoded)))??;
    }
    let table = ObjectTable::new(index, &lengths);
    let bytes = table.encode();
    let digest = *blake3::hash(&bytes).as_bytes();
    let (table_bytes, frames_bytes) = (u64_of(bytes.len()), table.frames_bytes());
    requests.wait(upload.write(Bytes::from(bytes)))??;
    Ok((digest, table_bytes, frames_bytes + table_bytes))
}
