//! `rekindle pause`: pauses a sandbox into a snapshot.

use std::time::{Duration, Instant};

use clap::Args;

use super::session::Session;
use super::shown;
use super::status::Status;
use super::target::{self, LabelArguments, Reference, bracketed_id, sandbox_title, snapshot_title};
use super::wait::{StateWord, wait_for};
use crate::api::types::{Name, PauseSandbox};
use crate::settings::parse_time;

/// The sandbox to pause, with options.
#[derive(Args, Clone, Debug)]
pub struct PauseArguments {
    #[command(flatten)]
    sandbox: Reference,
    /// The snapshot's name
    #[arg(long)]
    name: Option<Name>,
    #[command(flatten)]
    labels: LabelArguments,
    /// Then wait until the snapshot is in this state
    #[arg(long, value_enum, value_name = "STATE")]
    wait: Option<StateWord>,
    /// Wait no longer than this: 30s, 5m, 1h; the snapshot goes on being saved after that
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_time, requires = "wait")]
    timeout: Duration,
    /// A key of your choice: the same request under the same key is done once, however often it is sent
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

/// Pauses it.
pub fn run(session: &Session, arguments: &PauseArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    let sandbox = target::sandbox(&client, &arguments.sandbox.reference)?;
    let how = PauseSandbox { name: arguments.name.clone(), labels: arguments.labels.labels()? };
    let (id, key) = (sandbox.id.to_string(), arguments.idempotency_key.as_deref());
    let asked = Instant::now();
    let mut snapshot = session.output.during("pausing", || client.pause_sandbox(&id, key, &how))?;
    let took = asked.elapsed();
    if let Some(state) = arguments.wait {
        snapshot = wait_for(session, &client, snapshot.id, state.into(), arguments.timeout)?;
    }
    if session.output.json {
        session.output.value(&snapshot)?;
        return Ok(Status::Done);
    }
    session.output.line(&format!(
        "{} is paused into {} in {}{}",
        sandbox_title(&sandbox),
        snapshot_title(&snapshot),
        shown::duration(took),
        bracketed_id(snapshot.name.as_deref(), &snapshot.id)
    ))?;
    let name = shown::name_or_id(sandbox.name.as_deref(), &sandbox.id);
    session.output.hint(&format!(
        "Resume it with `rekindle resume {name}`, now if you like; `rekindle wait {name}` waits until it is in the store."
    ));
    Ok(Status::Done)
}
