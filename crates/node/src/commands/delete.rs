//! `rekindle delete` and `rekindle stop`, which ask for confirmation first, `rekindle undelete` and `rekindle forget`.

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};

use super::confirm::confirmed;
use super::failure::sentence;
use super::selection::{Selection, has_guest};
use super::session::Session;
use super::shown;
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

/// The snapshots to bring back.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
A snapshot of the store that was deleted while the setting undelete_window was more than 0s can be brought back for that time, \
by any node of the store. `rekindle list --deleted` lists these snapshots. One that was not in the store yet when it was \
deleted is gone at once.")]
pub struct UndeleteArguments {
    /// Snapshots to bring back: ids, or unique beginnings or ends of ids
    #[arg(required = true, value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
}

/// The snapshots to forget.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
The snapshot stays in the store, and every other node keeps it. This node lists it again once it is asked for it by its id, or \
by `rekindle catalog rebuild`. `rekindle delete` deletes a snapshot for all nodes. A snapshot that is not in the store yet, and \
that this node reads from another one, can be forgotten too: that node keeps it.")]
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
        let deleted = client.delete_snapshot(&id)?;
        if !deleted.used_by.is_empty() {
            let nodes: Vec<String> = deleted.used_by.iter().map(ToString::to_string).collect();
            let nodes = nodes.join(", ");
            session.output.note(&format!("sandboxes run from it on other nodes, and go on: {nodes}"));
        }
        let title = target.title();
        let Some(seconds) = deleted.undelete_seconds else {
            return Ok((said, format!("{title} is deleted")));
        };
        let said = json!({ "kind": target.kind(), "id": id, "undelete_seconds": seconds });
        let time = shown::age(0, seconds.saturating_mul(1000));
        Ok((
            said,
            format!("{title} is deleted; `rekindle undelete {id}` brings it back, for at least {time}"),
        ))
    })
}

/// Brings deleted snapshots back. They are no targets of other commands, so each is looked for by the daemon.
pub fn undelete(session: &Session, arguments: &UndeleteArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    do_each(session, "undeleted", &arguments.snapshots, |reference| {
        let back = client.undelete_snapshot(reference)?;
        Ok((json!({ "id": back.id }), format!("{} is back", snapshot_title(&back))))
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
