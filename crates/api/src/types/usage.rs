//! Bytes that snapshots take in the store and on a node.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// Everything in the store, and this node's disk. The five parts of `stored_bytes` add up to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Objects in the store, of whatever node.
    pub stored_objects: u64,
    /// Their bytes.
    pub stored_bytes: u64,
    /// Part of them: manifests and working sets of snapshots.
    pub own_bytes: u64,
    /// Part of them: layers that one snapshot names.
    pub unique_bytes: u64,
    /// Part of them: layers that several snapshots name, each counted once.
    pub shared_bytes: u64,
    /// Part of them: layers that no snapshot names, and what is left of deleted snapshots.
    pub unnamed_bytes: u64,
    /// Part of them: the store's own objects, such as roots and tombstones.
    pub bookkeeping_bytes: u64,
    /// Snapshots in the store.
    pub snapshots: u64,
    /// Those of them whose manifest an older program put, without an edition: their layers count as unnamed.
    pub unread_snapshots: u64,
    /// Bytes of layers that take blocks of this node's disk.
    pub local_bytes: u64,
    /// Bytes of layers that are on this node and nowhere else.
    pub only_here_bytes: u64,
    /// The snapshots whose deletion gives most back, the largest first; twenty at most.
    pub largest: Vec<SnapshotUsage>,
}

/// Bytes of one snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotUsage {
    /// The snapshot.
    pub snapshot: Uuid,
    /// Bytes in the store: the three parts that follow.
    pub stored_bytes: u64,
    /// Part of them: its manifest and working sets.
    pub own_bytes: u64,
    /// Part of them: layers that only it names.
    pub unique_bytes: u64,
    /// Part of them: layers that others name too.
    pub shared_bytes: u64,
    /// Bytes of the store that its deletion gives back.
    pub freed_bytes: u64,
    /// Bytes of its layers that take blocks of this node's disk.
    pub local_bytes: u64,
}
