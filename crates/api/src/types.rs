//! Types of the control API's requests and answers, as JSON. Ids are UUIDs in lower case; times are milliseconds since
//! 1970; sizes are bytes unless a name says pages of 4096 bytes.

mod checkpoints;
mod collection;
mod daemon;
mod machine;
mod memory;
mod names;
mod network;
mod numbers;
mod placement;
mod resuming;
mod schemas;
pub(crate) mod shapes;
mod snapshot;
mod usage;

use std::fmt;

use rekindle_engine::identity::DomainName;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

pub use checkpoints::{CheckpointSandbox, PeriodicCheckpoints};
pub use collection::{Collect, Collection, ObjectVerdict};
pub use daemon::{
    Drain, DrainNode, DrainedSandbox, Event, EventsQuery, Health, ProblemBody, Readiness, Version,
};
pub use machine::{
    Accelerator, Board, ConnectSandbox, ConsoleInput, ConsoleOutput, ConsoleQuery, DiskImage, Machine,
    ShownBootFile, ShownDisk, ShownMachine, Tap,
};
pub use memory::{
    CaptureMemory, CaptureSource, FaultSocket, FaultSocketState, MemoryRegion, OpenFaultSocket, WriteTracking,
};
pub use names::{LabelFilter, Labels, Name, NameOfSeveral, NotAName, Reference};
pub(crate) use names::{is_name, name_rule};
pub use network::{Netns, NoNetwork, TapName, Which};
pub use numbers::{OutOfRange, PageLimit, SandboxCount};
pub use placement::{NodePlacement, PlacedSnapshot, PlacementQuery, ResumeHint};
pub use resuming::{MemoryMode, Prefault};
pub use snapshot::{
    DeletedSnapshot, KeptSnapshot, Origin, PageClasses, PlacedLayer, Placement, Snapshot, SnapshotList,
    SnapshotState, StoreVerification, StoreVerificationState, StoredSnapshot, StoredSnapshotList,
    Verification, Volume, WaitQuery, WithdrawnSnapshot, WithdrawnSnapshotList,
};
pub use usage::{SnapshotUsage, Usage};

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
    #[schema(value_type = Option<String>)]
    pub name: Option<Name>,
    /// Its labels.
    #[schema(schema_with = schemas::labels)]
    pub labels: Labels,
    /// The domain that its snapshots belong to; absent while its record cannot be read.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub domain: Option<DomainName>,
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
    /// The snapshot of its last pause or checkpoint, if any.
    pub snapshot: Option<Uuid>,
    /// The checkpoints that it takes in a period, if it takes any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<PeriodicCheckpoints>,
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
    /// From another node that has their snapshot, which was not saved yet.
    #[serde(default)]
    pub from_peer: u64,
    /// Mapped from the memory that guests of one snapshot share, which had them already.
    #[serde(default)]
    pub shared: u64,
    /// Known to be zero.
    pub zero: u64,
    /// Page faults answered.
    pub faults: u64,
}

/// A new sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSandbox {
    /// Its name.
    #[serde(default)]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    pub name: Option<Name>,
    /// Its labels.
    #[serde(default, deserialize_with = "shapes::labels")]
    #[schema(schema_with = schemas::labels)]
    pub labels: Labels,
    /// The domain that its snapshots belong to, of which the node must have a key; the node's own by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 64, pattern = "^[a-z0-9-]+$")]
    pub domain: Option<DomainName>,
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
    /// The checkpoints that it takes in a period; none where they are not said.
    #[serde(default, deserialize_with = "shapes::object_or_none", skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<PeriodicCheckpoints>,
}

/// Options of a pause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PauseSandbox {
    /// The snapshot's name.
    #[serde(default)]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    pub name: Option<Name>,
    /// The snapshot's labels.
    #[serde(default, deserialize_with = "shapes::labels")]
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
    /// The network namespace that its VMM runs in; the one it had last where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// True to let a `stopped` or `lost` sandbox go on from its last snapshot: everything its guest did after that is
    /// gone. One that takes checkpoints in a period does so in any case.
    #[serde(default)]
    pub from_last_snapshot: bool,
    /// The pages to bring ahead of its guest; the setting by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefault: Option<Prefault>,
    /// Whose pages its guest runs on; where it is not said, the setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mode: Option<MemoryMode>,
    /// The checkpoints that it takes in a period from now on; as before where they are not said.
    #[serde(default, deserialize_with = "shapes::object_or_none", skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<PeriodicCheckpoints>,
}

/// New sandboxes to be made of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResumeSnapshot {
    /// Number of sandboxes.
    #[serde(default)]
    #[schema(schema_with = SandboxCount::schema)]
    pub count: SandboxCount,
    /// Their name; with a number behind it where they are several.
    #[serde(default)]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 56, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    pub name: Option<NameOfSeveral>,
    /// Their labels.
    #[serde(default, deserialize_with = "shapes::labels")]
    #[schema(schema_with = schemas::labels)]
    pub labels: Labels,
    /// True to serve them before the snapshot is sealed; the setting by default.
    #[serde(default)]
    pub serve_before_seal: Option<bool>,
    /// The tap devices of each machine's network devices, in their order; those of the snapshot where they are not said.
    #[serde(default)]
    #[schema(max_items = 8)]
    pub taps: Option<Vec<TapName>>,
    /// The network namespace that each VMM runs in; the one of the snapshot where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// The pages to bring ahead of their guests; the setting by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefault: Option<Prefault>,
    /// Whose pages their guests run on; where it is not said, the setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mode: Option<MemoryMode>,
    /// The node that has the snapshot, which need not be saved yet: a name in the setting `peers.static`, or an address with
    /// its port. Without it, a snapshot that is not saved yet is looked for at the node that says in the store that it has it;
    /// then its whole id is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 255)]
    pub from: Option<String>,
    /// The checkpoints that each of them takes in a period; none where they are not said.
    #[serde(default, deserialize_with = "shapes::object_or_none", skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<PeriodicCheckpoints>,
}

/// The node that a sandbox moves to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveSandbox {
    /// A name in the setting `peers.static`, or an address with its port.
    #[schema(min_length = 1, max_length = 255)]
    pub to: String,
}

/// A sandbox that runs at another node, and is no longer listed here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MovedSandbox {
    /// Its id there.
    pub sandbox: Uuid,
    /// The node, as the request called it.
    pub node: String,
    /// The snapshot that it goes on from, which stays here like that of any pause.
    pub snapshot: Uuid,
    /// Seconds from before its pause here until the other node said that it runs; absent if it was paused before, or if this
    /// answers a repeated request.
    #[serde(default)]
    pub stopped_seconds: Option<f64>,
}

/// Options of a fork: a running sandbox is paused for it and goes on from the same snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkSandbox {
    /// Number of sandboxes.
    #[serde(default)]
    #[schema(schema_with = SandboxCount::schema)]
    pub count: SandboxCount,
    /// Their name; with a number behind it where they are several.
    #[serde(default)]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 56, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    pub name: Option<NameOfSeveral>,
    /// Their labels.
    #[serde(default, deserialize_with = "shapes::labels")]
    #[schema(schema_with = schemas::labels)]
    pub labels: Labels,
    /// The tap devices of each fork's network devices, in their order; those of the sandbox where they are not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 8)]
    pub taps: Option<Vec<TapName>>,
    /// The network namespace that each fork's VMM runs in; the one of the sandbox where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// The pages to bring ahead of their guests; the setting by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefault: Option<Prefault>,
    /// Whose pages their guests run on; where it is not said, the setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mode: Option<MemoryMode>,
    /// The checkpoints that each of them takes in a period; none where they are not said.
    #[serde(default, deserialize_with = "shapes::object_or_none", skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<PeriodicCheckpoints>,
}

/// Sandboxes, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SandboxList {
    /// This page of them.
    pub sandboxes: Vec<Sandbox>,
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
    #[param(schema_with = PageLimit::schema)]
    pub limit: Option<PageLimit>,
    /// Only those after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Uuid>,
    /// Only those with this label, `name=value`; given again, only those with all of them.
    #[serde(default, rename = "label", skip_serializing_if = "Vec::is_empty")]
    #[param(inline, max_items = 64, value_type = Vec<schemas::LabelFilter>)]
    pub labels: Vec<LabelFilter>,
}
