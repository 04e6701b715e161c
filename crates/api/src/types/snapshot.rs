//! Snapshots, their places, and what verifying them finds.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{Labels, Name, schemas};

/// Stage that a snapshot has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotState {
    /// Its memory is frozen in RAM; everything can be done with it.
    Captured,
    /// Its layers are on this node's disk.
    Sealed,
    /// It is in the store.
    Published,
    /// Another node has it, and it is not in the store yet: its pages come from there.
    Remote,
    /// It was deleted; its memory or bytes go as soon as nothing depends on it.
    Discarded,
    /// Its memory was lost before it was sealed.
    Lost,
    /// Its state is unknown for now; the reason is beside it, and it is tried again.
    Undecided,
}

impl fmt::Display for SnapshotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Captured => "captured",
            Self::Sealed => "sealed",
            Self::Published => "published",
            Self::Remote => "remote",
            Self::Discarded => "discarded",
            Self::Lost => "lost",
            Self::Undecided => "undecided",
        })
    }
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// Its id, a UUID version 7.
    pub id: Uuid,
    /// Its name, unique among snapshots.
    #[schema(value_type = Option<String>)]
    pub name: Option<Name>,
    /// Its labels.
    #[schema(schema_with = schemas::labels)]
    pub labels: Labels,
    /// The domain that it belongs to.
    pub domain: String,
    /// Its stage.
    pub state: SnapshotState,
    /// Error of the last failed try to save it, or the reason that it is lost.
    pub reason: Option<String>,
    /// The snapshot it is a change of.
    pub parent: Option<Uuid>,
    /// The sandbox that was paused, if one was.
    pub sandbox: Option<Uuid>,
    /// Pauses before it in its line.
    pub generation: u64,
    /// When it was made.
    pub created_unix_ms: u64,
    /// Its volumes, memory first.
    pub volumes: Vec<Volume>,
    /// The node that can serve it now, as long as it is in no store: absent if nodes are not served here.
    #[serde(default)]
    pub origin: Option<Origin>,
    /// Bytes that have not come from the node that has it, while it is remote.
    #[serde(default)]
    pub missing_bytes: Option<u64>,
    /// Counts of its captured pages, once it is sealed.
    pub classes: Option<PageClasses>,
    /// Time of its seal, in seconds, once it is sealed.
    pub seal_seconds: Option<f64>,
}

/// A node that has a snapshot which is in no store yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Origin {
    /// Its name: of its machine, or for another node as a request or the settings of this one call it.
    pub node: String,
    /// Host and port at which other nodes reach it, if it is this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// An address space of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// `memory`, or a disk's name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Bytes of the pages its guest maps it with.
    pub page_bytes: u64,
}

/// Captured pages of 4096 bytes by what comparing found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PageClasses {
    /// All pages that were captured.
    pub dirty: u64,
    /// Those that are zero.
    pub zero: u64,
    /// Those equal to the parent's.
    pub equal: u64,
    /// Those kept in the layer.
    pub kept: u64,
}

/// A snapshot that was deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeletedSnapshot {
    /// The snapshot.
    pub snapshot: Uuid,
    /// Other nodes with sandboxes that run from it, by their names in the store, as far as the store told them soon. These
    /// sandboxes go on.
    pub used_by: Vec<Uuid>,
    /// Seconds for which it can be brought back at least, from the time at which its deletion is in the store; absent if it
    /// is deleted for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undelete_seconds: Option<u64>,
}

/// The verdict of the setting `keep` on a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeptSnapshot {
    /// The snapshot.
    pub snapshot: Uuid,
    /// True if it is kept; otherwise it is deleted within an hour.
    pub kept: bool,
    /// Reason, with the rule.
    pub reason: String,
}

/// Layers that a snapshot is made of, and their places; empty until it is sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Placement {
    /// The snapshot.
    pub snapshot: Uuid,
    /// Its stage.
    pub state: SnapshotState,
    /// The node that can serve it now although it is in no store yet.
    pub origin: Option<String>,
    /// The layers its manifest names; none before it has one.
    pub layers: Vec<PlacedLayer>,
}

/// A layer a manifest names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlacedLayer {
    /// Its id: the hash of its content.
    pub id: String,
    /// Bytes of its pages.
    pub bytes: u64,
    /// Of those, bytes on this node's disk.
    pub local_bytes: u64,
    /// Bytes of its object, where it is stored.
    pub stored_bytes: Option<u64>,
}

/// Snapshots, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotList {
    /// This page of them.
    pub snapshots: Vec<Snapshot>,
    /// Value of `after` for the next page; absent on the last.
    pub next: Option<Uuid>,
}

/// A snapshot in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoredSnapshot {
    /// Its id, which begins with the time of its pause.
    pub id: Uuid,
    /// Its name, if this node knows it and it has one.
    #[schema(value_type = Option<String>)]
    pub name: Option<Name>,
    /// True if this node knows it already; any other is opened when it is first used here.
    pub is_known: bool,
    /// Time of the store at which it was published, in milliseconds since 1970.
    pub stored_unix_ms: u64,
}

/// Snapshots in the store, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoredSnapshotList {
    /// All of them.
    pub snapshots: Vec<StoredSnapshot>,
}

/// A deleted snapshot that can be brought back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WithdrawnSnapshot {
    /// Its id, which begins with the time of its pause.
    pub id: Uuid,
    /// The node that deleted it: its machine's name and its own name in the store, as far as they are known.
    pub deleted_by: Option<String>,
    /// Time of the store at which it was deleted, in milliseconds since 1970.
    pub deleted_unix_ms: u64,
    /// Time of the store until which it can be brought back at least, in milliseconds since 1970.
    pub until_unix_ms: u64,
}

/// Deleted snapshots that can be brought back, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WithdrawnSnapshotList {
    /// All of them.
    pub snapshots: Vec<WithdrawnSnapshot>,
}

/// Target and time limit of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// The state to wait for, or one beyond it.
    #[param(inline, value_type = schemas::AwaitedState)]
    pub state: SnapshotState,
    /// Longest wait in seconds, 0 to 600; 60 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(minimum = 0, maximum = 600)]
    pub timeout_seconds: Option<u32>,
}

/// Result of verifying a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Verification {
    /// The snapshot.
    pub snapshot: Uuid,
    /// Pages read and checked against what the layers' names commit to.
    pub pages: u64,
    /// Pages that could not be read as they must be.
    pub wrong_pages: u64,
    /// The fault of the first of them.
    pub first: Option<String>,
    /// Findings in the store.
    pub store: StoreVerification,
}

/// Findings in the store about a snapshot that is verified: its manifest and each object that the manifest names have to
/// be there, with the right size. Their bytes are not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreVerification {
    /// If it was asked.
    pub state: StoreVerificationState,
    /// Objects it was asked for.
    pub objects: u64,
    /// Objects that are missing, or of another size.
    pub wrong_objects: u64,
    /// The fault of the first of them, or the reason that the store was not asked.
    pub reason: Option<String>,
}

/// If the store was asked about a snapshot that is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StoreVerificationState {
    /// No: the snapshot is not published, and nothing of it has to be in the store.
    NotPublished,
    /// No: it is away, or gave no answer.
    NotAsked,
    /// Yes.
    Asked,
}
