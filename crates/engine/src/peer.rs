//! Another node, as this one asks it for a snapshot that has no names yet, and for layers.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::captured_facts::CapturedFacts;
use crate::frame::{FrameNumber, frame_bytes};
use crate::geometry::GuestPages;
use crate::identity::{DomainName, LayerId, SnapshotId, VolumeName};
use crate::limits::{BLOB_BYTES_MAX, MANIFEST_BLOBS_MAX, NAME_BYTES_MAX};
use crate::origin::Origin;
use crate::urgency::Class;
use crate::wire::{Reader, WireError, Writer};

/// A node that has snapshots which this one may read.
pub trait Peer: fmt::Debug + Send + Sync {
    /// Its name or address, as a request or the settings say it.
    fn node(&self) -> &str;

    /// Everything about a snapshot but its pages.
    fn describe(&self, snapshot: SnapshotId) -> BoxFuture<'_, Result<Described, PeerError>>;

    /// The bytes of guest pages, in the order in which they are wanted; exactly as many as were asked for.
    fn pages(&self, wanted: WantedPages, class: Class) -> BoxFuture<'_, Result<Vec<u8>, PeerError>>;

    /// Waits a while until a snapshot is in the store; true if it is.
    fn published(&self, snapshot: SnapshotId) -> BoxFuture<'_, Result<bool, PeerError>>;

    /// The bytes of each of these layers that are on its disk, and the engine that says so.
    fn layers(&self, layers: Vec<LayerId>) -> BoxFuture<'_, Result<HeldLayers, PeerError>>;

    /// The raw bytes of frames of a layer, in the order in which they are wanted; none for one that it does not have. They are
    /// as long as they must be, and nothing else about them is known.
    fn frames(
        &self,
        wanted: WantedLayer,
        class: Class,
    ) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, PeerError>>;
}

/// The nodes that this one may read from.
pub trait Peers: fmt::Debug + Send + Sync {
    /// The node of this name or address. Nothing is asked of it yet.
    fn at(&self, node: &str) -> Result<Arc<dyn Peer>, PeerError>;

    /// The nodes that this one may ask for layers: their names or addresses.
    fn all(&self) -> BoxFuture<'_, Vec<String>>;

    /// The name or address at which this node asks the one that calls itself so; an error if that is none of its peers.
    fn named_by<'a>(&'a self, origin: &'a Origin) -> BoxFuture<'a, Result<String, PeerError>>;
}

/// No nodes.
#[derive(Debug)]
pub struct NoPeers;

/// Guest pages of one volume of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedPages {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The volume's position; memory is the first.
    pub volume: u8,
    /// The pages.
    pub runs: Vec<GuestPages>,
}

/// Frames of a layer, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedLayer {
    /// The layer.
    pub layer: LayerId,
    /// Its packed pages.
    pub pages: u32,
    /// The frames, by their positions.
    pub frames: Range<usize>,
}

/// The bytes of layers that a node has on its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldLayers {
    /// The engine that has them, which is another one after each start.
    pub engine: EngineId,
    /// The bytes of each layer, in the order in which they were asked for.
    pub bytes: Vec<u64>,
}

/// A running engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineId(pub [u8; 16]);

/// A snapshot as its node describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// The domain that it belongs to.
    pub domain: DomainName,
    /// True if its manifest is in the store.
    pub is_published: bool,
    /// Everything else but its pages.
    pub facts: CapturedFacts,
}

/// Reason that another node gave no answer that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// This node has no settings for reading from others, or the name means no address.
    #[error("node {node} cannot be asked: {reason}")]
    Unconfigured {
        /// The node.
        node: String,
        /// The missing thing.
        reason: String,
    },
    /// It does not answer, or the connection broke.
    #[error("node {node} cannot be reached: {reason}")]
    Away {
        /// The node.
        node: String,
        /// The error of the connection.
        reason: String,
    },
    /// It is no node of this fleet, or does not take this one for one.
    #[error("node {node} and this one do not trust each other: {reason}")]
    Untrusted {
        /// The node.
        node: String,
        /// The fault in a certificate.
        reason: String,
    },
    /// It speaks another version of the protocol.
    #[error("node {node} speaks version {theirs} of the peer protocol, and this one version {ours}")]
    Version {
        /// The node.
        node: String,
        /// Its version.
        theirs: u32,
        /// This node's version.
        ours: u32,
    },
    /// It does not have the snapshot.
    #[error("node {node} does not have snapshot {snapshot}")]
    Unknown {
        /// The node.
        node: String,
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// It has the snapshot and cannot read it now, or is busy.
    #[error("node {node} cannot answer now: {reason}")]
    Refused {
        /// The node.
        node: String,
        /// Its words.
        reason: String,
    },
    /// It does not know such a request, so nothing was done.
    #[error("node {node} does not understand the request: {reason}")]
    NotUnderstood {
        /// The node.
        node: String,
        /// Its words.
        reason: String,
    },
    /// Its answer is not one to the request.
    #[error("node {node} gave an answer that cannot be used: {reason}")]
    Wrong {
        /// The node.
        node: String,
        /// The fault.
        reason: String,
    },
}

impl Peers for NoPeers {
    fn at(&self, node: &str) -> Result<Arc<dyn Peer>, PeerError> {
        let reason = "this node has no peers: the settings peers.certificate, peers.key and peers.authority are missing";
        Err(PeerError::Unconfigured { node: node.to_owned(), reason: reason.to_owned() })
    }

    fn all(&self) -> BoxFuture<'_, Vec<String>> {
        Box::pin(std::future::ready(Vec::new()))
    }

    fn named_by<'a>(&'a self, origin: &'a Origin) -> BoxFuture<'a, Result<String, PeerError>> {
        Box::pin(async move { self.at(&origin.address).map(|_| origin.address.clone()) })
    }
}

impl EngineId {
    /// The id of an engine that starts now.
    pub(crate) fn new() -> Self {
        Self(*SnapshotId::new().as_bytes())
    }
}

impl WantedLayer {
    /// Bytes of each of the frames.
    pub fn lengths(&self) -> impl Iterator<Item = usize> + '_ {
        self.frames.clone().map(|frame| frame_bytes(FrameNumber::new(frame), self.pages))
    }
}

impl WantedPages {
    /// Pages of all runs.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.count())).sum()
    }
}

impl Described {
    /// The one encoding.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.text(self.domain.as_str());
        writer.u8(self.is_published.into());
        self.facts.write(&mut writer);
        writer.into_bytes()
    }

    /// Reads what [`Described::encode`] wrote, and refuses all else.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let domain = reader.text("domain", NAME_BYTES_MAX)?.parse();
        let domain = domain.map_err(|_| reader.invalid("domain", "the text names no domain"))?;
        let is_published = match reader.u8("published")? {
            0 => false,
            1 => true,
            _ => return Err(reader.invalid("published", "it is neither so nor not so")),
        };
        let facts = CapturedFacts::read(&mut reader)?;
        let names: BTreeSet<&VolumeName> = facts.volumes.iter().map(|volume| &volume.name).collect();
        let is_memory = facts.volumes.first().is_some_and(|volume| volume.name == VolumeName::memory());
        if !is_memory || names.len() != facts.volumes.len() {
            return Err(reader.invalid("volumes", "memory is not the first, or two have one name"));
        }
        reader.finish()?;
        Ok(Self { domain, is_published, facts })
    }

    /// Bytes that an encoding has at most.
    pub const BYTES_MAX: usize = MANIFEST_BLOBS_MAX * BLOB_BYTES_MAX + (1 << 20);
}
