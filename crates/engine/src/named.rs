//! A snapshot in names, with the handles of its layers: enough to read every page, and to tell the place of each.

use std::sync::Arc;

use crate::geometry::bytes_of_pages;
use crate::identity::LayerId;
use crate::layer::{Confirmed, Layer, NeededHere};
use crate::manifest::{Edition, LocalManifest, Manifest, VolumeManifest};
use crate::view::View;

/// A manifest and a handle of each of its layers, in its order. Clones share them.
#[derive(Debug, Clone)]
pub struct Named {
    manifest: Arc<Manifest>,
    layers: Arc<[Arc<Layer>]>,
}

/// A layer of a snapshot, with the bytes of it at each place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedLayer {
    /// Its name.
    pub id: LayerId,
    /// Bytes of its pages.
    pub bytes: u64,
    /// Of those, bytes that take blocks of this node's disk.
    pub local_bytes: u64,
    /// Bytes of its object, once it is stored.
    pub stored_bytes: Option<u64>,
}

impl Named {
    /// `manifest` with its layers, in its order.
    pub fn new(manifest: Manifest, layers: impl Into<Arc<[Arc<Layer>]>>) -> Self {
        let layers = layers.into();
        let handles = layers.iter().map(|layer| layer.id());
        assert!(manifest.layers().iter().map(|name| name.id).eq(handles), "each layer stands at its slot");
        Self { manifest: Arc::new(manifest), layers }
    }

    /// The manifest.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// The layers, each at its slot.
    pub fn layers(&self) -> &[Arc<Layer>] {
        &self.layers
    }

    /// A view of one of the manifest's volumes over the layers.
    pub fn view(&self, volume: &VolumeManifest) -> View {
        View::flat(volume.map.clone(), Arc::clone(&self.layers))
    }

    /// The layers, with the bytes of each at each place.
    pub fn placed(&self) -> Vec<PlacedLayer> {
        let placed = |layer: &Arc<Layer>| PlacedLayer {
            id: layer.id(),
            bytes: bytes_of_pages(layer.pages()),
            local_bytes: layer.local_page_bytes(),
            stored_bytes: layer.stored_at().map(|stored| stored.object_bytes),
        };
        self.layers.iter().map(placed).collect()
    }

    /// Confirms that a manifest in the store names the layers.
    pub(crate) fn confirm(&self) -> Vec<Arc<Confirmed>> {
        self.layers.iter().map(|layer| layer.confirm()).collect()
    }

    /// Keeps the local files of those layers that a record made now names without a place in the store.
    pub(crate) fn need_here(&self) -> Vec<Arc<NeededHere>> {
        let unstored = self.layers.iter().filter(|layer| layer.stored_at().is_none());
        unstored.map(|layer| layer.need_here()).collect()
    }

    /// The manifest as this node records it: with its last known edition, and the known places of its layers in the store.
    pub fn local(&self, edition: Option<Edition>) -> LocalManifest {
        let stored = self.layers.iter().map(|layer| layer.stored_at());
        LocalManifest::new(edition, (*self.manifest).clone(), stored.collect())
    }
}
