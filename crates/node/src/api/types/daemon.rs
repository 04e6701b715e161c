//! The daemon's own facts, events, and refusals of requests.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

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
    /// Kind: `sandbox.created`, `sandbox.paused`, `sandbox.resumed`, `sandbox.stalled`, `sandbox.running`,
    /// `sandbox.reset`, `sandbox.stopped`, `sandbox.lost`, `sandbox.removed`, `snapshot.captured`, `snapshot.sealed`,
    /// `snapshot.published`, `snapshot.failing`, `snapshot.deleted`, `snapshot.lost`, `daemon.started`.
    pub kind: String,
    /// The sandbox it is about.
    pub sandbox: Option<Uuid>,
    /// The snapshot it is about.
    pub snapshot: Option<Uuid>,
    /// More for people.
    pub detail: Option<String>,
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
