//! The status of a snapshot at one moment, and the parts of the time of its seal.

use std::time::Duration;

use crate::compare::PageClasses;
use crate::lifecycle::SnapshotState;

/// Status of a snapshot at one moment.
#[derive(Debug, Clone)]
pub struct SnapshotStatus {
    /// Its state.
    pub state: SnapshotState,
    /// Counts of its captured pages, once they are compared.
    pub classes: Option<PageClasses>,
    /// Time of its seal, from the proof that its memory is frozen, once it has succeeded.
    pub seal_time: Option<Duration>,
    /// Parts of that time, if it was sealed since this engine started.
    pub seal_parts: Option<SealParts>,
    /// Error of the last failed try to seal or publish; none after a success. For a lost one, the reason.
    pub failure: Option<String>,
    /// True if it counts as lost only until its record can be read.
    pub is_undecided: bool,
    /// The other node that has it, if it has no names yet.
    pub remote: Option<RemoteStatus>,
}

/// A snapshot that another node has, as far as it is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteStatus {
    /// The node.
    pub node: String,
    /// Bytes that have not come from there.
    pub missing_bytes: u64,
}

/// Parts of the time of a seal; for each part, the time of its last try.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SealParts {
    /// Waiting for the proof that the captured memory can no longer be written; the seal's own time begins after it.
    pub proof: Duration,
    /// Waiting for other seals that compare.
    pub turn: Duration,
    /// Comparing with the parent.
    pub compare: Duration,
    /// Writing the layer.
    pub pack: Duration,
    /// Waiting for the parent's manifest, merging layers if there are many, and making the manifest.
    pub name: Duration,
}

/// The snapshot has no manifest yet, at the end of the wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the snapshot was not sealed in time")]
pub struct NoManifestYet;
