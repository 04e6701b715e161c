//! Uploads what a sealed snapshot names: every layer not known to be stored, whoever made it, then the manifest.

use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;

use crate::frame::FrameNumber;
use crate::geometry::u64_of;
use crate::identity::SnapshotId;
use crate::layer::{Layer, LayerError};
use crate::manifest::{Manifest, ObjectName, Publication, StoredLayer};
use crate::object::{ObjectTable, encode_frame};
use crate::store::{LayerUpload, Store, StoreError};

/// Why a snapshot was not published; what was uploaded so far stays and is not uploaded again.
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
}

/// Publishes `manifest`, whose layers are `layers` in its order. Encoding runs on the calling thread, which is to be
/// one of idle priority; requests run on `runtime`.
pub fn publish(
    manifest: &Manifest,
    layers: &[Arc<Layer>],
    store: &Store,
    runtime: &Handle,
) -> Result<(), PublishError> {
    let stored = layers
        .iter()
        .map(|layer| stored_layer(layer, manifest.snapshot(), store, runtime))
        .collect::<Result<Vec<_>, _>>()?;
    let publication = Publication::new(manifest.clone(), stored);
    Ok(runtime.block_on(store.put_manifest(manifest.snapshot(), Bytes::from(publication.encode())))?)
}

fn stored_layer(
    layer: &Layer,
    publisher: SnapshotId,
    store: &Store,
    runtime: &Handle,
) -> Result<StoredLayer, PublishError> {
    let turn = runtime.block_on(layer.upload_turn());
    let stored = match layer.stored_at() {
        Some(stored) => stored.clone(),
        None => layer.set_stored_at(upload(layer, publisher, store, runtime)?).clone(),
    };
    drop(turn);
    Ok(stored)
}

fn upload(
    layer: &Layer,
    publisher: SnapshotId,
    store: &Store,
    runtime: &Handle,
) -> Result<StoredLayer, PublishError> {
    let object = ObjectName::new(publisher);
    let mut upload = runtime.block_on(store.begin_layer(layer.id(), &object))?;
    match write_object(layer, &mut upload, runtime) {
        Ok((table_digest, table_bytes, object_bytes)) => {
            runtime.block_on(upload.finish())?;
            Ok(StoredLayer { object, table_digest, table_bytes, object_bytes })
        }
        Err(error) => {
            runtime.block_on(upload.abort());
            Err(error)
        }
    }
}

fn write_object(
    layer: &Layer,
    upload: &mut LayerUpload,
    runtime: &Handle,
) -> Result<([u8; 32], u64, u64), PublishError> {
    let index = layer.index().expect("a layer that is not stored was packed here, with its index").clone();
    let mut lengths = Vec::with_capacity(index.frames());
    for number in 0..index.frames() {
        let encoded = encode_frame(&layer.read_frame(FrameNumber::new(number))?)?;
        lengths.push(u64_of(encoded.len()));
        runtime.block_on(upload.write(Bytes::from(encoded)))?;
    }
    let table = ObjectTable::new(index, &lengths);
    let bytes = table.encode();
    let digest = *blake3::hash(&bytes).as_bytes();
    let (table_bytes, frames_bytes) = (u64_of(bytes.len()), table.frames_bytes());
    runtime.block_on(upload.write(Bytes::from(bytes)))?;
    Ok((digest, table_bytes, frames_bytes + table_bytes))
}
