//! The owners of everything that has a guest at the keeper: sandboxes, and sockets of VMMs that others start.

use std::sync::Arc;

use rekindle_engine::identity::SnapshotId;

use super::fault_sockets::FaultSockets;
use super::host::Host;
use super::keys::KeyOf;
use super::sandboxes::Sandboxes;

/// Both owners, for work that goes through all guests.
#[derive(Debug)]
pub(super) struct GuestOwners {
    pub(super) sandboxes: Arc<Sandboxes>,
    pub(super) fault_sockets: Arc<FaultSockets>,
}

impl GuestOwners {
    /// The host of all guests.
    pub(super) fn host(&self) -> &Host {
        &self.sandboxes.host
    }

    /// True if a thing at the keeper is named: by one of them, or by the engine.
    pub(super) fn names(&self, key: KeyOf) -> bool {
        match key {
            KeyOf::Guest(guest) => {
                self.sandboxes.registry.all().iter().any(|entry| entry.record().life.guest() == Some(guest))
            }
            KeyOf::Snapshot(id) => self.host().engine.origin(SnapshotId::from(id)).is_some(),
            KeyOf::Socket(id) => self.fault_sockets.find(id).is_ok(),
        }
    }
}
