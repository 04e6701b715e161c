//! `rekindle wait`: waits until a snapshot has reached a stage.

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use rekindle_api::client::{Client, ClientError};
use rekindle_api::problem::Code;
use rekindle_api::types::{Snapshot, SnapshotState};
use rekindle_settings::parse_time;
use uuid::Uuid;

use super::session::Session;
use super::shown;
use super::status::Status;
use super::target::{Reference, Target, snapshot_of, snapshot_title};

/// The snapshot and stage to wait for.
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

/// Stages that a snapshot can reach.
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

/// Between two looks at why a snapshot does not get on.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Waits at most `limit`, shows that it does, and says why the snapshot does not get on when that is known or changes.
pub fn wait_for(
    session: &Session,
    client: &Client,
    snapshot: Uuid,
    state: SnapshotState,
    limit: Duration,
) -> Result<Snapshot, ClientError> {
    let (until, reference) = (Instant::now() + limit, snapshot.to_string());
    let text = format!("waiting until it is {state}");
    let mut told = None;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let turn = left.min(LOOK_EVERY);
        match session.output.during(&text, || client.wait_snapshot(&reference, state, turn)) {
            Err(error) if error.code() == Some(Code::NotYet) && turn < left => {}
            answer => return answer,
        }
        let reason = client.snapshot(&reference)?.reason;
        if reason.is_some() && reason != told {
            session.output.note(&format!("it is not {state} yet: {}", reason.as_deref().unwrap_or_default()));
            told = reason;
        }
    }
}
