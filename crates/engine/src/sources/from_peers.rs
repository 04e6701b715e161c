//! Reads of layers from other nodes, which have their share of the same byte budget.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Sources;
use crate::byte_budget::ByteLease;
use crate::frame::{FrameNumber, frame_bytes};
use crate::geometry::u64_of;
use crate::layer::Layer;
use crate::layer_facts::LayerFacts;
use crate::peer::{EngineId, Peer, PeerError, Peers};
use crate::peer_sources::{PeerSource, PeerSources, patience};
use crate::urgency::{Class, Urgency};

/// Frames that another node sent, and their share of the budget. They are not verified.
#[derive(Debug)]
pub(crate) struct PeerFrames {
    pub(crate) bodies: Vec<Bytes>,
    _lease: ByteLease<Class>,
}

impl Sources {
    /// The same with other nodes as sources of layers; `own` is this engine.
    #[must_use]
    pub(crate) fn with_peers(mut self, peers: Arc<dyn Peers>, own: EngineId) -> Self {
        self.peers = Arc::new(PeerSources::new(peers, own));
        self
    }

    /// The other nodes, as sources of layers.
    pub(crate) fn peers(&self) -> &Arc<PeerSources> {
        &self.peers
    }

    /// Finds out which nodes have these layers: those of the settings, and `also`.
    pub(crate) fn look_at_peers(
        &self,
        layers: &[Arc<Layer>],
        also: Option<Arc<dyn Peer>>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (peers, layers) = (Arc::clone(&self.peers), layers.iter().map(|layer| Arc::clone(layer.facts())));
        let layers: Vec<_> = layers.filter(|layer| layer.pages() > 0).collect();
        async move { peers.look_for(layers, also).await }
    }

    /// True if a node is asked before the store.
    pub(crate) fn is_before_store(&self, peer: &PeerSource) -> bool {
        peer.is_before(self.speed.first_byte())
    }

    /// Time after which an answer of the store is late, so that another node is asked beside.
    pub(crate) fn patience_with_store(&self) -> Duration {
        patience(self.speed.first_byte())
    }

    /// Frames of a layer from another node, up to the first that it does not have.
    pub(crate) async fn frames_of_peer(
        &self,
        peer: &PeerSource,
        (layer, frames): (&LayerFacts, Range<usize>),
        urgency: &Urgency,
    ) -> Result<PeerFrames, PeerError> {
        let lengths = frames.clone().map(|frame| frame_bytes(FrameNumber::new(frame), layer.pages()));
        let lease = self.lease(urgency, lengths.map(u64_of).sum()).await;
        let bodies = self.peers.frames(peer, (layer, frames), urgency.now()).await?;
        Ok(PeerFrames { bodies, _lease: lease })
    }
}
