//! `rekindle pause`: pauses sandboxes, each into a snapshot.

use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use rekindle_api::client::Client;
use rekindle_api::types::{Name, PauseSandbox, Sandbox, Snapshot};

use super::delete::{do_each, nothing_matches};
use super::selection::Selection;
use super::session::Session;
use super::shown;
use super::status::Status;
use super::target::{bracketed_id, label, labels, sandbox_title, snapshot_title};
use super::wait::{StateWord, wait_for};
use crate::settings::parse_time;

/// The sandboxes to pause, with options.
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

/// Pauses them.
pub fn run(session: &Session, arguments: &PauseArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    let labels = labels(&arguments.snapshot_labels, "--snapshot-label")?;
    let sandboxes = arguments.selection.sandboxes(&client)?;
    let how = PauseSandbox { name: arguments.name.clone(), labels };
    match sandboxes.as_slice() {
        [] => nothing_matches(session, "snapshots"),
        [sandbox] if arguments.selection.is_by_name() => arguments.pause(session, &client, sandbox, &how),
        several => {
            if let Some(name) = &arguments.name {
                bail!("--name {name} is for one snapshot, and {} sandboxes are named", several.len());
            }
            if let Some(key) = &arguments.idempotency_key {
                bail!(
                    "--idempotency-key {key} is for one request, and {} sandboxes are named",
                    several.len()
                );
            }
            do_each(session, "snapshots", several, |sandbox| {
                let (snapshot, said) = arguments.paused(session, &client, sandbox, &how)?;
                Ok((serde_json::to_value(&snapshot)?, said))
            })
        }
    }
}

impl PauseArguments {
    /// Pauses one sandbox.
    fn pause(
        &self,
        session: &Session,
        client: &Client,
        sandbox: &Sandbox,
        how: &PauseSandbox,
    ) -> anyhow::Result<Status> {
        let (snapshot, said) = self.paused(session, client, sandbox, how)?;
        if session.output.json {
            session.output.value(&snapshot)?;
            return Ok(Status::Done);
        }
        session.output.line(&said)?;
        let name = shown::name_or_id(sandbox.name.as_deref(), &sandbox.id);
        session.output.hint(&format!(
            "Resume it with `rekindle resume {name}`, now if you like; `rekindle wait {name}` waits until it is in the store."
        ));
        Ok(Status::Done)
    }

    /// The snapshot of a sandbox, and a sentence about it.
    fn paused(
        &self,
        session: &Session,
        client: &Client,
        sandbox: &Sandbox,
        how: &PauseSandbox,
    ) -> anyhow::Result<(Snapshot, String)> {
        let (id, key) = (sandbox.id.to_string(), self.idempotency_key.as_deref());
        let asked = Instant::now();
        let mut snapshot = session.output.during("pausing", || client.pause_sandbox(&id, key, how))?;
        let took = shown::duration(asked.elapsed());
        if let Some(state) = self.wait {
            snapshot = wait_for(session, client, snapshot.id, state.into(), self.timeout)?;
        }
        let (title, into) = (sandbox_title(sandbox), snapshot_title(&snapshot));
        let id = bracketed_id(snapshot.name.as_deref(), &snapshot.id);
        Ok((snapshot, format!("{title} is paused into {into} in {took}{id}")))
    }
}
