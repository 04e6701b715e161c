//! Checks after the keeper died with the daemon: sealed snapshots are there, others are listed as lost, and no page is
//! wrong.

use anyhow::Context as _;
use rekindle_api::types::{Sandbox, SandboxState, Snapshot, SnapshotState};
use uuid::Uuid;

use super::Campaign;
use super::check::{check_pages, check_snapshot};
use super::saving::Saved;
use crate::load::{Operation, SnapshotModel, World};

impl Campaign<'_> {
    /// Checks what there is, then removes all of it: the next round begins anew.
    pub(super) fn check_without_keeper(
        &mut self,
        saved: &Saved,
        lost: &[(usize, Operation)],
    ) -> anyhow::Result<()> {
        let world = World::of(&self.client).context("listing what there is after the keeper's death")?;
        let (mut sandboxes, mut snapshots) = (Vec::new(), Vec::new());
        for shard in self.actors.iter_mut().map(|actor| &mut actor.shard).chain([&mut self.ticker.shard]) {
            sandboxes.extend(std::mem::take(&mut shard.sandboxes).into_keys());
            snapshots.extend(std::mem::take(&mut shard.snapshots).into_values());
        }
        let may_be_gone = |id: Uuid| {
            lost.iter().any(|(_, operation)| match operation {
                Operation::RemoveSandbox { sandbox } => *sandbox == id,
                Operation::DeleteSnapshot { snapshot } => *snapshot == id,
                Operation::Create { .. }
                | Operation::Tell { .. }
                | Operation::Pause { .. }
                | Operation::Checkpoint { .. }
                | Operation::Resume { .. }
                | Operation::ResumeSnapshot { .. }
                | Operation::Fork { .. } => false,
            })
        };
        for id in sandboxes {
            match world.sandboxes.get(&id) {
                Some(shown) => self.check_sandbox(shown),
                None if may_be_gone(id) => {}
                None => {
                    self.tally.findings.wrong(format!("sandbox {id} is not listed after the keeper's death"))
                }
            }
        }
        for model in snapshots {
            let id = model.id;
            match world.snapshots.get(&id) {
                Some(shown) => self.check_survival(saved, shown, model),
                None if may_be_gone(id) => {}
                None => {
                    let words = format!("snapshot {id} is not listed after the keeper's death");
                    self.tally.findings.lost_snapshot(words);
                }
            }
        }
        self.remove_all(&World::of(&self.client)?);
        Ok(())
    }

    /// A sandbox whose guest is gone is listed, and says why.
    fn check_sandbox(&mut self, shown: &Sandbox) {
        let (findings, id) = (&mut self.tally.findings, shown.id);
        match shown.state {
            SandboxState::Lost | SandboxState::Stopped if shown.reason.is_none() => {
                findings.wrong(format!("sandbox {id} is {:?} and does not say why", shown.state));
            }
            SandboxState::Lost | SandboxState::Stopped => self.tally.lost_with_keeper += 1,
            // A daemon that outlived the keeper by a moment may have started another one and given it everything.
            SandboxState::Running | SandboxState::Stalled => check_pages(&self.client, id, findings),
            SandboxState::Paused => {}
            SandboxState::Undecided => {
                findings.wrong(format!("sandbox {id} is undecided: {:?}", shown.reason));
            }
        }
    }

    /// A snapshot that was sealed survives; another one may be lost, and then says so.
    fn check_survival(&mut self, saved: &Saved, shown: &Snapshot, model: SnapshotModel) {
        let (findings, id) = (&mut self.tally.findings, model.id);
        if shown.state != SnapshotState::Lost {
            self.tally.guests_verified += 1;
            let name = self.ticker.shard.new_name("checked");
            return check_snapshot(&self.client, model, name, findings);
        }
        if saved.is_sealed(id) {
            findings.lost_snapshot(format!("snapshot {id} was sealed, and is lost: {:?}", shown.reason));
        } else if shown.reason.is_none() {
            findings.wrong(format!("snapshot {id} is lost and does not say why"));
        }
        self.tally.lost_with_keeper += 1;
    }

    fn remove_all(&mut self, world: &World) {
        let sandboxes = world.sandboxes.keys().map(|id| Operation::RemoveSandbox { sandbox: *id });
        let snapshots = world.snapshots.keys().map(|id| Operation::DeleteSnapshot { snapshot: *id });
        for operation in sandboxes.chain(snapshots) {
            if let Err(error) = operation.ask(&self.client) {
                self.tally.findings.guest_failed(&format!("{operation:?} after the keeper's death"), &error);
            }
        }
    }
}
