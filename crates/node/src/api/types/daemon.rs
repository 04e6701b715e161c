//! What the daemon says of itself, of what happens, and of requests that it does not do.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

/// From where on to be told what happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// Events after this id that are still known come first, all that are where it is 0; without it, only those to come.
    /// A client that comes back says the last id it had in the field `Last-Event-ID`, which counts before this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Whether those to come follow: the stream ends with the events that are known where it is false.
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
    /// What: `sandbox.created`, `sandbox.paused`, `sandbox.resumed`, `sandbox.stalled`, `sandbox.running`,
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

/// Who answers.
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

/// Whether requests can be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    /// Whether they can.
    pub ready: bool,
    /// What stands in the way of them; where they can, of saving what was paused.
    pub reasons: Vec<String>,
}

/// Why a request was not done: `application/problem+json` (RFC 9457).
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
    /// What happened, to what, and what to do.
    pub detail: String,
    /// The sandboxes it is about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sandboxes: Vec<Uuid>,
    /// The snapshots it is about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<Uuid>,
}
