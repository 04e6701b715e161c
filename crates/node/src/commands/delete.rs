//! `rekindle delete` and `rekindle stop`: they cannot be undone, and ask for confirmation first.

use std::collections::BTreeSet;

use anyhow::bail;
use clap::Args;
use serde_json::json;
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
    if !confirmed(&question(&targets), arguments.yes)? {
        bail!("nothing was deleted");
    }
    let mut deleted = Vec::new();
    for target in &targets {
        let id = target.id().to_string();
        match target {
            Target::Sandbox(_) => client.remove_sandbox(&id)?,
            Target::Snapshot(_) => client.delete_snapshot(&id)?,
        }
        deleted.push(json!({ "kind": target.kind(), "id": id }));
        if !session.output.json {
            session.output.line(&format!("{} is deleted", target.title()))?;
        }
    }
    if session.output.json {
        session.output.value(&json!({ "deleted": deleted }))?;
    }
    Ok(Status::Done)
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
    let mut stopped = Vec::new();
    for sandbox in &sandboxes {
        let now = client.stop_sandbox(&sandbox.id.to_string())?;
        if !session.output.json {
            session.output.line(&format!("{} is stopped", sandbox_title(&now)))?;
        }
        stopped.push(now);
    }
    if session.output.json {
        session.output.value(&json!({ "sandboxes": stopped }))?;
    }
    Ok(Status::Done)
}
