//! What went wrong below, in the words and codes of the API.

use rekindle_engine::catalog::CatalogError;
use rekindle_engine::open::OpenError;
use rekindle_engine::pause::PauseError;
use rekindle_engine::store::StoreError;

use crate::api::problem::{Code, Problem};
use crate::keeper::KeeperError;
use crate::vmm::firecracker::{self, NotFirecracker, SpecError};
use crate::vmm::process::GuestError;
use crate::vmm::qemu::{Misfit, NoQemu, QemuError};
use crate::vmm::vmm_process::ProcessError;

impl From<CatalogError> for Problem {
    fn from(error: CatalogError) -> Self {
        Self::new(Code::DiskFailed, format!("the catalog could not be used: {error}"))
    }
}

impl From<KeeperError> for Problem {
    fn from(error: KeeperError) -> Self {
        Self::new(Code::KeeperFailed, format!("the keeper: {error}"))
    }
}

impl From<GuestError> for Problem {
    fn from(error: GuestError) -> Self {
        Self::new(Code::GuestFailed, error.to_string())
    }
}

impl From<ProcessError> for Problem {
    fn from(error: ProcessError) -> Self {
        Self::new(Code::GuestFailed, error.to_string())
    }
}

impl From<PauseError> for Problem {
    fn from(error: PauseError) -> Self {
        match &error {
            PauseError::Lost { parent } => Self::new(Code::Lost, error.to_string()).snapshot(*parent),
            PauseError::Budget(_) => Self::new(Code::NoRam, format!("{error}; the guest runs on")),
            PauseError::Unsealed { oldest, .. } => {
                Self::new(Code::TooManyUnsealed, format!("{error}; the guest runs on")).snapshot(*oldest)
            }
        }
    }
}

impl From<OpenError> for Problem {
    fn from(error: OpenError) -> Self {
        match &error {
            OpenError::Store { snapshot, source: StoreError::NotFound { .. } } => {
                Self::new(Code::NotFound, format!("there is no snapshot {snapshot}, here or in the store"))
            }
            OpenError::Store { snapshot, .. } => {
                Self::new(Code::StoreFailed, error.to_string()).snapshot(*snapshot)
            }
            OpenError::Manifest { snapshot, .. }
            | OpenError::OtherSnapshot { snapshot, .. }
            | OpenError::NoMemory { snapshot, .. }
            | OpenError::Domain { snapshot, .. } => {
                Self::new(Code::StoreFailed, error.to_string()).snapshot(*snapshot)
            }
            OpenError::Deleted { snapshot } => {
                Self::new(Code::NotFound, error.to_string()).snapshot(*snapshot)
            }
            OpenError::Lost { snapshot, .. } => Self::new(Code::Lost, error.to_string()).snapshot(*snapshot),
            OpenError::Cache { snapshot, .. } | OpenError::Catalog { snapshot, .. } => {
                Self::new(Code::DiskFailed, error.to_string()).snapshot(*snapshot)
            }
        }
    }
}

fn is_misfit_itself(cause: &(dyn std::error::Error + 'static)) -> bool {
    // The drivers' errors say what theirs do, and are not among their causes.
    matches!(cause.downcast_ref(), Some(QemuError::Misfit(_)))
        || cause.is::<Misfit>()
        || cause.is::<NoQemu>()
        || cause.is::<firecracker::Misfit>()
        || cause.is::<NotFirecracker>()
        || cause.is::<SpecError>()
}

/// Whatever the system or a VMM said while something was done with a guest.
pub(super) fn guest_failed(error: anyhow::Error) -> Problem {
    match error.downcast::<Problem>() {
        Ok(problem) => problem,
        Err(error) => {
            let is_misfit = error.chain().any(is_misfit_itself);
            let code = if is_misfit { Code::Misfit } else { Code::GuestFailed };
            Problem::new(code, format!("{error:#}"))
        }
    }
}
