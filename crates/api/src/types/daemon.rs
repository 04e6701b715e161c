//! The daemon's own facts, events, and refusals of requests.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::names::{Labels, Name};
use super::{MovedSandbox, schemas, shapes};

/// From where on to be told what happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// The known events after this id come first, all of them if it is 0; without it, only new ones come. A client that
    /// comes back gives the id of its last event in the field `Last-Event-ID`, which counts before this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// True if new events follow; if false, the stream ends after the known events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<bool>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Its id: goes up from event to event, over restarts too.
    pub id: u64,
    /// When.
    pub unix_ms: u64,
    /// Kind: `sandbox.created`, `sandbox.paused`, `sandbox.checkpointed`, `sandbox.not_checkpointed`, `sandbox.resumed`, `sandbox.stalled`,
    /// `sandbox.running`, `sandbox.reset`, `sandbox.stopped`, `sandbox.lost`, `sandbox.removed`, `sandbox.moved`, `snapshot.captured`, `snapshot.sealed`,
    /// `snapshot.published`, `snapshot.failing`, `snapshot.deleted`, `snapshot.undeleted`,
    /// `snapshot.forgotten`, `snapshot.lost`, `snapshot.placed`, `store.collected`,
    /// `daemon.started`, `daemon.drained`, `daemon.reopened`.
    pub kind: String,
    /// The sandbox it is about.
    pub sandbox: Option<Uuid>,
    /// The snapshot it is about.
    pub snapshot: Option<Uuid>,
    /// More for people.
    pub detail: Option<String>,
}

/// The sandboxes to drain from a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainNode {
    /// Only sandboxes that have all of these labels, and the node goes on taking new ones.
    #[serde(default, deserialize_with = "shapes::labels")]
    #[schema(schema_with = schemas::labels)]
    pub labels: Labels,
    /// Nodes that the sandboxes move to, as far as these take them.
    #[serde(default)]
    #[schema(schema_with = schemas::nodes)]
    pub to: Vec<String>,
}

/// A drain of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Drain {
    /// True if the node takes no new guests.
    pub closed: bool,
    /// The sandboxes that a drain has paused or moved, or that are resumed after one. Those that were moved are known until the
    /// drain is undone or the daemon ends, and stay where they are.
    pub sandboxes: Vec<DrainedSandbox>,
    /// Fault sockets at which VMMs of others are served now: rekindle can neither pause nor end these.
    pub fault_sockets: Vec<Uuid>,
}

/// A sandbox of a drain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DrainedSandbox {
    /// Its id.
    pub sandbox: Uuid,
    /// Its name.
    #[schema(value_type = Option<String>)]
    pub name: Option<Name>,
    /// The snapshot of its last pause.
    pub snapshot: Option<Uuid>,
    /// The node that it moved to: it is no longer listed here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<MovedSandbox>,
    /// Reason that none of the nodes took it, so that it is paused here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_moved: Option<String>,
    /// Reason that it was not paused, or not resumed, or that it is unknown if it was moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<ProblemBody>,
}

/// That the daemon answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// Always true: a daemon that is not healthy does not answer.
    pub healthy: bool,
}

/// Version of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// The program's version.
    pub version: String,
    /// The version of this API.
    pub api: String,
    /// The daemon's process.
    pub pid: u32,
    /// When it started.
    pub started_unix_ms: u64,
}

/// Readiness for requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    /// True if requests can be done.
    pub ready: bool,
    /// Obstacles to requests; if there are none, obstacles to saving paused sandboxes.
    pub reasons: Vec<String>,
}

/// Reason that a request was not done: `application/problem+json` (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemBody {
    /// `urn:rekindle:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The code in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The code, which stays what it is.
    pub code: String,
    /// The event, the thing it happened to, and the remedy.
    pub detail: String,
    /// The sandboxes it is about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sandboxes: Vec<Uuid>,
    /// The snapshots it is about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<Uuid>,
}
