//! Other nodes as sources of layers: which of them has frames of a layer, how fast each answers, and whether it answers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use crate::layer_facts::LayerFacts;
use crate::limits;
use crate::peer::{EngineId, NoPeers, Peer, PeerError, Peers, WantedLayer};
use crate::placement::Holder;
use crate::source_speed::SourceSpeed;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, lock};
use crate::urgency::Class;

/// The nodes of the settings, as far as they were found to have something.
#[derive(Debug)]
pub(crate) struct PeerSources {
    peers: Arc<dyn Peers>,
    /// This engine, which may be among them.
    own: EngineId,
    found: Mutex<Vec<Arc<PeerSource>>>,
    counts: Counts,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct PeerSource {
    holder: Holder,
    peer: Arc<dyn Peer>,
    speed: SourceSpeed,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Health {
    /// It is not asked before.
    away_until: Option<Instant>,
    /// Answers in a row that came later than they should.
    late: u32,
    /// Reads that it was too slow for, since one was given to it all the same.
    passed_over: u32,
}

/// Counts of the frames that other nodes were asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PeerCounts {
    /// Frames that came and were right.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Reads that failed, or brought wrong bytes.
    pub failed: u64,
    /// Reads that were late, so that the store was asked beside.
    pub late: u64,
}

#[derive(Debug, Default)]
struct Counts {
    frames: AtomicU64,
    bytes: AtomicU64,
    failed: AtomicU64,
    late: AtomicU64,
}

impl Default for PeerSources {
    fn default() -> Self {
        Self::new(Arc::new(NoPeers), EngineId([0; 16]))
    }
}

impl PeerSources {
    /// The sources among `peers`, of which none is known to have anything; `own` is not one.
    pub(crate) fn new(peers: Arc<dyn Peers>, own: EngineId) -> Self {
        Self { peers, own, found: Mutex::default(), counts: Counts::default() }
    }

    pub(crate) fn counts(&self) -> PeerCounts {
        let Counts { frames, bytes, failed, late } = &self.counts;
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        PeerCounts { frames: of(frames), bytes: of(bytes), failed: of(failed), late: of(late) }
    }

    /// Asks all nodes for layers, and one more, and notes which have some of them. Nodes that do not answer soon are left out.
    pub(crate) async fn look_for(&self, layers: Vec<Arc<LayerFacts>>, also: Option<Arc<dyn Peer>>) {
        let nodes = self.peers.all().await;
        let mut reached: Vec<_> = nodes.iter().filter_map(|node| self.peers.at(node).ok()).collect();
        reached.extend(also);
        let asked = reached.into_iter().map(|peer| self.ask(peer, &layers));
        join_all(asked).await;
    }

    async fn ask(&self, peer: Arc<dyn Peer>, layers: &[Arc<LayerFacts>]) {
        for part in layers.chunks(limits::LAYERS_ASKED_AT_ONCE) {
            let wanted = part.iter().map(|layer| layer.id()).collect();
            let held = match timeout(limits::LAYERS_ASKED_WITHIN, peer.layers(wanted)).await {
                Ok(Ok(held)) if held.engine != self.own && held.bytes.len() == part.len() => held,
                Ok(Ok(_)) | Err(_) => return,
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a node is not asked for layers");
                    return;
                }
            };
            let has = part.iter().zip(&held.bytes).filter(|(_, bytes)| **bytes > 0);
            let has: Vec<_> = has.map(|(layer, _)| layer).collect();
            if let Some(holder) = (!has.is_empty()).then(|| self.holder_of(&peer)) {
                has.iter().for_each(|layer| layer.note_holder(holder));
            }
        }
    }

    fn holder_of(&self, peer: &Arc<dyn Peer>) -> Holder {
        let mut found = lock(&self.found);
        if let Some(known) = found.iter().find(|known| known.peer.node() == peer.node()) {
            return known.holder;
        }
        let holder = Holder(found.len());
        let (peer, speed, health) = (Arc::clone(peer), SourceSpeed::default(), Mutex::default());
        found.push(Arc::new(PeerSource { holder, peer, speed, health }));
        holder
    }

    /// The fastest of the nodes that have frames of a layer and answer.
    pub(crate) fn best_for(&self, layer: &LayerFacts) -> Option<Arc<PeerSource>> {
        let holders = layer.holders();
        // Without its index nothing that comes can be verified.
        if holders.is_empty() || layer.index().is_none() {
            return None;
        }
        let found = lock(&self.found);
        let there = holders.iter().filter_map(|holder| found.get(holder.0)).filter(|peer| peer.is_there());
        there.min_by_key(|peer| peer.speed.first_byte().unwrap_or_default()).cloned()
    }

    /// Asks a node for frames; those that came, up to the first that did not. They are not verified.
    pub(crate) async fn frames(
        &self,
        source: &PeerSource,
        (layer, frames): (&LayerFacts, std::ops::Range<usize>),
        class: Class,
    ) -> Result<Vec<Bytes>, PeerError> {
        let (wanted, asked) = (frames.len(), Instant::now());
        let of = WantedLayer { layer: layer.id(), pages: layer.pages(), frames };
        let answer = source.peer.frames(of, class).await.inspect_err(|error| {
            tracing::debug!(%error, layer = %layer.id(), "frames come from elsewhere");
            self.counts.failed.fetch_add(1, Ordering::Relaxed);
            source.note_failed(limits::PEER_SOURCE_AWAY_FOR);
        })?;
        if wanted == 1 {
            source.note_answer(asked.elapsed());
        }
        let came: Vec<Bytes> = answer.into_iter().map_while(|frame| frame).collect();
        if came.len() < wanted {
            layer.forget_holder(source.holder);
        }
        Ok(came)
    }

    /// Counts a frame that was right.
    pub(crate) fn note_right(&self, bytes: u64) {
        self.counts.frames.fetch_add(1, Ordering::Relaxed);
        self.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Notes that a node sent other bytes than the layer has: it is not asked for a while.
    pub(crate) fn note_wrong(&self, source: &PeerSource, layer: &LayerFacts) {
        self.counts.failed.fetch_add(1, Ordering::Relaxed);
        layer.forget_holder(source.holder);
        source.note_failed(limits::PEER_SOURCE_WRONG_FOR);
        let node = source.peer.node();
        tracing::warn!(node, layer = %layer.id(), "a node sent wrong bytes of a layer: look into its disk and memory");
    }

    /// Notes that an answer is late, so that the store is asked beside.
    pub(crate) fn note_late(&self, source: &PeerSource) {
        self.counts.late.fetch_add(1, Ordering::Relaxed);
        source.note_late();
    }
}

/// Time after which an answer of a source is late: a few times its usual one.
pub(crate) fn patience(usual: Option<Duration>) -> Duration {
    let usual = usual.unwrap_or(limits::FIRST_BYTE_GUESS);
    (usual * 4).clamp(limits::PEER_LATE_AFTER_MIN, limits::PEER_LATE_AFTER_MAX)
}

impl PeerSource {
    /// Time after which an answer is late.
    pub(crate) fn patience(&self) -> Duration {
        patience(self.speed.first_byte())
    }

    fn is_there(&self) -> bool {
        lock(&self.health).away_until.is_none_or(|until| until <= Instant::now())
    }

    /// True if it is asked before the store, which answers in `store`: it is as fast, or it is not known by now if it still
    /// is slower.
    pub(crate) fn is_before(&self, store: Option<Duration>) -> bool {
        let (Some(own), Some(store)) = (self.speed.first_byte(), store) else { return true };
        if own <= store {
            return true;
        }
        let mut health = lock(&self.health);
        health.passed_over = (health.passed_over + 1) % limits::PEER_TRIED_EVERY;
        health.passed_over == 0
    }

    fn note_answer(&self, time: Duration) {
        self.speed.note_first_byte(time);
        *lock(&self.health) = Health::default();
    }

    fn note_failed(&self, away: Duration) {
        let mut health = lock(&self.health);
        let until = Instant::now() + away;
        health.away_until = Some(health.away_until.map_or(until, |known| known.max(until)));
        health.late = 0;
    }

    fn note_late(&self) {
        let mut health = lock(&self.health);
        health.late += 1;
        if health.late >= limits::PEER_LATE_MAX {
            health.late = 0;
            health.away_until = Some(Instant::now() + limits::PEER_SOURCE_AWAY_FOR);
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::identity::{LayerId, SnapshotId};
    use crate::peer::{Described, HeldLayers, WantedPages};

    /// A node that is never asked.
    #[derive(Debug)]
    struct Silent;

    impl Peer for Silent {
        fn node(&self) -> &str {
            "silent"
        }

        fn describe(&self, _: SnapshotId) -> BoxFuture<'_, Result<Described, PeerError>> {
            Box::pin(std::future::pending())
        }

        fn pages(&self, _: WantedPages, _: Class) -> BoxFuture<'_, Result<Vec<u8>, PeerError>> {
            Box::pin(std::future::pending())
        }

        fn published(&self, _: SnapshotId) -> BoxFuture<'_, Result<bool, PeerError>> {
            Box::pin(std::future::pending())
        }

        fn layers(&self, _: Vec<LayerId>) -> BoxFuture<'_, Result<HeldLayers, PeerError>> {
            Box::pin(std::future::pending())
        }

        fn frames(&self, _: WantedLayer, _: Class) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, PeerError>> {
            Box::pin(std::future::pending())
        }
    }

    fn source() -> PeerSource {
        let (speed, health) = (SourceSpeed::default(), Mutex::default());
        PeerSource { holder: Holder(0), peer: Arc::new(Silent), speed, health }
    }

    const FAST: Option<Duration> = Some(Duration::from_millis(1));
    const SLOW: Option<Duration> = Some(Duration::from_millis(50));

    #[test]
    fn a_node_is_asked_before_the_store_unless_it_was_slower_and_then_now_and_then() {
        let peer = source();
        assert!(peer.is_before(FAST), "nobody knows by now");
        peer.note_answer(Duration::from_millis(10));
        assert!(peer.is_before(SLOW) && peer.is_before(None));
        let tried = (0..limits::PEER_TRIED_EVERY * 2).filter(|_| peer.is_before(FAST)).count();
        assert_eq!(tried, 2);
    }

    #[test]
    fn a_node_that_failed_or_was_late_again_and_again_is_not_asked_for_a_while() {
        let peer = source();
        (1..limits::PEER_LATE_MAX).for_each(|_| peer.note_late());
        assert!(peer.is_there());
        peer.note_answer(Duration::from_millis(10));
        (1..limits::PEER_LATE_MAX).for_each(|_| peer.note_late());
        assert!(peer.is_there(), "it answered in between");
        peer.note_late();
        assert!(!peer.is_there());
        let wrong = source();
        wrong.note_failed(limits::PEER_SOURCE_WRONG_FOR);
        wrong.note_failed(limits::PEER_SOURCE_AWAY_FOR);
        let until = lock(&wrong.health).away_until.expect("it is not asked");
        assert!(until > Instant::now() + limits::PEER_SOURCE_AWAY_FOR, "a later failure makes it no shorter");
    }
}
