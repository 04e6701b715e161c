//! `rekindle demo`: the whole story, told once with a real guest on a node of its own: filled, paused, rewritten, paused
//! again, forked while that pause is being saved, and at last brought back from nothing but the store. Every page is
//! checked.

pub mod arguments;
mod guest;
mod place;
pub mod report;
mod story;
mod timeline;
mod wanted;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

use super::status::Status;
use arguments::DemoArguments;
pub(super) use place::Place;
use story::Story;
use timeline::Timeline;

/// Runs the demo in a process of its own, and ends as that does. Status 1 means that a page was wrong.
pub fn run(arguments: &DemoArguments) -> anyhow::Result<ExitCode> {
    if let Some(place) = &arguments.place {
        place::end_with_the_watcher()?;
        return tell(arguments, place).map(ExitCode::from);
    }
    arguments.check()?;
    arguments.store.as_deref().map(check_writable).transpose()?;
    let ended = Place::make()?.run_demo()?;
    Ok(ExitCode::from(ended.status()))
}

/// Tells the story in `place`.
fn tell(arguments: &DemoArguments, place: &Path) -> anyhow::Result<Status> {
    let timeline = Timeline::new(arguments.json);
    let report = Story::new(arguments, place, &timeline).tell()?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report).context("the report as JSON")?);
    } else {
        report.print();
    }
    Ok(if report.verified.mismatches > 0 { Status::CheckFailed } else { Status::Done })
}

/// A store that cannot be written would only be noticed when everything waits for it.
fn check_writable(store: &Path) -> anyhow::Result<()> {
    let probe = || std::fs::create_dir_all(store).and_then(|()| tempfile::tempfile_in(store));
    probe().map(drop).with_context(|| format!("--store {}: it cannot be written", store.display()))
}
