//! A request whose answer was lost: it was done or not, and in either case as a whole.

use rekindle_api::client::Client;
use rekindle_api::problem::Code;
use rekindle_api::types::{Sandbox, SandboxState};
use uuid::Uuid;

use crate::load::{Findings, GuestModel, Life, Operation, Outcome, Pages, Shard, World};

/// Facts with which a lost answer is found out.
pub(crate) struct Settling<'a> {
    pub(crate) client: &'a Client,
    /// Things listed after the restart.
    pub(crate) world: &'a World,
    pub(crate) shard: &'a mut Shard,
    pub(crate) findings: &'a mut Findings,
}

impl Settling<'_> {
    /// Brings the model to what the daemon made of `lost`.
    pub(crate) fn settle(&mut self, lost: &Operation) {
        match lost {
            Operation::Tell { sandbox, command } => {
                let Some(sandbox) = self.shard.sandboxes.get_mut(sandbox) else { return };
                let backing = sandbox.backing;
                if let Some(guest) = sandbox.guest() {
                    guest.may_have_done(command, backing);
                }
            }
            Operation::Create { name, memory_bytes, backing } => {
                for made in self.world.called(name) {
                    self.shard.adopt(&made, *memory_bytes, *backing, GuestModel::fresh(), Pages::Fresh);
                }
            }
            Operation::Pause { sandbox, name } => self.settle_pause(*sandbox, name),
            Operation::Checkpoint { sandbox, name } => self.settle_checkpoint(*sandbox, name),
            Operation::Resume { sandbox } => {
                if self.shown(*sandbox).is_some_and(runs) {
                    self.shard.resumed(*sandbox);
                }
            }
            Operation::ResumeSnapshot { snapshot, name, .. } => {
                self.shard.resumed_into(*snapshot, &self.world.called(name));
            }
            Operation::Fork { sandbox, name, .. } => self.settle_fork(*sandbox, name),
            Operation::RemoveSandbox { sandbox } => self.settle_remove(*sandbox),
            Operation::DeleteSnapshot { snapshot } => {
                if !self.world.snapshots.contains_key(snapshot) {
                    self.shard.snapshots.remove(snapshot);
                }
            }
        }
    }

    /// Asks once more, under the same key: now it is done, and nothing twice.
    pub(crate) fn ask_again(&mut self, lost: &Operation) {
        let is_keyed = match lost {
            Operation::Create { .. }
            | Operation::Pause { .. }
            | Operation::Checkpoint { .. }
            | Operation::ResumeSnapshot { .. }
            | Operation::Fork { .. } => true,
            Operation::Tell { .. }
            | Operation::Resume { .. }
            | Operation::RemoveSandbox { .. }
            | Operation::DeleteSnapshot { .. } => false,
        };
        if !is_keyed {
            return;
        }
        match lost.ask(self.client) {
            Ok(outcome) => {
                self.same_as_found(lost, &outcome);
                self.shard.answered(lost, &outcome, self.findings);
            }
            Err(error) => self.findings.guest_failed(&format!("asked again for {lost:?}"), &error),
        }
    }

    /// The same request must get the state found after the restart as its answer.
    fn same_as_found(&mut self, lost: &Operation, outcome: &Outcome) {
        let (found, answered): (Vec<Uuid>, Vec<Uuid>) = match (lost, outcome) {
            (Operation::Pause { name, .. }, Outcome::Paused(snapshot))
            | (Operation::Checkpoint { name, .. }, Outcome::Checkpointed(snapshot)) => {
                let found = self.world.snapshot_called(name).map(|snapshot| snapshot.id);
                (found.into_iter().collect(), vec![snapshot.id])
            }
            (
                Operation::Create { name, .. }
                | Operation::ResumeSnapshot { name, .. }
                | Operation::Fork { name, .. },
                Outcome::Made(made),
            ) => {
                let ids = |all: &[Sandbox]| all.iter().map(|sandbox| sandbox.id).collect();
                (ids(&self.world.called(name)), ids(made))
            }
            (_, _) => return,
        };
        if !found.iter().all(|id| answered.contains(id)) {
            self.findings
                .wrong(format!("{lost:?} had made {found:?}, and made {answered:?} when asked again"));
        }
    }

    /// The snapshot and the sandbox that is paused in it are there together or not at all.
    fn settle_pause(&mut self, sandbox: Uuid, name: &str) {
        let Some(shown) = self.shown(sandbox).cloned() else { return };
        let snapshot = self.world.snapshot_called(name).map(|snapshot| snapshot.id);
        match (shown.state == SandboxState::Paused, snapshot) {
            (true, Some(snapshot)) if shown.snapshot == Some(snapshot) => {
                self.shard.paused(sandbox, snapshot)
            }
            (false, None) => {}
            (_, snapshot) => self.findings.wrong(format!(
                "a pause of {sandbox} is half there: it is {:?} in {:?}, and the snapshot is {snapshot:?}",
                shown.state, shown.snapshot
            )),
        }
    }

    /// The sandbox runs, and goes on from the snapshot if that is there.
    fn settle_checkpoint(&mut self, sandbox: Uuid, name: &str) {
        let Some(shown) = self.shown(sandbox).cloned() else { return };
        let snapshot = self.world.snapshot_called(name).map(|snapshot| snapshot.id);
        let is_base = snapshot.is_some() && shown.origin == snapshot && shown.snapshot == snapshot;
        match snapshot {
            Some(snapshot) if is_base => drop(self.shard.keep_snapshot(sandbox, snapshot)),
            None => {}
            Some(snapshot) => self.findings.wrong(format!(
                "a checkpoint of {sandbox} is half there: it goes on from {:?}, and the snapshot is {snapshot}",
                shown.origin
            )),
        }
    }

    /// A running sandbox is paused for its forks and goes on, with any outcome for them.
    fn settle_fork(&mut self, sandbox: Uuid, name: &str) {
        let made = self.world.called(name);
        let Some(shown) = self.shown(sandbox).cloned() else { return };
        let Some(model) = self.shard.sandboxes.get(&sandbox) else { return };
        let source = match model.life {
            Life::Paused(snapshot) => Some(snapshot),
            Life::Running { .. } => {
                let is_new = |id: &Uuid| {
                    self.world.snapshots.contains_key(id) && !self.shard.snapshots.contains_key(id)
                };
                shown.snapshot.filter(is_new).inspect(|snapshot| {
                    self.shard.paused(sandbox, *snapshot);
                    self.shard.resumed(sandbox);
                })
            }
        };
        match source {
            Some(snapshot) => self.shard.resumed_into(snapshot, &made),
            None if made.is_empty() => {}
            None => self.findings.wrong(format!("forks {name} of {sandbox} are there without a snapshot")),
        }
    }

    /// A sandbox that was being removed is gone, or as before, or its guest has ended already.
    fn settle_remove(&mut self, sandbox: Uuid) {
        let state = self.shown(sandbox).map(|shown| shown.state);
        if state == Some(SandboxState::Stopped) {
            let again = Operation::RemoveSandbox { sandbox }.ask(self.client);
            if let Err(error) = again.or_else(|error| match error.code() {
                Some(Code::NotFound) => Ok(Outcome::Gone),
                _ => Err(error),
            }) {
                self.findings.guest_failed("removing a stopped sandbox", &error);
            }
        }
        if matches!(state, None | Some(SandboxState::Stopped)) {
            self.shard.sandboxes.remove(&sandbox);
        }
    }

    fn shown(&self, sandbox: Uuid) -> Option<&Sandbox> {
        self.world.sandboxes.get(&sandbox)
    }
}

/// True if a sandbox is shown with a guest.
pub(crate) fn runs(shown: &Sandbox) -> bool {
    matches!(shown.state, SandboxState::Running | SandboxState::Stalled)
}
