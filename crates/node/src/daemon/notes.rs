//! Notes at the keeper: on guests whose pause or birth is under way, and on the catalog.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::keys::guest_key;
use super::record::SandboxRecord;

/// The keeper's note on a guest, beside its descriptors.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct GuestNote {
    /// The snapshot it is about to be paused into: until that is in the catalog, the pause did not come to pass.
    #[serde(default)]
    pub(super) pausing: Option<Uuid>,
    /// A change of its sandbox that the catalog may have although it was not acknowledged.
    #[serde(default)]
    pub(super) unsettled: Option<UnsettledChange>,
}

/// A change of a sandbox that was not acknowledged, and may be in the catalog. The keeper holds the record before it
/// beside the note, as a file: a record may be longer than any note.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum UnsettledChange {
    /// The pause into `snapshot`: the guest went on.
    Pause { snapshot: Uuid },
    /// The checkpoint into `snapshot`: the guest went on from what it had run from before.
    Checkpoint { snapshot: Uuid },
    /// The guest's birth: it was ended. A new sandbox has no record before it.
    Birth { is_new: bool },
}

impl UnsettledChange {
    /// True if a sandbox's record is the result of this change, which is noted under `key`. A pause or a checkpoint whose
    /// snapshot is there was not taken back: its guest still stands.
    pub(super) fn is_in(&self, record: &SandboxRecord, key: &str, is_there: impl Fn(Uuid) -> bool) -> bool {
        match self {
            Self::Pause { snapshot } => {
                record.life.is_paused() && record.snapshot == Some(*snapshot) && !is_there(*snapshot)
            }
            Self::Checkpoint { snapshot } => {
                record.guest().is_some_and(|guest| guest_key(guest.id) == key)
                    && record.origin() == Some(*snapshot)
                    && !is_there(*snapshot)
            }
            Self::Birth { .. } => record.guest().is_some_and(|guest| guest_key(guest.id) == key),
        }
    }
}

/// State that a catalog has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CatalogState {
    /// Another one from the start on that found an older copy in the catalog's place: what is counted from there on says
    /// nothing of the other line.
    pub(super) lineage: Uuid,
    /// Number of transactions that made it.
    pub(super) transactions: u64,
}
