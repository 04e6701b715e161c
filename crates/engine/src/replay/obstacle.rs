//! The reason that one snapshot could not be restored: its bytes are gone, or that cannot be decided now.

use rekindle_kernel::memfd::AdoptError;

use super::ReplayError;
use crate::capture::CaptureError;
use crate::identity::VolumeName;
use crate::keep::KeptError;

/// Reason that one snapshot could not be restored.
pub(super) enum Obstacle {
    /// Its bytes are gone.
    Lost(String),
    /// Those of another node that were here were wrong.
    Refuted(String),
    /// It cannot be decided now: the disk, the keeper or a record could not be read.
    Unknown(String),
}

impl<E: Into<ReplayError>> From<E> for Obstacle {
    fn from(error: E) -> Self {
        Self::Unknown(error.into().to_string())
    }
}

/// The obstacle if a kept volume cannot be opened: after an error of the system it may still exist.
pub(super) fn of_kept(name: &VolumeName, error: &KeptError) -> Obstacle {
    let reason = format!("volume {name}: {error}");
    match error {
        KeptError::Adopt(AdoptError::Io(_)) | KeptError::Io(_) => Obstacle::Unknown(reason),
        KeptError::Adopt(
            AdoptError::NotMemory { .. } | AdoptError::PageSize { .. } | AdoptError::Resizable { .. },
        )
        | KeptError::Sets(_) => Obstacle::Lost(reason),
    }
}

/// The same for its bytes and its sets, which were opened.
pub(super) fn of_capture(name: &VolumeName, error: &CaptureError) -> Obstacle {
    let reason = format!("volume {name}: {error}");
    match error {
        CaptureError::Map(_) => Obstacle::Unknown(reason),
        CaptureError::WrongSize { .. } | CaptureError::Overlap { .. } => Obstacle::Lost(reason),
    }
}
