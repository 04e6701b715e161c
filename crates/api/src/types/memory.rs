//! Memory of VMMs that others start: served at a fault socket, captured out of a process.

use std::collections::BTreeMap;

use rekindle_engine::identity::DomainName;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Labels, Name, Reference, ServedPages, schemas, shapes};

/// A socket at which a VMM that others start is served with a snapshot's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FaultSocket {
    /// Its id, a UUID version 7.
    pub id: Uuid,
    /// The snapshot it serves.
    pub snapshot: Uuid,
    /// Path of the socket to connect to, and hand the memory over.
    pub path: String,
    /// The process that did, once one has.
    pub pid: Option<u32>,
    /// Its state: `listening`, `running`, `stalled`, `ended`.
    pub state: FaultSocketState,
    /// The reason that it is stalled or has ended.
    pub reason: Option<String>,
    /// The reason that its VMM cannot be captured, or its capture not be saved, as found at the hand-over or the
    /// daemon's start.
    #[serde(default)]
    pub capture_hindrance: Option<String>,
    /// Pages served.
    pub served: Option<ServedPages>,
}

/// State of a fault socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FaultSocketState {
    /// No VMM has handed memory over yet.
    Listening,
    /// Its VMM is served.
    Running,
    /// Its VMM waits for a page that cannot be had now.
    Stalled,
    /// Its VMM is gone, or the hand-over failed.
    Ended,
}

/// The snapshot that a fault socket serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenFaultSocket {
    /// The snapshot: its id, a unique prefix of it, or its name.
    #[schema(value_type = String, min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    pub snapshot: Reference,
    /// True to serve it before it is sealed; the setting by default.
    #[serde(default)]
    pub serve_before_seal: Option<bool>,
    /// Tracking of its VMM's writes.
    #[serde(default)]
    pub tracking: WriteTracking,
}

/// Tracking of the writes of a VMM at a fault socket. If its userfaultfd has WP_ASYNC the kernel marks them, at no
/// cost; without it the first write to each page is a fault of its own, or writes are not tracked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WriteTracking {
    /// Only if it costs nothing; otherwise a capture takes every page that is there, and keeps those that differ from
    /// the snapshot.
    #[default]
    WhenFree,
    /// Always: captures are quick, and the first write to each page is slower.
    Always,
}

/// Memory to be captured. The caller has stopped every thread that could write it, and ends the process once this has
/// answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CaptureMemory {
    /// Its source.
    #[serde(deserialize_with = "shapes::object")]
    pub source: CaptureSource,
    /// The snapshot's name.
    #[serde(default)]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    pub name: Option<Name>,
    /// The snapshot's labels.
    #[serde(default, deserialize_with = "shapes::labels")]
    #[schema(schema_with = schemas::labels)]
    pub labels: Labels,
    /// The domain of a snapshot without a parent, of which the node must have a key; the node's own by default. A child
    /// belongs to its parent's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 64, pattern = "^[a-z0-9-]+$")]
    pub domain: Option<DomainName>,
    /// Device state and the like, by name, as base64 of bytes.
    #[serde(default, deserialize_with = "shapes::texts")]
    #[schema(schema_with = schemas::blobs)]
    pub blobs: BTreeMap<String, String>,
}

/// Source of memory to be captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum CaptureSource {
    /// A VMM served at a fault socket: its changes, as a child of the socket's snapshot.
    FaultSocket {
        /// The socket.
        id: Uuid,
    },
    /// A memory file that a process has open: all that is in it, as a snapshot without a parent.
    Memfd {
        /// The process.
        #[schema(minimum = 1, maximum = 2147483647)]
        pid: u32,
        /// The number of its descriptor.
        #[schema(minimum = 0)]
        fd: i32,
    },
    /// Private memory of a stopped process: all that is there, copied, as a snapshot without a parent.
    Process {
        /// The process.
        #[schema(minimum = 1, maximum = 2147483647)]
        pid: u32,
        /// Places of guest memory in it.
        #[serde(deserialize_with = "shapes::objects")]
        #[schema(min_items = 1, max_items = 1024)]
        regions: Vec<MemoryRegion>,
    },
}

/// A region of guest memory in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemoryRegion {
    /// Address in the process.
    #[schema(maximum = 72_057_594_037_927_936_i64, multiple_of = 4096)]
    pub start: u64,
    /// Length.
    #[schema(minimum = 4096, maximum = 1_099_511_627_776_i64, multiple_of = 4096)]
    pub bytes: u64,
    /// Position in guest memory.
    #[schema(maximum = 1_099_511_623_680_i64, multiple_of = 4096)]
    pub offset: u64,
}
