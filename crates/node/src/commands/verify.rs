//! `rekindle verify`: reads every page of a snapshot and checks it.

use std::time::Instant;

use clap::Args;

use super::session::Session;
use super::shown;
use super::status::Status;
use super::target::{Reference, Target, snapshot_of, snapshot_title};

/// The snapshot to verify.
#[derive(Args, Clone, Debug)]
pub struct VerifyArguments {
    #[command(flatten)]
    target: Reference,
}

/// Verifies it; of a sandbox, the snapshot of its last pause.
pub fn run(session: &Session, arguments: &VerifyArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    let snapshot = match Target::find(&client, &arguments.target.reference)? {
        Target::Snapshot(snapshot) => *snapshot,
        sandbox @ Target::Sandbox(_) => client.snapshot(&snapshot_of(&sandbox)?.to_string())?,
    };
    let id = snapshot.id.to_string();
    let asked = Instant::now();
    let found = session.output.during("reading every page", || client.verify_snapshot(&id))?;
    if session.output.json {
        session.output.value(&found)?;
    } else {
        let took = shown::duration(asked.elapsed());
        session.output.line(&format!(
            "{}: {} pages read in {took}, {} wrong",
            snapshot_title(&snapshot),
            found.pages,
            found.wrong_pages
        ))?;
        if let Some(first) = &found.first {
            session.output.line(&format!("the first of them: {first}"))?;
        }
    }
    Ok(if found.wrong_pages == 0 { Status::Done } else { Status::CheckFailed })
}
