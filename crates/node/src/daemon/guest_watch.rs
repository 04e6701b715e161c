//! Shows the state of a guest from outside of any operation.

use rekindle_engine::identity::VolumeName;
use rekindle_engine::serve::{ServeStatus, ServerWatch};

use crate::disk::DiskWatch;
use crate::vmm::qemu::MachineWatch;

/// Shows the state of a guest from outside of any operation.
#[derive(Debug, Clone, Default)]
pub(super) struct GuestWatch {
    /// None for memory that began empty.
    pub(super) memory: Option<ServerWatch>,
    pub(super) disks: Vec<(VolumeName, DiskWatch)>,
    /// Reason that the guest stands still, if only another try can let it go on.
    pub(super) stuck: Option<String>,
    /// Events of its VMM, if that tells them.
    pub(super) machine: Option<MachineWatch>,
}

impl GuestWatch {
    /// True if the guest stands still although no operation has it.
    pub(super) fn is_stuck(&self) -> bool {
        self.stuck.is_some()
    }

    /// Reason that the guest stands still, if its VMM stopped it by itself.
    pub(super) fn stopped(&self) -> Option<String> {
        self.machine.as_ref().and_then(MachineWatch::stopped)
    }

    /// Events of its VMM since the last call that did not stop it.
    pub(super) fn take_news(&self) -> Vec<String> {
        self.machine.as_ref().map(MachineWatch::take_news).unwrap_or_default()
    }

    /// The reason that the guest is stalled: the page it waits for, or the VMM that stopped it.
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
