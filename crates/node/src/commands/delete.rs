//! `rekindle delete` and `rekindle stop`: they cannot be undone, and ask for confirmation first.

use std::collections::BTreeSet;

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};
use uuid::Uuid;

use super::confirm::confirmed;
use super::session::Session;
use super::status::Status;
use super::target::{self, Target, sandbox_title};
use crate::api::types::{Sandbox, SandboxState};

/// The things to delete or stop.
#[derive(Args, Clone, Debug)]
pub struct EndArguments {
    /// Names, ids, or their beginnings or ends; sandbox/NAME or snapshot/NAME if both have the name
    #[arg(value_name = "NAME|ID", required = true)]
    references: Vec<String>,
    /// Do not ask first
    #[arg(long, short)]
    yes: bool,
}

/// Deletes sandboxes and snapshots, each after all were found.
pub fn run(session: &Session, arguments: &EndArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    let found = arguments.references.iter().map(|word| Target::find(&client, word));
    let mut targets: Vec<Target> = found.collect::<Result<_, _>>()?;
    let mut seen = BTreeSet::<Uuid>::new();
    targets.retain(|target| seen.insert(target.id()));
    // A snapshot is not deleted while a sandbox is paused in it.
    targets.sort_by_key(|target| matches!(target, Target::Snapshot(_)));
    if !confirmed(&question(&targets), arguments.yes)? {
        bail!("nothing was deleted");
    }
    end_each(session, "deleted", &targets, |target| {
        let id = target.id().to_string();
        match target {
            Target::Sandbox(_) => client.remove_sandbox(&id)?,
            Target::Snapshot(_) => client.delete_snapshot(&id)?,
        }
        Ok((json!({ "kind": target.kind(), "id": id }), format!("{} is deleted", target.title())))
    })
}

/// Ends one after the other until one is refused, and tells of those that were ended, to programs under `name`.
fn end_each<T>(
    session: &Session,
    name: &str,
    things: &[T],
    end: impl Fn(&T) -> anyhow::Result<(Value, String)>,
) -> anyhow::Result<Status> {
    let mut ended = Vec::new();
    let all = things.iter().try_for_each(|thing| {
        let (value, said) = end(thing)?;
        ended.push(value);
        if session.output.json { Ok(()) } else { session.output.line(&said) }
    });
    if session.output.json && (all.is_ok() || !ended.is_empty()) {
        session.output.value(&json!({ name: ended }))?;
    }
    all.map(|()| Status::Done)
}

fn question(targets: &[Target]) -> String {
    let titles: Vec<String> = targets.iter().map(Target::title).collect();
    let alive = |state| matches!(state, SandboxState::Running | SandboxState::Stalled);
    let running = targets.iter().any(|target| match target {
        Target::Sandbox(sandbox) => alive(sandbox.state),
        Target::Snapshot(_) => false,
    });
    let loss =
        if running { " Running guests are ended; their work since their last pause is lost." } else { "" };
    format!("Delete {}?{loss}", titles.join(", "))
}

/// Stops sandboxes, each after all were found.
pub fn stop(session: &Session, arguments: &EndArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    let found = arguments.references.iter().map(|word| target::sandbox(&client, word));
    let mut sandboxes: Vec<Sandbox> = found.collect::<Result<_, _>>()?;
    let mut seen = BTreeSet::<Uuid>::new();
    sandboxes.retain(|sandbox| seen.insert(sandbox.id));
    let titles: Vec<String> = sandboxes.iter().map(sandbox_title).collect();
    let loss = "All work there since the last pause is lost; `rekindle pause` keeps it.";
    if !confirmed(&format!("Stop {}? {loss}", titles.join(", ")), arguments.yes)? {
        bail!("nothing was stopped");
    }
    end_each(session, "sandboxes", &sandboxes, |sandbox| {
        let now = client.stop_sandbox(&sandbox.id.to_string())?;
        Ok((serde_json::to_value(&now)?, format!("{} is stopped", sandbox_title(&now))))
    })
}
