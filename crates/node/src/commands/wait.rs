//! `rekindle wait`: waits until a snapshot has come as far as is asked.

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use uuid::Uuid;

use super::session::Session;
use super::shown;
use super::status::Status;
use super::target::{Reference, Target, snapshot_of, snapshot_title};
use crate::api::types::{Snapshot, SnapshotState};
use crate::client::{Client, ClientError};
use crate::settings::parse_time;

/// What to wait for.
#[derive(Args, Clone, Debug)]
pub struct WaitArguments {
    #[command(flatten)]
    target: Reference,
    /// The state to wait for, or one beyond it
    #[arg(long, alias = "for", value_enum, value_name = "STATE", default_value_t = StateWord::Published)]
    state: StateWord,
    /// Wait no longer than this: 30s, 5m, 1h
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_time)]
    timeout: Duration,
}

/// How far a snapshot can come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StateWord {
    /// Its memory is frozen in RAM; everything can be done with it
    Captured,
    /// Its layers are on the node's disk
    Sealed,
    /// It is in the store
    Published,
}

impl From<StateWord> for SnapshotState {
    fn from(word: StateWord) -> Self {
        match word {
            StateWord::Captured => Self::Captured,
            StateWord::Sealed => Self::Sealed,
            StateWord::Published => Self::Published,
        }
    }
}

/// Waits; of a sandbox, for the snapshot of its last pause.
pub fn run(session: &Session, arguments: &WaitArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    let target = Target::find(&client, &arguments.target.reference)?;
    let asked = Instant::now();
    let snapshot =
        wait_for(session, &client, snapshot_of(&target)?, arguments.state.into(), arguments.timeout)?;
    if session.output.json {
        session.output.value(&snapshot)?;
    } else {
        let state = snapshot.state;
        let took = shown::duration(asked.elapsed());
        session.output.line(&format!("{} is {state} after {took}", snapshot_title(&snapshot)))?;
    }
    Ok(Status::Done)
}

/// Waits at most `limit`, and shows that it does.
pub fn wait_for(
    session: &Session,
    client: &Client,
    snapshot: Uuid,
    state: SnapshotState,
    limit: Duration,
) -> Result<Snapshot, ClientError> {
    let text = format!("waiting until it is {state}");
    session.output.during(&text, || client.wait_snapshot(&snapshot.to_string(), state, limit))
}
