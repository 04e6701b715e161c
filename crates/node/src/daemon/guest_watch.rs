//! How a guest gets on, seen from outside of any operation.

use rekindle_engine::identity::VolumeName;
use rekindle_engine::serve::{ServeStatus, ServerWatch};

use crate::disk::DiskWatch;
use crate::vmm::qemu::MachineWatch;

/// How a guest is served, seen from outside of any operation.
#[derive(Debug, Clone, Default)]
pub(super) struct GuestWatch {
    /// None for memory that began empty.
    pub(super) memory: Option<ServerWatch>,
    pub(super) disks: Vec<(VolumeName, DiskWatch)>,
    /// Why the guest stands, where only another try can let it go on.
    pub(super) stuck: Option<String>,
    /// What its VMM does to it by itself, where it tells.
    pub(super) machine: Option<MachineWatch>,
}

impl GuestWatch {
    /// Whether the guest stands although nothing is done with it.
    pub(super) fn is_stuck(&self) -> bool {
        self.stuck.is_some()
    }

    /// Why the guest stands, where its VMM stopped it by itself.
    pub(super) fn stopped(&self) -> Option<String> {
        self.machine.as_ref().and_then(MachineWatch::stopped)
    }

    /// What its VMM did to it since the last call that did not stop it.
    pub(super) fn take_news(&self) -> Vec<String> {
        self.machine.as_ref().map(MachineWatch::take_news).unwrap_or_default()
    }

    /// What the guest waits for in vain so far, if it does, or why its VMM stopped it.
    pub(super) fn stalled(&self) -> Option<String> {
        if self.stuck.is_some() {
            return self.stuck.clone();
        }
        let memory = self.memory.as_ref().and_then(|memory| match memory.status() {
            ServeStatus::Stalled { page, reason } => Some(format!("page {page}: {reason}")),
            ServeStatus::Running | ServeStatus::Ended { .. } => None,
        });
        let disk = |(name, watch): &(VolumeName, DiskWatch)| {
            watch.stalled().map(|reason| format!("a page of disk {name}: {reason}"))
        };
        memory.or_else(|| self.disks.iter().find_map(disk)).or_else(|| self.stopped())
    }
}
