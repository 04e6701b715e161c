//! Choices of a resume: the pages that come ahead of a guest, and whose pages it runs on.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Pages that are brought ahead of a resumed guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Prefault {
    /// None: each page comes when the guest touches it.
    None,
    /// Those that earlier guests of the snapshot touched first. If none was recorded, the pages that its own pause kept are
    /// fetched from the store.
    WorkingSet,
    /// All of its memory, the working set first.
    All,
}

/// Whose pages a resumed guest runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemoryMode {
    /// Its own: each page that it touches is copied. A pause takes the same time whatever the guest has written.
    Own,
    /// Those that all such guests of the snapshot share, each once in RAM; a page that it writes becomes its own. A pause
    /// copies these.
    Shared,
}
