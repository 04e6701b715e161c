//! The things that a command is for: those that it names, those with labels, or all.

use std::collections::BTreeSet;

use clap::Args;
use rekindle_api::client::Client;
use rekindle_api::types::{LabelFilter, Sandbox, SandboxState, Snapshot, SnapshotState};
use uuid::Uuid;

use super::target::{self, Target, label_filter};

/// The things that a command is for.
#[derive(Args, Clone, Debug)]
pub struct Selection {
    /// Names, ids, or their beginnings or ends; sandbox/NAME or snapshot/NAME if both have the name
    #[arg(value_name = "NAME|ID", required_unless_present_any = ["with", "all"])]
    references: Vec<String>,
    /// Those with this label instead; given again, those with all of them
    #[arg(
        long = "label",
        id = "with",
        value_name = "NAME=VALUE",
        value_parser = label_filter,
        conflicts_with_all = ["references", "all"]
    )]
    labels: Vec<LabelFilter>,
    /// All there are instead
    #[arg(long, conflicts_with = "references")]
    all: bool,
}

impl Selection {
    /// True if things are named.
    pub fn is_by_name(&self) -> bool {
        !self.references.is_empty()
    }

    /// The sandboxes named, or those among the selected ones whose guests run.
    pub fn sandboxes(&self, client: &Client) -> anyhow::Result<Vec<Sandbox>> {
        if self.is_by_name() {
            let found = self.references.iter().map(|word| target::sandbox(client, word));
            return Ok(each_once(found.collect::<Result<_, _>>()?, |sandbox| sandbox.id));
        }
        let mut sandboxes = client.all_sandboxes(&self.labels)?;
        sandboxes.retain(|sandbox| has_guest(sandbox.state));
        Ok(sandboxes)
    }

    /// The snapshots named, or those selected that are in the store.
    pub fn snapshots(&self, client: &Client) -> anyhow::Result<Vec<Snapshot>> {
        if self.is_by_name() {
            let found = self.references.iter().map(|word| target::snapshot(client, word));
            return Ok(each_once(found.collect::<Result<_, _>>()?, |snapshot| snapshot.id));
        }
        let mut snapshots = client.all_snapshots(&self.labels)?;
        snapshots.retain(|snapshot| snapshot.state == SnapshotState::Published);
        Ok(snapshots)
    }

    /// The sandboxes and snapshots named or selected, snapshots last.
    pub fn targets(&self, client: &Client) -> anyhow::Result<Vec<Target>> {
        let mut targets = if self.is_by_name() {
            let found = self.references.iter().map(|word| Target::find(client, word));
            each_once(found.collect::<Result<_, _>>()?, Target::id)
        } else {
            let sandboxes = client.all_sandboxes(&self.labels)?.into_iter().map(Box::new);
            let snapshots = client.all_snapshots(&self.labels)?.into_iter().map(Box::new);
            sandboxes.map(Target::Sandbox).chain(snapshots.map(Target::Snapshot)).collect()
        };
        // A snapshot is not deleted while a sandbox is paused in it.
        targets.sort_by_key(|target| matches!(target, Target::Snapshot(_)));
        Ok(targets)
    }
}

/// True if a sandbox has a guest whose work an end would lose.
pub fn has_guest(state: SandboxState) -> bool {
    matches!(state, SandboxState::Running | SandboxState::Stalled)
}

fn each_once<T>(mut things: Vec<T>, id: impl Fn(&T) -> Uuid) -> Vec<T> {
    let mut seen = BTreeSet::new();
    things.retain(|thing| seen.insert(id(thing)));
    things
}
