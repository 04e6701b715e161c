//! What the catalog knows of a sandbox: all that is needed to find its guest again.

use rekindle_engine::serve::EpochFacts;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::guests::{GuestSpec, RecordedVmm};
use crate::api::types::Labels;

/// A sandbox as it was last acknowledged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SandboxRecord {
    pub(super) id: Uuid,
    pub(super) name: Option<String>,
    pub(super) labels: Labels,
    pub(super) created_unix_ms: u64,
    /// What its guest is made of.
    pub(super) spec: GuestSpec,
    /// The snapshot of its last pause.
    pub(super) snapshot: Option<Uuid>,
    pub(super) life: RecordedLife,
}

/// How far a sandbox has come.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(super) enum RecordedLife {
    /// Its guest runs.
    Running(RecordedGuest),
    /// Its guest ended with the record's snapshot.
    Paused,
    /// The same, but it was paused only to be forked: it is about to run again, in the next daemon if not in this one.
    Forked,
    /// Its guest ended without one.
    Stopped { reason: Option<String> },
    /// It could not be found again.
    Lost { reason: String },
}

/// A running guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RecordedGuest {
    /// Which of the sandbox's guests: what the keeper holds for it is under this id.
    pub(super) id: Uuid,
    /// Its VMM.
    pub(super) vmm: RecordedVmm,
    /// The snapshot that its volumes are changes of.
    pub(super) base: Option<Uuid>,
    /// Where the base's pages go, unless its memory began empty.
    pub(super) served: Option<EpochFacts>,
}

impl RecordedLife {
    /// Whether its guest ended with the record's snapshot.
    pub(super) fn is_paused(&self) -> bool {
        matches!(self, Self::Paused | Self::Forked)
    }
}

impl SandboxRecord {
    /// The record's key in the catalog.
    pub(super) fn key(id: Uuid) -> Vec<u8> {
        id.as_bytes().to_vec()
    }

    /// The record's value in the catalog.
    pub(super) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record is plain data")
    }

    /// The snapshot its running guest came from.
    pub(super) fn origin(&self) -> Option<Uuid> {
        self.guest().and_then(|guest| guest.base)
    }

    /// Its running guest.
    pub(super) fn guest(&self) -> Option<&RecordedGuest> {
        match &self.life {
            RecordedLife::Running(guest) => Some(guest),
            RecordedLife::Paused
            | RecordedLife::Forked
            | RecordedLife::Stopped { .. }
            | RecordedLife::Lost { .. } => None,
        }
    }
}
