//! Placement data for schedulers: what a node has, and how near a resume there would be.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::SnapshotState;

/// Nearness of the bytes that a resume of a snapshot on a node reads. It is a hint: it holds at the moment of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResumeHint {
    /// All of them are on the node.
    Local,
    /// Some of them are; the others come from the store, or from other nodes.
    Warm,
    /// None of them is on the node, or it does not know the snapshot.
    Remote,
}

impl ResumeHint {
    /// The hint in one word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Warm => "warm",
            Self::Remote => "remote",
        }
    }
}

/// Snapshots that a scheduler asks a node about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PlacementQuery {
    /// A snapshot, by its whole id; given again, each of them, 256 at most. Without any, the answer has the newest snapshots
    /// of the store that the node has bytes of, 64 at most.
    #[serde(default, rename = "snapshot", skip_serializing_if = "Vec::is_empty")]
    #[param(max_items = 256)]
    pub snapshots: Vec<Uuid>,
}

/// A node as a scheduler sees it, from what the daemon has in memory: neither the store nor the disk is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodePlacement {
    /// The name of the node's machine.
    pub node: String,
    /// Host and port at which other nodes reach it; absent if they are not served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// True if it takes new guests: it is not drained.
    pub open: bool,
    /// Sandboxes whose guests run.
    pub running: u64,
    /// Snapshots that it knows.
    pub snapshots: u64,
    /// Bytes of layers that take blocks of its disk.
    pub layer_bytes: u64,
    /// Bytes that they may take; absent without a bound. Copies of what the store has make room by themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_bytes_max: Option<u64>,
    /// Bytes of RAM that captures hold.
    pub capture_bytes: u64,
    /// Bytes of RAM that they may hold: a pause that needs more waits.
    pub capture_bytes_max: u64,
    /// The last event before this answer. The stream of events after it has all later changes.
    pub event: u64,
    /// The snapshots that were asked about, in that order, or the newest that are here, the newest first.
    pub placed: Vec<PlacedSnapshot>,
}

/// A snapshot as a node has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlacedSnapshot {
    /// The snapshot.
    pub snapshot: Uuid,
    /// Its stage; absent if the node does not know it, though the store may have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<SnapshotState>,
    /// Nearness of a resume; absent if it cannot be resumed from here now: it is lost, or undecided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<ResumeHint>,
    /// Bytes of its layers' pages, or of its volumes while it is remote; absent if the node does not know it. Pages that are
    /// captured and not sealed are in RAM, and count neither here nor below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Those of them that are on the node.
    pub local_bytes: u64,
}
