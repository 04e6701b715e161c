//! `rekindle gc`: deletes from the store what no snapshot and no node needs.

use std::time::Duration;

use clap::Args;
use rekindle_api::types::{Collect, Collection, KeptSnapshot};
use rekindle_settings::parse_time;
use serde::Serialize;

use super::session::Session;
use super::shown::size;
use super::status::Status;

/// Options of a collection.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
The daemon does this by itself, as the settings collect_every and collect_probation say. Several nodes may collect one \
store at once. A snapshot is deleted by `rekindle delete`, or by the setting keep; its bytes go with the next collection \
whose probation is over, as far as no other snapshot needs them.")]
pub struct GcArguments {
    /// Delete nothing; tell the verdict on each object of the store, and on each snapshot of this node, with its reason
    #[arg(long, conflicts_with = "probation")]
    dry_run: bool,
    /// Time until the objects are deleted, instead of the setting collect_probation; with 0s they are gone at once
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    probation: Option<Duration>,
}

/// The verdicts of a dry run, for programs.
#[derive(Serialize)]
struct Verdicts<'a> {
    #[serde(flatten)]
    store: &'a Collection,
    kept_snapshots: &'a [KeptSnapshot],
}

/// Collects, or tells what that would do.
pub fn run(session: &Session, arguments: &GcArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    let probation_ms =
        arguments.probation.map(|probation| u64::try_from(probation.as_millis()).unwrap_or(u64::MAX));
    let how = Collect { dry_run: arguments.dry_run, probation_ms };
    let done = session.output.during("collecting", || client.collect(&how))?;
    if arguments.dry_run {
        let kept = client.kept_snapshots()?;
        return tell_verdicts(session, &done, &kept);
    }
    if session.output.json {
        session.output.value(&done)?;
        return Ok(Status::Done);
    }
    let Collection { objects, condemned, condemned_bytes, deleted, waiting, .. } = done;
    session.output.line(&format!(
        "{objects} objects, of which {condemned} ({}) are needed no more; {deleted} are deleted, {waiting} wait for the \
         end of their probation",
        size(condemned_bytes)
    ))?;
    Ok(Status::Done)
}

fn tell_verdicts(session: &Session, done: &Collection, kept: &[KeptSnapshot]) -> anyhow::Result<Status> {
    if session.output.json {
        session.output.value(&Verdicts { store: done, kept_snapshots: kept })?;
        return Ok(Status::Done);
    }
    let word = |kept| if kept { "stays" } else { "goes" };
    for verdict in &done.verdicts {
        let line = format!(
            "{} {} ({}): {}",
            word(verdict.kept),
            verdict.object,
            size(verdict.bytes),
            verdict.reason
        );
        session.output.line(&line)?;
    }
    for verdict in kept {
        session.output.line(&format!(
            "{} snapshot {}: {}",
            word(verdict.kept),
            verdict.snapshot,
            verdict.reason
        ))?;
    }
    if done.verdicts_left_out > 0 {
        session.output.line(&format!("and {} further objects", done.verdicts_left_out))?;
    }
    let (objects, condemned, bytes) = (done.objects, done.condemned, size(done.condemned_bytes));
    session.output.line(&format!("{condemned} of {objects} objects ({bytes}) would be deleted"))?;
    Ok(Status::Done)
}
