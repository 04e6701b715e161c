//! Moves of the daemon without an engine.

use rekindle_api::control::{Answer, Asked};
use rekindle_api::types::{Labels, MoveSandbox, MovedSandbox, Reference, SandboxState};

use super::FakeDaemon;
use super::answers::wrong_state;

impl FakeDaemon {
    pub(super) fn moved(
        &self,
        reference: &Reference,
        asked: Asked,
        how: &MoveSandbox,
    ) -> Answer<MovedSandbox> {
        let mut kept = self.asked()?;
        if let Some(answer) = kept.answered(asked.key.as_ref(), how)? {
            return Ok(answer);
        }
        let sandbox = kept.sandbox(reference)?;
        if sandbox.state != SandboxState::Running {
            return Err(wrong_state(&sandbox, "is not running: resume it first"));
        }
        let of = (Some(sandbox.id), sandbox.origin, sandbox.memory_bytes);
        let snapshot = kept.add_snapshot(of, None, Labels::new())?.id;
        kept.sandboxes.remove(&sandbox.id);
        let (node, stopped_seconds) = (how.to.clone(), Some(0.25));
        let moved = MovedSandbox { sandbox: sandbox.id, node, snapshot, stopped_seconds };
        kept.note(asked.key, how, &moved);
        self.tell(&mut kept, "sandbox.moved", (Some(sandbox.id), Some(snapshot)));
        Ok(moved)
    }
}
