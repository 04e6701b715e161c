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
    let stored = layers
        .iter()
        .map(|layer| stored_layer(layer, manifest.snapshot(), requests))
        .collect::<Result<Vec<_>, _>>()?;
    for (layer, at) in layers.iter().zip(&stored) {
        requests.wait(requests.store.see_layer(layer.id(), &at.object))??;
    }
    let publication = Publication::new(manifest.clone(), stored);
    uploaded(&publication)?;
    let bytes = Bytes::from(publication.encode());
    Ok(requests.wait(requests.store.put_manifest(manifest.snapshot(), bytes))??)
}

fn stored_layer(
    layer: &Layer,
    publisher: SnapshotId,
    requests: &Requests,
) -> Result<StoredLayer, PublishError> {
    let turn = requests.wait(layer.upload_turn())?;
    let stored = match layer.stored_at() {
        Some(stored) => stored.clone(),
        None => layer.set_stored_at(upload(layer, publisher, requests)?).clone(),
    };
    drop(turn);
    Ok(stored)
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
