//! What the control API takes and gives, as JSON. Ids are UUIDs in lower case; times are milliseconds since 1970; sizes
//! are bytes unless a name says pages of 4096 bytes.

mod daemon;
mod machine;
mod memory;
mod schemas;
pub(crate) mod shapes;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

pub use daemon::{Event, EventsQuery, Health, ProblemBody, Readiness, Version};
pub use machine::{
    Accelerator, Board, ConsoleInput, ConsoleOutput, ConsoleQuery, DiskImage, Machine, ShownBootFile,
    ShownDisk, ShownMachine, Tap, TapName,
};
pub use memory::{
    CaptureMemory, CaptureSource, FaultSocket, FaultSocketState, MemoryRegion, OpenFaultSocket, WriteTracking,
};

/// Words a user puts on a resource.
pub type Labels = BTreeMap<String, String>;

/// How a sandbox stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SandboxState {
    /// Its guest runs.
    Running,
    /// Its guest waits for a page that cannot be had now, or its VMM has stopped it; the reason is beside it.
    Stalled,
    /// Its guest ended with a snapshot, from which it can be resumed.
    Paused,
    /// Its guest ended, or was ended, without a snapshot.
    Stopped,
    /// What it needs was lost; the reason is beside it.
    Lost,
    /// How it is cannot be said now; the reason is beside it, and it is tried again.
    Undecided,
}

impl fmt::Display for SandboxState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Stalled => "stalled",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Lost => "lost",
            Self::Undecided => "undecided",
        })
    }
}

/// What a sandbox's guest runs in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmmKind {
    /// rekindle's own process guest: real memory and real page faults, no virtual machine.
    #[default]
    Process,
    /// A virtual machine in an unmodified QEMU.
    Qemu,
    /// A virtual machine in an unmodified Firecracker.
    Firecracker,
}

/// What guest memory is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemoryBacking {
    /// A shared memory file, which a pause takes over as it is.
    #[default]
    Shared,
    /// Private memory, of which a pause copies what was written.
    Private,
    /// A shared memory file of 2 MiB pages.
    Huge,
}

/// A sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sandbox {
    /// Its id, a UUID version 7.
    pub id: Uuid,
    /// Its name, unique among sandboxes.
    pub name: Option<String>,
    /// Its labels.
    #[schema(schema_with = schemas::labels)]
    pub labels: Labels,
    /// How it stands.
    pub state: SandboxState,
    /// Why it is stalled, stopped or lost, where that needs saying.
    pub reason: Option<String>,
    /// What it runs in.
    pub vmm: VmmKind,
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// What its memory is made of.
    pub backing: MemoryBacking,
    /// Its machine, where it is a virtual one.
    #[serde(default)]
    pub machine: Option<ShownMachine>,
    /// The process of its VMM while it runs.
    pub pid: Option<u32>,
    /// The snapshot its memory came from, if any.
    pub origin: Option<Uuid>,
    /// The snapshot of its last pause, if any.
    pub snapshot: Option<Uuid>,
    /// When it was made.
    pub created_unix_ms: u64,
    /// Pages served to its guest since it was last resumed.
    pub served: Option<ServedPages>,
}

/// Pages of 4096 bytes installed into a running guest, by where they came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServedPages {
    /// From captures: their snapshots were not saved yet.
    pub from_capture: u64,
    /// From layers.
    pub from_layer: u64,
    /// Known to be zero.
    pub zero: u64,
    /// Page faults answered.
    pub faults: u64,
}

/// How far a snapshot has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotState {
    /// Its memory is frozen in RAM; everything can be done with it.
    Captured,
    /// Its layers are on this node's disk.
    Sealed,
    /// It is in the store.
    Published,
    /// It was deleted; what it holds goes as soon as nobody stands on it.
    Discarded,
    /// Its memory was lost before it was sealed.
    Lost,
    /// How it is cannot be said now; the reason is beside it, and it is tried again.
    Undecided,
}

impl fmt::Display for SnapshotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Captured => "captured",
            Self::Sealed => "sealed",
            Self::Published => "published",
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
    pub name: Option<String>,
    /// Its labels.
    #[schema(schema_with = schemas::labels)]
    pub labels: Labels,
    /// How far it has come.
    pub state: SnapshotState,
    /// What the last failed try to save it said, or why it is lost.
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
    /// How its captured pages fell, once it is sealed.
    pub classes: Option<PageClasses>,
    /// How long its seal took, in seconds, once it is sealed.
    pub seal_seconds: Option<f64>,
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
    /// All that were looked at.
    pub dirty: u64,
    /// Those that are zero.
    pub zero: u64,
    /// Those equal to the parent's.
    pub equal: u64,
    /// Those kept in the layer.
    pub kept: u64,
}

/// Which bytes a snapshot is made of and where they are; empty until it is sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Placement {
    /// The snapshot.
    pub snapshot: Uuid,
    /// How far it has come.
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

/// What a new sandbox is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSandbox {
    /// Its name.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    pub name: Option<String>,
    /// Its labels.
    #[serde(default, deserialize_with = "shapes::texts")]
    #[schema(schema_with = schemas::labels)]
    pub labels: Labels,
    /// What it runs in.
    #[serde(default, deserialize_with = "shapes::word")]
    pub vmm: VmmKind,
    /// Bytes of guest memory, a multiple of 4096 (of 2097152 for huge pages).
    #[schema(minimum = 4096, maximum = 1_099_511_627_776_i64, multiple_of = 4096)]
    pub memory_bytes: u64,
    /// What its memory is made of.
    #[serde(default, deserialize_with = "shapes::word")]
    pub backing: MemoryBacking,
    /// What its machine is started with; for virtual machines, which must have one, and for them only.
    #[serde(default, deserialize_with = "shapes::object_or_none")]
    pub machine: Option<Machine>,
}

/// How a sandbox is to be paused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PauseSandbox {
    /// The snapshot's name.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    pub name: Option<String>,
    /// The snapshot's labels.
    #[serde(default, deserialize_with = "shapes::texts")]
    #[schema(schema_with = schemas::labels)]
    pub labels: Labels,
}

/// How a sandbox is to be resumed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResumeSandbox {
    /// Whether to serve it before its snapshot is sealed; the setting where it is not said.
    #[serde(default)]
    pub serve_before_seal: Option<bool>,
    /// The tap devices of its machine's network devices, in their order; those it had last where they are not said.
    #[serde(default)]
    #[schema(max_items = 8)]
    pub taps: Option<Vec<TapName>>,
    /// Whether one that is `stopped` or `lost` goes on from its last snapshot: what its guest did after that is gone.
    #[serde(default)]
    pub from_last_snapshot: bool,
}

/// How new sandboxes are to be made of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResumeSnapshot {
    /// How many; 1 where it is not said.
    #[serde(default = "one")]
    #[schema(default = 1, minimum = 1, maximum = 256)]
    pub count: u32,
    /// Their name; with a number behind it where they are several.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 56, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    pub name: Option<String>,
    /// Their labels.
    #[serde(default, deserialize_with = "shapes::texts")]
    #[schema(schema_with = schemas::labels)]
    pub labels: Labels,
    /// Whether to serve them before the snapshot is sealed; the setting where it is not said.
    #[serde(default)]
    pub serve_before_seal: Option<bool>,
    /// The tap devices of the one machine's network devices, in their order; those it had last where they are not said.
    #[serde(default)]
    #[schema(max_items = 8)]
    pub taps: Option<Vec<TapName>>,
}

fn one() -> u32 {
    1
}

impl Default for ResumeSnapshot {
    fn default() -> Self {
        Self { count: one(), name: None, labels: Labels::new(), serve_before_seal: None, taps: None }
    }
}

/// How a sandbox is to be forked: a running one is paused for it and goes on from the same snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkSandbox {
    /// How many forks.
    #[serde(default = "one")]
    #[schema(default = 1, minimum = 1, maximum = 256)]
    pub count: u32,
    /// Their name; with a number behind it where they are several.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 56, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    pub name: Option<String>,
    /// Their labels.
    #[serde(default, deserialize_with = "shapes::texts")]
    #[schema(schema_with = schemas::labels)]
    pub labels: Labels,
}

impl Default for ForkSandbox {
    fn default() -> Self {
        Self { count: one(), name: None, labels: Labels::new() }
    }
}

/// Sandboxes, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SandboxList {
    /// This page of them.
    pub sandboxes: Vec<Sandbox>,
    /// What `after` is to be for the next page; absent on the last.
    pub next: Option<Uuid>,
}

/// Snapshots, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotList {
    /// This page of them.
    pub snapshots: Vec<Snapshot>,
    /// What `after` is to be for the next page; absent on the last.
    pub next: Option<Uuid>,
}

/// Which page of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// At most so many, 1 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<u32>,
    /// Only those after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Uuid>,
    /// Only those with this label, `name=value`; said again, only those with all of them.
    #[serde(default, rename = "label", skip_serializing_if = "Vec::is_empty")]
    #[param(inline, max_items = 64, value_type = Vec<schemas::LabelFilter>)]
    pub labels: Vec<String>,
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// The state to wait for, or one beyond it.
    #[param(inline, value_type = schemas::AwaitedState)]
    pub state: SnapshotState,
    /// At most so many seconds, 0 to 600; 60 where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(minimum = 0, maximum = 600)]
    pub timeout_seconds: Option<u32>,
}

/// What verifying a snapshot found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Verification {
    /// The snapshot.
    pub snapshot: Uuid,
    /// Pages read and checked against what the layers' names commit to.
    pub pages: u64,
    /// Pages that could not be read as they must be.
    pub wrong_pages: u64,
    /// What was wrong with the first of them.
    pub first: Option<String>,
}
