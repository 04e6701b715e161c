//! `rekindle pause` and `rekindle checkpoint`: take snapshots of sandboxes, which end or go on.

use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use rekindle_api::client::Client;
use rekindle_api::types::{
    CheckpointSandbox, Labels, Name, PauseSandbox, PeriodicCheckpoints, Sandbox, Snapshot,
};
use rekindle_settings::parse_time;

use super::delete::{do_each, nothing_matches};
use super::period::PeriodArguments;
use super::selection::Selection;
use super::session::Session;
use super::shown;
use super::status::Status;
use super::target::{bracketed_id, label, labels, sandbox_title, snapshot_title};
use super::wait::{StateWord, wait_for};

/// The sandboxes to pause or to checkpoint, with options.
#[derive(Args, Clone, Debug)]
pub struct PauseArguments {
    #[command(flatten)]
    selection: Selection,
    /// The snapshot's name
    #[arg(long, conflicts_with_all = ["with", "all"])]
    name: Option<Name>,
    /// A label to put on each snapshot; can be given again
    #[arg(long = "snapshot-label", value_name = "NAME=VALUE", value_parser = label)]
    snapshot_labels: Vec<(String, String)>,
    /// Then wait until the snapshot is in this state
    #[arg(long, value_enum, value_name = "STATE")]
    wait: Option<StateWord>,
    /// Wait no longer than this: 30s, 5m, 1h; the snapshot goes on being saved after that
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_time, requires = "wait")]
    timeout: Duration,
    /// A key of your choice: the same request under the same key is done once, however often it is sent
    #[arg(long, value_name = "KEY", conflicts_with_all = ["with", "all"])]
    idempotency_key: Option<String>,
}

/// The sandboxes to checkpoint, with options.
#[derive(Args, Clone, Debug)]
pub struct CheckpointArguments {
    #[command(flatten)]
    each: PauseArguments,
    #[command(flatten)]
    period: PeriodArguments,
}

/// The end of a guest of which a snapshot is taken.
#[derive(Clone, Copy)]
enum Then {
    Ends,
    /// With the checkpoints that it takes from then on, if they are said.
    GoesOn(Option<PeriodicCheckpoints>),
}

/// Pauses them.
pub fn run(session: &Session, arguments: &PauseArguments) -> anyhow::Result<Status> {
    arguments.take_each(session, Then::Ends)
}

/// Checkpoints them.
pub fn checkpoint(session: &Session, arguments: &CheckpointArguments) -> anyhow::Result<Status> {
    arguments.each.take_each(session, Then::GoesOn(arguments.period.checkpoints()))
}

impl PauseArguments {
    fn take_each(&self, session: &Session, then: Then) -> anyhow::Result<Status> {
        let client = session.client()?;
        let labels = labels(&self.snapshot_labels, "--snapshot-label")?;
        let sandboxes = self.selection.sandboxes(&client)?;
        match sandboxes.as_slice() {
            [] => nothing_matches(session, "snapshots"),
            [sandbox] if self.selection.is_by_name() => {
                let taken = self.take(session, &client, sandbox, (labels, then))?;
                tell(session, sandbox, taken, then)
            }
            several => {
                self.refuse_for(several.len())?;
                do_each(session, "snapshots", several, |sandbox| {
                    let (snapshot, said) = self.take(session, &client, sandbox, (labels.clone(), then))?;
                    Ok((serde_json::to_value(&snapshot)?, said))
                })
            }
        }
    }

    fn refuse_for(&self, several: usize) -> anyhow::Result<()> {
        if let Some(name) = &self.name {
            bail!("--name {name} is for one snapshot, and {several} sandboxes are named");
        }
        if let Some(key) = &self.idempotency_key {
            bail!("--idempotency-key {key} is for one request, and {several} sandboxes are named");
        }
        Ok(())
    }

    /// The snapshot of a sandbox, and a sentence about it.
    fn take(
        &self,
        session: &Session,
        client: &Client,
        sandbox: &Sandbox,
        (labels, then): (Labels, Then),
    ) -> anyhow::Result<(Snapshot, String)> {
        let (id, key, name) = (sandbox.id.to_string(), self.idempotency_key.as_deref(), self.name.clone());
        let asked = Instant::now();
        let mut snapshot = match then {
            Then::Ends => {
                let how = PauseSandbox { name, labels };
                session.output.during("pausing", || client.pause_sandbox(&id, key, &how))?
            }
            Then::GoesOn(checkpoints) => {
                let how = CheckpointSandbox { name, labels, checkpoints };
                session.output.during("checkpointing", || client.checkpoint_sandbox(&id, key, &how))?
            }
        };
        let took = shown::duration(asked.elapsed());
        if let Some(state) = self.wait {
            snapshot = wait_for(session, client, snapshot.id, state.into(), self.timeout)?;
        }
        let (title, into) = (sandbox_title(sandbox), snapshot_title(&snapshot));
        let id = bracketed_id(snapshot.name.as_deref(), &snapshot.id);
        let said = match then {
            Then::Ends => format!("{title} is paused into {into} in {took}{id}"),
            Then::GoesOn(_) => format!("{title} goes on; {into} was taken of it in {took}{id}"),
        };
        Ok((snapshot, said))
    }
}

/// Shows one snapshot, and the next step.
fn tell(
    session: &Session,
    sandbox: &Sandbox,
    (snapshot, said): (Snapshot, String),
    then: Then,
) -> anyhow::Result<Status> {
    if session.output.json {
        session.output.value(&snapshot)?;
        return Ok(Status::Done);
    }
    session.output.line(&said)?;
    session.output.hint(&match then {
        Then::Ends => {
            let name = shown::name_or_id(sandbox.name.as_deref(), &sandbox.id);
            format!(
                "Resume it with `rekindle resume {name}`, now if you like; `rekindle wait {name}` waits until it is in the store."
            )
        }
        Then::GoesOn(_) => {
            let name = shown::name_or_id(snapshot.name.as_deref(), &snapshot.id);
            format!(
                "`rekindle resume {name}` makes another sandbox of it, now if you like; `rekindle wait {name}` waits until it is in the store."
            )
        }
    });
    Ok(Status::Done)
}
