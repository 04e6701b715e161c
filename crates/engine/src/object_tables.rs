//! The tables of layers' objects on their way into a manifest, and out of it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::attempt::{FetchError, checked_table, keep_index};
use crate::layer::Layer;
use crate::manifest::{Publication, StoredLayer, carried};
use crate::store::{Store, StoreError};

/// The tables that a manifest of these layers has, as far as this node knows them. Costs processor time.
pub(crate) fn known(layers: &[Arc<Layer>], stored: &[StoredLayer]) -> Vec<Option<Bytes>> {
    let known = |((layer, place), is_carried): ((&Arc<Layer>, &StoredLayer), bool)| {
        let object = layer.facts().stored().filter(|object| is_carried && object.place() == place)?;
        object.table(layer.index()?).map(Bytes::from)
    };
    layers.iter().zip(stored).zip(carried(stored)).map(known).collect()
}

/// Adds those that the manifest has and this node does not know, from the store. An object without the table that its
/// place says goes without, as it does for its readers.
pub(crate) async fn complete(
    tables: &mut [Option<Bytes>],
    layers: &[Arc<Layer>],
    stored: &[StoredLayer],
    store: &Store,
) -> Result<(), StoreError> {
    let wanted = tables.iter_mut().zip(layers).zip(stored).zip(carried(stored));
    for (((table, layer), place), is_carried) in wanted {
        if table.is_some() || !is_carried {
            continue;
        }
        match read_table(layer, place, store).await {
            Ok(bytes) if place.is_table(&bytes) => *table = Some(bytes),
            Ok(_) | Err(StoreError::Length { .. }) => {
                tracing::warn!(layer = %layer.id(), "the table of a layer in the store is not the one that was stored");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads the table of a layer's object, whose bytes are not checked here.
pub(crate) async fn read_table(
    layer: &Layer,
    place: &StoredLayer,
    store: &Store,
) -> Result<Bytes, StoreError> {
    let range = place.object_bytes - place.table_bytes..place.object_bytes;
    let mut arriving = store.get_layer(layer.id(), &place.object, range).await?;
    let mut body = BytesMut::new();
    while let Some(bytes) = arriving.next().await? {
        body.extend_from_slice(&bytes);
    }
    Ok(body.freeze())
}

/// Remembers the tables in a manifest with its layers, in its order: none of them is asked for.
pub(crate) fn take(publication: &Publication, layers: &[Arc<Layer>]) -> Result<(), FetchError> {
    for ((layer, place), table) in layers.iter().zip(publication.stored()).zip(publication.tables()) {
        let object = layer.facts().stored().filter(|object| object.place() == place);
        let is_new =
            layer.index().is_none() || object.as_ref().is_some_and(|object| object.frames().is_none());
        let Some(table) = table.as_ref().filter(|_| is_new) else { continue };
        let (index, frames) = checked_table(layer.facts(), place, table)?.into_parts();
        if layer.index().is_none() {
            keep_index(&layer.local(), index);
        }
        if let Some(object) = object {
            object.set_frames(frames);
        }
    }
    Ok(())
}
