//! Layers of this node's disk, for other nodes, and of theirs for this one.

use std::sync::Arc;

use super::Engine;
use crate::frame::frames_of;
use crate::frames_here::FramesHere;
use crate::identity::LayerId;
use crate::peer::{HeldLayers, Peer, WantedLayer};
use crate::peer_sources::PeerCounts;
use crate::snapshot::Snapshot;

impl Engine {
    /// The bytes of each of these layers that are on this disk.
    pub fn held_layers(&self, layers: &[LayerId]) -> HeldLayers {
        let held = |id: &LayerId| self.cache.handle(*id).map_or(0, |layer| layer.local_page_bytes());
        HeldLayers { engine: self.id, bytes: layers.iter().map(held).collect() }
    }

    /// The frames of a layer that are on this disk and right; blocks on it, and asks nobody else.
    pub fn frames_here(&self, wanted: &WantedLayer) -> FramesHere {
        let layer = self.cache.handle(wanted.layer).filter(|layer| layer.pages() == wanted.pages);
        let layer = layer.filter(|layer| wanted.frames.end <= frames_of(layer.pages()));
        FramesHere::of(layer.map(|layer| layer.local()), wanted.frames.clone())
    }

    /// Finds out in the background which other nodes have layers of a snapshot: those of the settings, and `also`.
    pub(super) fn look_at_peers(&self, snapshot: &Snapshot, also: Option<Arc<dyn Peer>>) {
        if let Some(named) = snapshot.named_now() {
            let look = self.fetcher.sources().look_at_peers(named.layers(), also);
            drop(self.runtime.handle().spawn(look));
        }
    }

    /// Layers of a snapshot that other nodes are known to have some of.
    pub fn layers_elsewhere(&self, snapshot: &Snapshot) -> usize {
        let named = snapshot.named_now();
        let layers = named.iter().flat_map(|named| named.layers());
        layers.filter(|layer| !layer.facts().holders().is_empty()).count()
    }

    /// Counts of the frames that other nodes were asked for.
    pub fn peer_counts(&self) -> PeerCounts {
        self.fetcher.sources().peers().counts()
    }
}
