//! `rekindle drain`: pauses the sandboxes of a node, or moves them to others, and waits until everything is in the store, so
//! that it can go down.

use std::time::{Duration, Instant};

use clap::Args;
use rekindle_api::client::{Client, ClientError};
use rekindle_api::problem::Code;
use rekindle_api::types::{Drain, DrainNode, DrainedSandbox, Snapshot, SnapshotState};
use rekindle_settings::parse_time;

use super::failure::sentence;
use super::session::Session;
use super::shown;
use super::status::Status;
use super::target::{label, labels};
use super::wait::wait_for;

/// Time between two tries to reach a daemon that is being started again.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Options of a drain.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
A drained node takes no new guests. Its sandboxes come back when the daemon starts again, or with --undo; until then \
each can be resumed here or, by its snapshot, on another node. VMMs that others started are told, and not ended.

With --to each sandbox goes on at one of the nodes, from its pause, as by `rekindle move`. One that no node takes is paused \
here. --undo does not bring back those that moved: it names them, and `rekindle move` at their node does.")]
pub struct DrainArguments {
    /// Only sandboxes with this label; given again, those with all of them. The node goes on taking new ones
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label, conflicts_with = "undo")]
    labels: Vec<(String, String)>,
    /// Have the sandboxes go on at these nodes: names in peers.static, or HOST:PORT
    #[arg(long, value_name = "NODE[,NODE...]", value_delimiter = ',', conflicts_with = "undo")]
    to: Vec<String>,
    /// Take new guests again, and resume the sandboxes that a drain has paused
    #[arg(long)]
    undo: bool,
    /// Wait no longer than this until everything is in the store: 30s, 5m, 1h
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_time, conflicts_with = "undo")]
    timeout: Duration,
}

/// Drains the node, or undoes that.
pub fn run(session: &Session, arguments: &DrainArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    if arguments.undo {
        let drain = session.output.during("resuming", || client.undo_drain())?;
        return tell(session, &drain, "resumed", "the node takes new guests");
    }
    let doing = if arguments.to.is_empty() { "pausing" } else { "moving" };
    let until = Instant::now() + arguments.timeout;
    let how = DrainNode { labels: labels(&arguments.labels, "--label")?, to: arguments.to.clone() };
    let drain = session.output.during(doing, || drain_until(&client, &how, until))?;
    for snapshot in unsaved(&client, &how, &drain)? {
        let left = until.saturating_duration_since(Instant::now());
        match wait_for(session, &client, snapshot.id, SnapshotState::Published, left) {
            // It was deleted meanwhile.
            Err(error) if error.code() == Some(Code::NotFound) => {}
            answer => drop(answer?),
        }
    }
    tell(session, &drain, "paused", "everything is in the store")
}

/// Asks for a drain until it is answered: the same request may be repeated, and a daemon may be started again meanwhile.
fn drain_until(client: &Client, how: &DrainNode, until: Instant) -> Result<Drain, ClientError> {
    loop {
        match client.drain(how) {
            Err(error) if passes(&error) && Instant::now() < until => std::thread::park_timeout(ASK_EVERY),
            answer => return answer,
        }
    }
}

fn passes(error: &ClientError) -> bool {
    error.is_undecided() || matches!(error.code(), Some(Code::NotYet | Code::Ending))
}

/// The snapshots that are not in the store yet: all of a node that is drained, or those of the sandboxes with labels.
fn unsaved(client: &Client, how: &DrainNode, drain: &Drain) -> anyhow::Result<Vec<Snapshot>> {
    let mut snapshots = client.all_snapshots(&[])?;
    snapshots.retain(|snapshot| {
        let is_of_drain = drain.sandboxes.iter().any(|drained| drained.snapshot == Some(snapshot.id));
        let is_unsaved = matches!(snapshot.state, SnapshotState::Captured | SnapshotState::Sealed);
        is_unsaved && (how.labels.is_empty() || is_of_drain)
    });
    Ok(snapshots)
}

/// Tells of each sandbox, and of the whole; the first problem is the error.
fn tell(session: &Session, drain: &Drain, verb: &str, all: &str) -> anyhow::Result<Status> {
    if session.output.json {
        session.output.value(drain)?;
    }
    let mut first = None;
    for drained in &drain.sandboxes {
        match &drained.problem {
            None if session.output.json => {}
            None => session.output.line(&told(drained, verb))?,
            Some(problem) => {
                let error = anyhow::Error::from(ClientError::Problem(Box::new(problem.clone())));
                let error = error.context(format!("{} is not {verb}", title(drained)));
                match first {
                    None => first = Some(error),
                    Some(_) => session.output.note(&format!("rekindle: {}", sentence(&error))),
                }
            }
        }
    }
    if !drain.fault_sockets.is_empty() {
        let ids: Vec<String> = drain.fault_sockets.iter().map(ToString::to_string).collect();
        session.output.note(&format!(
            "VMMs that others started are still served; end them before the machine goes down. Their fault sockets: {}",
            ids.join(", ")
        ));
    }
    if let Some(error) = first {
        return Err(error);
    }
    if !session.output.json {
        let moved = drain.sandboxes.iter().filter(|drained| drained.moved.is_some()).count();
        let here = drain.sandboxes.len() - moved;
        let elsewhere = (moved > 0).then(|| format!("{} at other nodes", counted(moved)));
        let here = (here > 0 || moved == 0).then(|| format!("{} {verb}", counted(here)));
        let counted: Vec<String> = elsewhere.into_iter().chain(here).collect();
        session.output.line(&format!("{}, and {all}", counted.join(", ")))?;
    }
    Ok(Status::Done)
}

fn counted(sandboxes: usize) -> String {
    match sandboxes {
        1 => "1 sandbox is".to_owned(),
        count => format!("{count} sandboxes are"),
    }
}

/// The end of a drained sandbox, or of one that came back.
fn told(drained: &DrainedSandbox, verb: &str) -> String {
    let title = title(drained);
    match (&drained.moved, &drained.not_moved) {
        (Some(moved), _) => format!("{title} runs at node {} as {}", moved.node, moved.sandbox),
        (None, Some(reason)) => format!("{title} is {verb} here: {reason}"),
        (None, None) => format!("{title} is {verb}"),
    }
}

fn title(drained: &DrainedSandbox) -> String {
    format!("sandbox {}", shown::name_or_id(drained.name.as_deref(), &drained.sandbox))
}
