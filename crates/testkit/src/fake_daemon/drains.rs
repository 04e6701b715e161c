//! Drains of the daemon without an engine.

use rekindle_api::control::Answer;
use rekindle_api::types::{Drain, DrainNode, DrainedSandbox, Labels, MovedSandbox, Sandbox, SandboxState};

use super::FakeDaemon;
use super::kept::{DRAINED, Kept, RESUMED_PID};

/// A node that takes no sandbox.
const FULL: &str = "full";

impl FakeDaemon {
    /// Each sandbox moves to one of the nodes in turn, unless that is `full`.
    pub(super) fn drained_by(&self, how: &DrainNode) -> Answer<Drain> {
        let mut kept = self.asked()?;
        kept.is_drained |= how.labels.is_empty();
        let has_labels = |sandbox: &Sandbox| {
            how.labels.iter().all(|(name, value)| sandbox.labels.get(name) == Some(value))
        };
        let wanted = |sandbox: &&Sandbox| sandbox.state == SandboxState::Running && has_labels(sandbox);
        let running: Vec<Sandbox> = kept.sandboxes.values().filter(wanted).cloned().collect();
        let mut nodes = how.to.iter().cycle();
        let mut refused = Vec::new();
        for sandbox in running {
            let id = sandbox.id;
            match nodes.next() {
                Some(node) if node != FULL => kept.drain_to(node, sandbox)?,
                Some(_) => {
                    kept.pause_for_drain(sandbox)?;
                    refused.push(id);
                }
                None => kept.pause_for_drain(sandbox)?,
            }
        }
        let mut drain = kept.drain();
        for stays in drain.sandboxes.iter_mut().filter(|drained| refused.contains(&drained.sandbox)) {
            stays.not_moved = Some(format!("node {FULL} does not take it: it has no room"));
        }
        Ok(drain)
    }

    pub(super) fn undrained(&self) -> Answer<Drain> {
        let mut kept = self.asked()?;
        kept.is_drained = false;
        let undone = kept.drain();
        kept.moved.clear();
        for drained in &undone.sandboxes {
            if let Some(sandbox) = kept.sandboxes.get_mut(&drained.sandbox) {
                let (state, pid) = (SandboxState::Running, Some(RESUMED_PID));
                *sandbox = Sandbox { state, pid, reason: None, ..sandbox.clone() };
            }
        }
        Ok(undone)
    }
}

impl Kept {
    fn pause_for_drain(&mut self, sandbox: Sandbox) -> Answer<()> {
        let of = (Some(sandbox.id), sandbox.snapshot.or(sandbox.origin), sandbox.memory_bytes);
        let made = self.add_snapshot(of, None, Labels::new())?;
        let (state, reason) = (SandboxState::Paused, Some(DRAINED.to_owned()));
        let paused = Sandbox { state, reason, pid: None, snapshot: Some(made.id), ..sandbox };
        self.sandboxes.insert(paused.id, paused);
        Ok(())
    }

    fn drain_to(&mut self, node: &str, sandbox: Sandbox) -> Answer<()> {
        let of = (Some(sandbox.id), sandbox.snapshot.or(sandbox.origin), sandbox.memory_bytes);
        let snapshot = self.add_snapshot(of, None, Labels::new())?.id;
        self.sandboxes.remove(&sandbox.id);
        let (there, node) = (self.next_id(), node.to_owned());
        self.moved.push(DrainedSandbox {
            sandbox: sandbox.id,
            name: sandbox.name,
            snapshot: Some(snapshot),
            moved: Some(MovedSandbox { sandbox: there, node, snapshot, stopped_seconds: Some(0.25) }),
            not_moved: None,
            problem: None,
        });
        Ok(())
    }
}
