//! Checkpoints: one that a request asks for, and those that a sandbox takes in a period of its own.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Labels, Name, schemas, shapes};

/// Options of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointSandbox {
    /// The snapshot's name.
    #[serde(default)]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    pub name: Option<Name>,
    /// The snapshot's labels.
    #[serde(default, deserialize_with = "shapes::labels")]
    #[schema(schema_with = schemas::labels)]
    pub labels: Labels,
    /// The checkpoints that the sandbox takes from now on; as before where they are not said.
    #[serde(default, deserialize_with = "shapes::object_or_none", skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<PeriodicCheckpoints>,
}

/// Checkpoints that a sandbox takes in a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PeriodicCheckpoints {
    /// Seconds of the period, in which one is taken if something was written since the last; 0: none are taken.
    #[schema(minimum = 0, maximum = 2_592_000)]
    pub every_seconds: u32,
    /// Number of them that are kept; older ones are deleted once newer ones are saved.
    #[serde(default = "three")]
    #[schema(default = 3, minimum = 1, maximum = 1000)]
    pub keep: u32,
}

impl PeriodicCheckpoints {
    /// Number that is kept where none is said.
    pub const KEPT: u32 = 3;

    /// The checkpoints of a sandbox after a request: those that it says, or else those before it. None: none are taken.
    pub fn after(before: Option<Self>, wanted: Option<Self>) -> Option<Self> {
        wanted.or(before).filter(|checkpoints| checkpoints.every_seconds > 0)
    }
}

fn three() -> u32 {
    PeriodicCheckpoints::KEPT
}
