//! Collections of the store.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A collection to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Collect {
    /// True to delete nothing, and only tell what would be.
    #[serde(default)]
    pub dry_run: bool,
    /// Time until the objects are deleted, in milliseconds; if it is missing, that of the setting `collect_probation`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 43200000)]
    pub probation_ms: Option<u64>,
}

/// A collection of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Collection {
    /// Objects that were looked at.
    pub objects: u64,
    /// Objects that nothing needs: they are deleted when their probation is over.
    pub condemned: u64,
    /// Bytes of these.
    pub condemned_bytes: u64,
    /// Objects that were deleted, condemned by this collection or by earlier ones.
    pub deleted: u64,
    /// Objects whose probation is not over, those of earlier collections included.
    pub waiting: u64,
    /// Of a dry run, the verdict on each object, those that would be deleted first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verdicts: Vec<ObjectVerdict>,
    /// Further objects on which there is no verdict here, as they are too many for one answer.
    pub verdicts_left_out: u64,
}

/// The verdict on an object of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ObjectVerdict {
    /// Its name in the store.
    pub object: String,
    /// Its bytes.
    pub bytes: u64,
    /// True if it stays.
    pub kept: bool,
    /// The reason, for people.
    pub reason: String,
}
