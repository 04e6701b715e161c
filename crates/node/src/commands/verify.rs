//! `rekindle verify`: reads every page of a snapshot and checks it, and asks the store for its objects.

use std::time::Instant;

use clap::Args;
use rekindle_api::types::{StoreVerification, StoreVerificationState};

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
        session.output.line(&in_the_store(&found.store))?;
        if let Some(reason) = &found.store.reason {
            session.output.line(&format!("the reason: {reason}"))?;
        }
    }
    let is_stored = match found.store.state {
        StoreVerificationState::NotPublished => true,
        StoreVerificationState::NotAsked => false,
        StoreVerificationState::Asked => found.store.wrong_objects == 0,
    };
    Ok(if found.wrong_pages == 0 && is_stored { Status::Done } else { Status::CheckFailed })
}

fn in_the_store(found: &StoreVerification) -> String {
    let StoreVerification { objects, wrong_objects, .. } = found;
    match found.state {
        StoreVerificationState::NotPublished => "in the store: nothing yet, it is not published".to_owned(),
        StoreVerificationState::NotAsked => "in the store: not known".to_owned(),
        StoreVerificationState::Asked => {
            format!("in the store: {objects} objects, {wrong_objects} missing or of another size")
        }
    }
}
