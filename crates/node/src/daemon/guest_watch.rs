//! Shows the state of a guest from outside of any operation.

use rekindle_api::types::ServedPages;
use rekindle_disk::DiskWatch;
use rekindle_engine::identity::VolumeName;
use rekindle_engine::serve::{EndReason, ServeStats, ServeStatus, ServerWatch};
use rekindle_kernel::ProcessHandle;
use rekindle_vmm::qemu::MachineWatch;

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
        let status = self.memory.as_ref().map(ServerWatch::status);
        self.stuck.is_some() || status.and_then(failure_of).is_some()
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
            status @ (ServeStatus::Running | ServeStatus::Ended { .. }) => failure_of(status),
        });
        let disk = |(name, watch): &(VolumeName, DiskWatch)| {
            watch.stalled().map(|reason| format!("a page of disk {name}: {reason}"))
        };
        memory.or_else(|| self.disks.iter().find_map(disk)).or_else(|| self.stopped())
    }
}

/// The reason that the server of a guest that is still there has ended, if it has.
fn failure_of(status: ServeStatus) -> Option<String> {
    match status {
        ServeStatus::Ended { why: EndReason::Failed { reason } } => {
            Some(format!("its page faults were not served any more ({reason}); it is tried again"))
        }
        ServeStatus::Ended { why: EndReason::HungUp | EndReason::MemoryGone | EndReason::EpochEnded }
        | ServeStatus::Running
        | ServeStatus::Stalled { .. } => None,
    }
}

/// That a VMM was stopped by a signal, and what lets it go on.
pub(super) fn stopped_by_signal(process: &ProcessHandle) -> Option<String> {
    // An error says that it has ended.
    let is_stopped = process.is_stopped().unwrap_or(false);
    let pid = process.pid();
    is_stopped.then(|| format!("its VMM was stopped by a signal (SIGSTOP): `kill -CONT {pid}` lets it go on"))
}

/// Pages served, as the API shows them.
pub(super) fn served_pages(stats: &ServeStats) -> ServedPages {
    ServedPages {
        from_capture: stats.pages_from_capture,
        from_layer: stats.pages_from_layer,
        from_peer: stats.pages_from_peer,
        shared: stats.pages_shared,
        zero: stats.pages_zero,
        faults: stats.faults,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_whose_fault_server_failed_says_why_and_one_that_is_gone_does_not() {
        let failed = EndReason::Failed { reason: "too many open files".to_owned() };
        let said = failure_of(ServeStatus::Ended { why: failed }).expect("it stands");
        assert!(said.contains("too many open files"), "{said}");
        for why in [EndReason::HungUp, EndReason::MemoryGone, EndReason::EpochEnded] {
            assert_eq!(failure_of(ServeStatus::Ended { why }), None);
        }
        assert_eq!(failure_of(ServeStatus::Running), None);
    }
}
