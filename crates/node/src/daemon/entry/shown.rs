//! A sandbox as the API shows it.

use rekindle_api::types::{Sandbox, SandboxState};

use super::Entry;
use crate::daemon::guest_watch::served_pages;
use crate::daemon::record::RecordedLife;

/// Reason of a pause that nobody asked for.
const DRAINED: &str =
    "a drain of this node paused it: `rekindle drain --undo`, or the next start of the daemon, resumes it";

impl Entry {
    /// The sandbox as the API shows it.
    pub(in crate::daemon) fn show(&self) -> Sandbox {
        let stalled = self.stalled();
        let state = self.lock();
        let record = &state.record;
        let (shown, reason, pid) = match &record.life {
            RecordedLife::Running(guest) => {
                let shown = if stalled.is_some() { SandboxState::Stalled } else { SandboxState::Running };
                (shown, stalled, Some(guest.vmm.pid()))
            }
            RecordedLife::Paused | RecordedLife::Forked => (SandboxState::Paused, None, None),
            RecordedLife::Drained { .. } => (SandboxState::Paused, Some(DRAINED.to_owned()), None),
            RecordedLife::Stopped { reason } => (SandboxState::Stopped, reason.clone(), None),
            RecordedLife::Lost { reason } => (SandboxState::Lost, Some(reason.clone()), None),
            RecordedLife::Undecided { reason, .. } => (SandboxState::Undecided, Some(reason.clone()), None),
        };
        let running = record.guest().map(|guest| &guest.vmm);
        Sandbox {
            id: record.id,
            name: record.name.clone(),
            labels: record.labels.clone(),
            domain: record.domain.clone(),
            state: shown,
            reason,
            vmm: record.spec.kind(),
            memory_bytes: record.spec.memory_bytes(),
            backing: record.spec.backing(),
            machine: record.spec.shown_machine(running),
            pid,
            origin: record.origin(),
            snapshot: record.snapshot,
            checkpoints: record.checkpoints,
            created_unix_ms: record.created_unix_ms,
            served: state.outside.watch.memory.as_ref().map(|watch| served_pages(&watch.stats())),
        }
    }
}
