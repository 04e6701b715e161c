//! The sandboxes and snapshots that one actor alone works with.

use std::collections::BTreeSet;

use rekindle_api::types::{MemoryBacking, Sandbox};
use uuid::Uuid;

use super::findings::Findings;
use super::model::{ById, GuestModel, Life, Pages, SandboxModel, SnapshotModel};
use super::operation::{Operation, Outcome};

/// Acknowledgements to one actor, and nothing else.
#[derive(Clone, Debug)]
pub(crate) struct Shard {
    /// Prefix of the names given here.
    pub(crate) name: String,
    names_given: u64,
    pub(crate) sandboxes: ById<SandboxModel>,
    pub(crate) snapshots: ById<SnapshotModel>,
}

impl Shard {
    pub(crate) fn new(name: String) -> Self {
        Self { name, names_given: 0, sandboxes: ById::new(), snapshots: ById::new() }
    }

    /// A name that nothing had before.
    pub(crate) fn new_name(&mut self, what: &str) -> String {
        self.names_given += 1;
        format!("{}-{what}-{}", self.name, self.names_given)
    }

    /// Snapshots that a sandbox here is paused in.
    pub(crate) fn paused_in(&self) -> BTreeSet<Uuid> {
        self.sandboxes.values().filter_map(SandboxModel::paused_in).collect()
    }

    /// The model after `operation` was answered by `outcome`.
    pub(crate) fn answered(&mut self, operation: &Operation, outcome: &Outcome, findings: &mut Findings) {
        match (operation, outcome) {
            (Operation::Create { memory_bytes, backing, .. }, Outcome::Made(made)) => {
                for sandbox in made {
                    self.adopt(sandbox, *memory_bytes, *backing, GuestModel::fresh(), Pages::Fresh);
                }
            }
            (Operation::Tell { sandbox, command }, outcome) => {
                self.told(*sandbox, command, outcome, findings);
            }
            (Operation::Pause { sandbox, .. }, Outcome::Paused(snapshot)) => {
                self.paused(*sandbox, snapshot.id);
            }
            (Operation::Checkpoint { sandbox, .. }, Outcome::Checkpointed(snapshot)) => {
                self.keep_snapshot(*sandbox, snapshot.id);
            }
            (Operation::Resume { sandbox }, Outcome::Resumed) => self.resumed(*sandbox),
            (Operation::ResumeSnapshot { snapshot, .. }, Outcome::Made(made)) => {
                self.resumed_into(*snapshot, made);
            }
            (Operation::Fork { sandbox, .. }, Outcome::Made(made)) => self.forked(*sandbox, made, findings),
            (Operation::RemoveSandbox { sandbox }, Outcome::Gone) => drop(self.sandboxes.remove(sandbox)),
            (Operation::DeleteSnapshot { snapshot }, Outcome::Gone) => drop(self.snapshots.remove(snapshot)),
            (operation, outcome) => findings.wrong(format!("{operation:?} was answered by {outcome:?}")),
        }
    }

    /// A sandbox is there whose guest is as `guest` says.
    pub(crate) fn adopt(
        &mut self,
        shown: &Sandbox,
        memory_bytes: u64,
        backing: MemoryBacking,
        guest: GuestModel,
        pages: Pages,
    ) {
        let life = Life::Running { guest, pages };
        self.sandboxes.insert(shown.id, SandboxModel { id: shown.id, memory_bytes, backing, life });
    }

    /// A sandbox is paused in a snapshot.
    pub(crate) fn paused(&mut self, sandbox: Uuid, snapshot: Uuid) {
        if self.keep_snapshot(sandbox, snapshot)
            && let Some(sandbox) = self.sandboxes.get_mut(&sandbox)
        {
            sandbox.life = Life::Paused(snapshot);
        }
    }

    /// A snapshot was made of a sandbox that ran; false if it did not run.
    pub(crate) fn keep_snapshot(&mut self, sandbox: Uuid, snapshot: Uuid) -> bool {
        let Some(SandboxModel { memory_bytes, backing, life: Life::Running { guest, .. }, .. }) =
            self.sandboxes.get(&sandbox)
        else {
            return false;
        };
        let (memory_bytes, backing, guest) = (*memory_bytes, *backing, guest.clone());
        self.snapshots.insert(snapshot, SnapshotModel { id: snapshot, backing, memory_bytes, guest });
        true
    }

    /// A paused sandbox runs again.
    pub(crate) fn resumed(&mut self, sandbox: Uuid) {
        let Some(sandbox) = self.sandboxes.get_mut(&sandbox) else { return };
        if let Life::Paused(snapshot) = sandbox.life
            && let Some(snapshot) = self.snapshots.get(&snapshot)
        {
            sandbox.life = Life::Running { guest: snapshot.guest.clone(), pages: Pages::Served };
        }
    }

    /// New sandboxes run from a snapshot.
    pub(crate) fn resumed_into(&mut self, snapshot: Uuid, made: &[Sandbox]) {
        let Some(SnapshotModel { memory_bytes, backing, guest, .. }) = self.snapshots.get(&snapshot).cloned()
        else {
            return;
        };
        for sandbox in made {
            self.adopt(sandbox, memory_bytes, backing, guest.clone(), Pages::of(made.len(), backing));
        }
    }

    /// Forks of a sandbox run. One that ran was paused for it, and runs on from that snapshot.
    fn forked(&mut self, sandbox: Uuid, made: &[Sandbox], findings: &mut Findings) {
        let origins: BTreeSet<Uuid> = made.iter().filter_map(|fork| fork.origin).collect();
        let Some(origin) = origins.first().copied().filter(|_| origins.len() == 1) else {
            return findings.wrong(format!("forks of {sandbox} come from {origins:?}"));
        };
        if !self.snapshots.contains_key(&origin) {
            self.keep_snapshot(sandbox, origin);
            if let Some(SandboxModel { life: Life::Running { pages, .. }, .. }) =
                self.sandboxes.get_mut(&sandbox)
            {
                *pages = Pages::Served;
            }
        }
        self.resumed_into(origin, made);
    }

    fn told(
        &mut self,
        sandbox: Uuid,
        command: &rekindle_guest::process::protocol::Command,
        outcome: &Outcome,
        findings: &mut Findings,
    ) {
        let Some(SandboxModel { backing, life: Life::Running { guest, .. }, .. }) =
            self.sandboxes.get_mut(&sandbox)
        else {
            return findings.wrong(format!("sandbox {sandbox} answered although it does not run"));
        };
        let verified = match outcome {
            Outcome::Verified(verified) => *verified,
            Outcome::Ticked(ticked) => {
                if !guest.ticked(ticked.count) {
                    findings.wrong(format!("sandbox {sandbox} ticked to {} out of turn", ticked.count));
                }
                ticked.verified
            }
            Outcome::Told => return guest.did(command, *backing),
            Outcome::Made(_)
            | Outcome::Resumed
            | Outcome::Paused(_)
            | Outcome::Checkpointed(_)
            | Outcome::Gone => {
                return findings.wrong(format!("sandbox {sandbox} was told {command:?}: {outcome:?}"));
            }
        };
        if verified.mismatches > 0 {
            findings.wrong_pages(u64::from(verified.mismatches), format!("sandbox {sandbox}: {verified:?}"));
        }
    }
}

impl SandboxModel {
    /// The snapshot it is paused in, if it is paused.
    pub(crate) fn paused_in(&self) -> Option<Uuid> {
        match self.life {
            Life::Paused(snapshot) => Some(snapshot),
            Life::Running { .. } => None,
        }
    }

    /// Its guest, if it runs.
    pub(crate) fn guest(&mut self) -> Option<&mut GuestModel> {
        match &mut self.life {
            Life::Running { guest, .. } => Some(guest),
            Life::Paused(_) => None,
        }
    }
}
