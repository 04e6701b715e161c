//! Problems of the engine's errors, by code and in words.

use bytesize::ByteSize;
use rekindle_engine::budget::BudgetError;
use rekindle_engine::cache::OpenStoredError;
use rekindle_engine::catalog::CatalogError;
use rekindle_engine::key_ring::NoKeyOfDomain;
use rekindle_engine::open::OpenError;
use rekindle_engine::pause::PauseError;
use rekindle_engine::peer::PeerError;
use rekindle_engine::sources::SourceError;
use rekindle_engine::store_manifests::StoredManifestError;
use rekindle_engine::tag::TaggedError;

use crate::problem::{Code, Problem};

impl From<CatalogError> for Problem {
    fn from(error: CatalogError) -> Self {
        Self::new(Code::DiskFailed, format!("the catalog could not be used: {error}"))
    }
}

impl From<NoKeyOfDomain> for Problem {
    fn from(error: NoKeyOfDomain) -> Self {
        Self::new(Code::NoKey, error.to_string())
    }
}

impl From<PauseError> for Problem {
    fn from(error: PauseError) -> Self {
        match &error {
            PauseError::Domain(no_key) => no_key.clone().into(),
            PauseError::Lost { parent } => Self::new(Code::Lost, error.to_string()).snapshot(*parent),
            PauseError::Budget(budget) => Self::new(
                Code::NoRam,
                format!("no RAM for the capture: {}; the guest runs on", no_ram(budget)),
            ),
            PauseError::Unsealed { oldest, .. } => {
                Self::new(Code::TooManyUnsealed, format!("{error}; the guest runs on")).snapshot(*oldest)
            }
            PauseError::Unpublished { bytes, bytes_max } => Self::new(
                Code::TooManyUnpublished,
                format!(
                    "{} of snapshots are only on this node, and unpublished_bytes_max allows {}: see that the store can be \
                     reached (`rekindle doctor`), delete snapshots, or raise the setting; the guest runs on",
                    ByteSize::b(*bytes),
                    ByteSize::b(*bytes_max)
                ),
            ),
            PauseError::Unwanted => {
                let why = "the client went away before there was RAM for its capture: nothing was done";
                Self::new(Code::Abandoned, why)
            }
        }
    }
}

impl From<OpenError> for Problem {
    fn from(error: OpenError) -> Self {
        match &error {
            OpenError::Store { snapshot, source: SourceError::Gone(_) } => {
                Self::new(Code::NotFound, format!("there is no snapshot {snapshot}, here or in the store"))
            }
            OpenError::Store { snapshot, .. } => {
                Self::new(Code::StoreFailed, error.to_string()).snapshot(*snapshot)
            }
            OpenError::Manifest { snapshot, source: StoredManifestError::Unread(TaggedError::Key(_)) }
            | OpenError::Cache { snapshot, source: OpenStoredError::Key { .. } } => {
                Self::new(Code::NoKey, error.to_string()).snapshot(*snapshot)
            }
            OpenError::Manifest { snapshot, .. }
            | OpenError::Table { snapshot, .. }
            | OpenError::NoMemory { snapshot, .. }
            | OpenError::Domain { snapshot, .. } => {
                Self::new(Code::StoreFailed, error.to_string()).snapshot(*snapshot)
            }
            OpenError::Deleted { snapshot, .. } => {
                Self::new(Code::NotFound, error.to_string()).snapshot(*snapshot)
            }
            OpenError::Peer { snapshot, source } => {
                let code = match source {
                    PeerError::Unconfigured { .. } | PeerError::Unknown { .. } => Code::NotFound,
                    PeerError::Away { .. }
                    | PeerError::Untrusted { .. }
                    | PeerError::Version { .. }
                    | PeerError::Refused { .. }
                    | PeerError::NotUnderstood { .. }
                    | PeerError::Wrong { .. } => Code::PeerFailed,
                };
                let why = format!("{error}; and the store does not have the snapshot");
                Self::new(code, why).snapshot(*snapshot)
            }
            OpenError::Origin { snapshot, .. } => {
                Self::new(Code::StoreFailed, error.to_string()).snapshot(*snapshot)
            }
            OpenError::NoKey { source, .. } => source.clone().into(),
            OpenError::NoRoom { snapshot, source } => {
                let why = format!(
                    "no RAM for the pages of snapshot {snapshot} that another node has: {}",
                    no_ram(source)
                );
                Self::new(Code::NoRam, why)
            }
            OpenError::NoMemoryFile { .. } => Self::new(Code::NoRam, error.to_string()),
            OpenError::Lost { snapshot, .. } => Self::new(Code::Lost, error.to_string()).snapshot(*snapshot),
            OpenError::Cache { snapshot, .. } | OpenError::Catalog { snapshot, .. } => {
                Self::new(Code::DiskFailed, error.to_string()).snapshot(*snapshot)
            }
        }
    }
}

/// Words for people on a pause without RAM.
pub fn no_ram(error: &BudgetError) -> String {
    match error {
        BudgetError::NeverFits { asked, bytes_max } => format!(
            "{} is needed, capture_bytes_max is {}: raise capture_bytes_max",
            ByteSize::b(*asked),
            ByteSize::b(*bytes_max)
        ),
        BudgetError::Exhausted { asked, bytes_held, bytes_max } => format!(
            "{} is needed, and captures hold {} of the {} that capture_bytes_max allows, for all of pause_wait: pause \
             fewer at once, or raise either",
            ByteSize::b(*asked),
            ByteSize::b(*bytes_held),
            ByteSize::b(*bytes_max)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_without_ram_names_the_settings_and_human_sizes() {
        let never = no_ram(&BudgetError::NeverFits { asked: 900 << 30, bytes_max: 12 << 30 });
        assert_eq!(never, "900.0 GiB is needed, capture_bytes_max is 12.0 GiB: raise capture_bytes_max");
        let now = no_ram(&BudgetError::Exhausted { asked: 1 << 30, bytes_held: 2 << 30, bytes_max: 2 << 30 });
        assert!(now.contains("pause_wait") && now.contains("2.0 GiB"), "{now}");
    }
}
