//! Collections of the store, as the API asks for them, and of this node's own files.

use std::time::Duration;

use rekindle_api::control::Answer;
use rekindle_api::limits::VERDICTS_MAX;
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::{Collect, Collection, ObjectVerdict};
use rekindle_engine::collect::{CollectError, Judged};
use rekindle_engine::collect_steps::{Kept, Unneeded, Verdict};

use super::host::Host;
use super::sandboxes::Sandboxes;
use super::unfinished_puts::remove_unfinished_puts;

/// Deletes from the store and from this node what nobody needs, or tells what that would be.
pub(super) fn collect(sandboxes: &Sandboxes, how: &Collect) -> Answer<Collection> {
    let host: &Host = &sandboxes.host;
    if how.dry_run {
        return host.engine.judge_store().map(told).map_err(|error| not_collected(&error));
    }
    remove_boot_files(sandboxes);
    // Here only: a mount that hangs has no daemon wait for it, and no list of the store tells of these files.
    if let Some(store) = host.settings().store.directory().filter(|store| store.is_dir()) {
        remove_unfinished_puts(store);
    }
    let probation = how.probation_ms.map_or(host.settings().collect_probation, Duration::from_millis);
    let done = host.engine.collect(probation).map_err(|error| not_collected(&error))?;
    tracing::info!(?done, "the store was collected, as it was asked for");
    Ok(Collection {
        objects: done.objects,
        condemned: done.condemned,
        condemned_bytes: done.condemned_bytes,
        deleted: done.deleted,
        waiting: done.waiting,
        ..Collection::default()
    })
}

/// Removes the boot files that nothing here names. All stay while something may come back that names them: what is
/// undecided, or set aside as an older catalog does not know of it.
pub(super) fn remove_boot_files(sandboxes: &Sandboxes) {
    let host = &sandboxes.host;
    let is_undecided = sandboxes.snapshots.all().iter().any(|known| known.snapshot.status().is_undecided);
    let is_set_aside =
        !host.keeping.aside().is_empty() || host.engine.aside().count().map_or(true, |aside| aside.files > 0);
    if !is_undecided && !is_set_aside {
        sandboxes.boot_files.remove_unnamed();
    }
}

/// The answer of a dry run.
fn told(mut judged: Vec<Judged>) -> Collection {
    judged.sort_by_key(|judged| (matches!(judged.verdict, Verdict::Kept(_)), judged.object));
    let objects = count(judged.len());
    let condemned: Vec<_> =
        judged.iter().filter(|judged| matches!(judged.verdict, Verdict::Collected(_))).collect();
    let (condemned, condemned_bytes) =
        (count(condemned.len()), condemned.iter().map(|judged| judged.bytes).sum());
    let verdicts: Vec<_> = judged.iter().take(VERDICTS_MAX).map(verdict).collect();
    let verdicts_left_out = objects - count(verdicts.len());
    Collection { objects, condemned, condemned_bytes, verdicts, verdicts_left_out, ..Collection::default() }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).expect("no more than fits into RAM")
}

fn verdict(judged: &Judged) -> ObjectVerdict {
    let (kept, reason) = match judged.verdict {
        Verdict::Kept(Kept::Named) => (true, "a snapshot names it"),
        Verdict::Kept(Kept::Rooted) => (true, "a node publishes it, or a sandbox runs from it"),
        Verdict::Kept(Kept::Newest) => (true, "it is the newest manifest of its snapshot"),
        Verdict::Kept(Kept::OfSnapshot) => (true, "its snapshot is there"),
        Verdict::Kept(Kept::Undeletable) => (true, "its snapshot can be brought back, or was"),
        Verdict::Collected(Unneeded::WindowOver) => (false, "its snapshot can be brought back no more"),
        Verdict::Collected(Unneeded::Unnamed) => (false, "no snapshot names it, and no node uses it"),
        Verdict::Collected(Unneeded::Replaced) => (false, "a newer manifest of its snapshot is there"),
        Verdict::Collected(Unneeded::OfDeleted) => (false, "its snapshot is deleted"),
    };
    ObjectVerdict { object: judged.object.to_string(), bytes: judged.bytes, kept, reason: reason.to_owned() }
}

fn not_collected(error: &CollectError) -> Problem {
    Problem::new(Code::StoreFailed, format!("the store is not collected now: {error}"))
}
