//! Checkpoints and resumes of the daemon without an engine.

use rekindle_api::control::{Answer, Asked};
use rekindle_api::types::{
    CheckpointSandbox, PeriodicCheckpoints, Reference, ResumeSandbox, Sandbox, SandboxState, Snapshot,
};

use super::FakeDaemon;
use super::answers::wrong_state;
use super::kept::RESUMED_PID;

impl FakeDaemon {
    pub(super) fn checkpointed(
        &self,
        reference: &Reference,
        asked: Asked,
        how: CheckpointSandbox,
    ) -> Answer<Snapshot> {
        let mut kept = self.asked()?;
        if let Some(answer) = kept.answered(asked.key.as_ref(), &how)? {
            return Ok(answer);
        }
        let sandbox = kept.sandbox(reference)?;
        if sandbox.state != SandboxState::Running {
            return Err(wrong_state(&sandbox, "is not running: resume it first"));
        }
        let request = how.clone();
        let of = (Some(sandbox.id), sandbox.origin, sandbox.memory_bytes);
        let made = kept.add_snapshot(of, how.name, how.labels)?;
        let checkpoints = PeriodicCheckpoints::after(sandbox.checkpoints, how.checkpoints);
        let goes_on = Sandbox { origin: Some(made.id), snapshot: Some(made.id), checkpoints, ..sandbox };
        kept.sandboxes.insert(goes_on.id, goes_on);
        kept.note(asked.key, &request, &made);
        self.tell(&mut kept, "sandbox.checkpointed", (made.sandbox, Some(made.id)));
        Ok(made)
    }

    pub(super) fn resumed(&self, reference: &Reference, how: &ResumeSandbox) -> Answer<Sandbox> {
        let mut kept = self.asked()?;
        let sandbox = kept.sandbox(reference)?;
        if sandbox.state != SandboxState::Paused {
            return Err(wrong_state(&sandbox, "is not paused: pause it first"));
        }
        let (state, pid, origin) = (SandboxState::Running, Some(RESUMED_PID), sandbox.snapshot);
        let checkpoints = PeriodicCheckpoints::after(sandbox.checkpoints, how.checkpoints);
        let resumed = Sandbox { state, pid, origin, checkpoints, ..sandbox };
        kept.sandboxes.insert(resumed.id, resumed.clone());
        Ok(resumed)
    }
}
