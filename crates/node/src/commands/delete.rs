//! `rekindle delete` and `rekindle stop`, which cannot be undone and ask for confirmation first, and `rekindle forget`.

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};

use super::confirm::confirmed;
use super::failure::sentence;
use super::selection::{Selection, has_guest};
use super::session::Session;
use super::status::Status;
use super::target::{Target, sandbox_title, snapshot_title};

/// The things to delete or stop.
#[derive(Args, Clone, Debug)]
pub struct EndArguments {
    #[command(flatten)]
    selection: Selection,
    /// Do not ask first
    #[arg(long, short)]
    yes: bool,
}

/// The snapshots to forget.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
The snapshot stays in the store, and every other node keeps it. This node lists it again once it is asked for it by its id, or \
by `rekindle catalog rebuild`. `rekindle delete` deletes a snapshot for all nodes.")]
pub struct ForgetArguments {
    #[command(flatten)]
    selection: Selection,
}

/// Deletes sandboxes and snapshots, each after all were found.
pub fn run(session: &Session, arguments: &EndArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    let targets = arguments.selection.targets(&client)?;
    if targets.is_empty() {
        return nothing_matches(session, "deleted");
    }
    if !confirmed(&question(&targets), arguments.yes)? {
        bail!("nothing was deleted");
    }
    do_each(session, "deleted", &targets, |target| {
        let id = target.id().to_string();
        let said = json!({ "kind": target.kind(), "id": id });
        let Target::Snapshot(_) = target else {
            client.remove_sandbox(&id)?;
            return Ok((said, format!("{} is deleted", target.title())));
        };
        let used_by = client.delete_snapshot(&id)?.used_by;
        if !used_by.is_empty() {
            let nodes: Vec<String> = used_by.iter().map(ToString::to_string).collect();
            let nodes = nodes.join(", ");
            session.output.note(&format!("sandboxes run from it on other nodes, and go on: {nodes}"));
        }
        Ok((said, format!("{} is deleted", target.title())))
    })
}

/// Forgets snapshots on the node, each after all were found. They stay in the store, so nothing is asked first.
pub fn forget(session: &Session, arguments: &ForgetArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    let snapshots = arguments.selection.snapshots(&client)?;
    if snapshots.is_empty() {
        return nothing_matches(session, "forgotten");
    }
    do_each(session, "forgotten", &snapshots, |snapshot| {
        client.forget_snapshot(&snapshot.id.to_string())?;
        Ok((json!({ "id": snapshot.id }), format!("{} is forgotten here", snapshot_title(snapshot))))
    })
}

/// Does `work` with one thing after the other, and tells of those with which it was done, to programs under `name`. One
/// that is refused does not stop the others; the first refusal is the error.
pub fn do_each<T>(
    session: &Session,
    name: &str,
    things: &[T],
    work: impl Fn(&T) -> anyhow::Result<(Value, String)>,
) -> anyhow::Result<Status> {
    let (mut done, mut refused) = (Vec::new(), None);
    for thing in things {
        match work(thing) {
            Ok((value, said)) => {
                done.push(value);
                if !session.output.json {
                    session.output.line(&said)?;
                }
            }
            Err(error) if refused.is_none() => refused = Some(error),
            Err(error) => session.output.note(&format!("rekindle: {}", sentence(&error))),
        }
    }
    if session.output.json && (refused.is_none() || !done.is_empty()) {
        session.output.value(&json!({ name: done }))?;
    }
    refused.map_or(Ok(Status::Done), Err)
}

/// That nothing was selected, which is no error: a script may ask for it again.
pub fn nothing_matches(session: &Session, name: &str) -> anyhow::Result<Status> {
    if session.output.json {
        session.output.value(&json!({ name: [] }))?;
    } else {
        session.output.line("There is nothing to do: no sandbox or snapshot matches")?;
    }
    Ok(Status::Done)
}

fn question(targets: &[Target]) -> String {
    let titles: Vec<String> = targets.iter().map(Target::title).collect();
    let running = targets.iter().any(|target| match target {
        Target::Sandbox(sandbox) => has_guest(sandbox.state),
        Target::Snapshot(_) => false,
    });
    let loss =
        if running { " Running guests are ended; their work since their last pause is lost." } else { "" };
    format!("Delete {}?{loss}", titles.join(", "))
}

/// Stops sandboxes, each after all were found.
pub fn stop(session: &Session, arguments: &EndArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    let sandboxes = arguments.selection.sandboxes(&client)?;
    if sandboxes.is_empty() {
        return nothing_matches(session, "sandboxes");
    }
    let titles: Vec<String> = sandboxes.iter().map(sandbox_title).collect();
    let loss = "All work there since the last pause is lost; `rekindle pause` keeps it.";
    if !confirmed(&format!("Stop {}? {loss}", titles.join(", ")), arguments.yes)? {
        bail!("nothing was stopped");
    }
    do_each(session, "sandboxes", &sandboxes, |sandbox| {
        let now = client.stop_sandbox(&sandbox.id.to_string())?;
        Ok((serde_json::to_value(&now)?, format!("{} is stopped", sandbox_title(&now))))
    })
}
