//! Types of the control API's requests and answers, as JSON. Ids are UUIDs in lower case; times are milliseconds since
//! 1970; sizes are bytes unless a name says pages of 4096 bytes.

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

/// State of a sandbox.
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
    /// A part it needs was lost; the reason is beside it.
    Lost,
    /// Its state is unknown for now; the reason is beside it, and it is tried again.
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

/// Kind of VMM that a sandbox's guest runs in.
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

/// Backing of guest memory.
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
    /// Private memory of 2 MiB pages; of a process guest only.
    PrivateHuge,
}

impl MemoryBacking {
    /// Bytes of a page of such memory.
    pub fn page_bytes(self) -> u64 {
        match self {
            Self::Shared | Self::Private => 4096,
            Self::Huge | Self::PrivateHuge => 2 << 20,
        }
    }

    /// True if its pages are huge ones, which a host has reserved.
    pub fn is_huge(self) -> bool {
        matches!(self, Self::Huge | Self::PrivateHuge)
    }
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
    /// Its state.
    pub state: SandboxState,
    /// The reason that it is stalled, stopped or lost, if one is known.
    pub reason: Option<String>,
    /// The VMM it runs in.
    pub vmm: VmmKind,
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// Backing of its memory.
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
    /// Counts of its captured pages, once it is sealed.
    pub classes: Option<PageClasses>,
    /// Time of its seal, in seconds, once it is sealed.
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
    /// All pages that were captured.
    pub dirty: u64,
    /// Those that are zero.
    pub zero: u64,
    /// Those equal to the parent's.
    pub equal: u64,
    /// Those kept in the layer.
    pub kept: u64,
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

/// A new sandbox.
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
    /// The VMM it runs in.
    #[serde(default, deserialize_with = "shapes::word")]
    pub vmm: VmmKind,
    /// Bytes of guest memory, a multiple of 4096 (of 2097152 for huge pages).
    #[schema(minimum = 4096, maximum = 1_099_511_627_776_i64, multiple_of = 4096)]
    pub memory_bytes: u64,
    /// Backing of its memory.
    #[serde(default, deserialize_with = "shapes::word")]
    pub backing: MemoryBacking,
    /// Its machine; for virtual machines, which must have one, and for them only.
    #[serde(default, deserialize_with = "shapes::object_or_none")]
    pub machine: Option<Machine>,
}

/// Options of a pause.
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

/// Options of a resume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResumeSandbox {
    /// True to serve it before its snapshot is sealed; the setting by default.
    #[serde(default)]
    pub serve_before_seal: Option<bool>,
    /// The tap devices of its machine's network devices, in their order; those it had last where they are not said.
    #[serde(default)]
    #[schema(max_items = 8)]
    pub taps: Option<Vec<TapName>>,
    /// True to let a `stopped` or `lost` sandbox go on from its last snapshot: everything its guest did after that is
    /// gone.
    #[serde(default)]
    pub from_last_snapshot: bool,
}

/// New sandboxes to be made of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResumeSnapshot {
    /// Number of sandboxes; 1 by default.
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
    /// True to serve them before the snapshot is sealed; the setting by default.
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

/// Options of a fork: a running sandbox is paused for it and goes on from the same snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkSandbox {
    /// Number of forks.
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
    /// Value of `after` for the next page; absent on the last.
    pub next: Option<Uuid>,
}

/// Snapshots, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotList {
    /// This page of them.
    pub snapshots: Vec<Snapshot>,
    /// Value of `after` for the next page; absent on the last.
    pub next: Option<Uuid>,
}

/// One page of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Largest number on a page, 1 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<u32>,
    /// Only those after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Uuid>,
    /// Only those with this label, `name=value`; given again, only those with all of them.
    #[serde(default, rename = "label", skip_serializing_if = "Vec::is_empty")]
    #[param(inline, max_items = 64, value_type = Vec<schemas::LabelFilter>)]
    pub labels: Vec<String>,
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
