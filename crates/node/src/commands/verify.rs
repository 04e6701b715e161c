//! `rekindle verify`: reads every page of a snapshot and checks it.

use std::time::Instant;

use clap::Args;

use super::session::Session;
use super::shown;
use super::status::Status;
use super::target::{Reference, Target, snapshot_of};

/// What to verify.
#[derive(Args, Clone, Debug)]
pub struct VerifyArguments {
    #[command(flatten)]
    target: Reference,
}

/// Verifies it; of a sandbox, the snapshot of its last pause.
pub fn run(session: &Session, arguments: &VerifyArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    let target = Target::find(&client, &arguments.target.reference)?;
    let id = snapshot_of(&target)?.to_string();
    let asked = Instant::now();
    let found = session.output.during("reading every page", || client.verify_snapshot(&id))?;
    if session.output.json {
        session.output.value(&found)?;
    } else {
        let took = shown::duration(asked.elapsed());
        session.output.line(&format!(
            "snapshot {id}: {} pages read in {took}, {} wrong",
            found.pages, found.wrong_pages
        ))?;
        if let Some(first) = &found.first {
            session.output.line(&format!("the first of them: {first}"))?;
        }
    }
    Ok(if found.wrong_pages == 0 { Status::Done } else { Status::CheckFailed })
}
