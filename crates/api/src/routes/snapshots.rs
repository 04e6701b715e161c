//! Operations on snapshots.

use std::time::Duration;

use tokio::time::Instant;

use super::{Routes, Taken};
use crate::audit::Removed;
use crate::limits;
use crate::operations::{
    DELETE_SNAPSHOT, FORGET_SNAPSHOT, LIST_KEPT, LIST_SNAPSHOTS, LIST_STORED_SNAPSHOTS,
    LIST_WITHDRAWN_SNAPSHOTS, RESUME_SNAPSHOT, SHOW_NODE_PLACEMENT, SHOW_PLACEMENT, SHOW_SNAPSHOT,
    SHOW_SNAPSHOT_USAGE, SHOW_USAGE, UNDELETE_SNAPSHOT, VERIFY_SNAPSHOT, WAIT_SNAPSHOT,
};
use crate::problem::{Code, Problem};

pub(super) fn routes() -> Routes {
    Routes::default()
        .reads(&LIST_SNAPSHOTS, |control, (), query| control.snapshots(&query))
        .reads(&LIST_STORED_SNAPSHOTS, |control, (), ()| control.stored_snapshots())
        .reads(&LIST_WITHDRAWN_SNAPSHOTS, |control, (), ()| control.withdrawn_snapshots())
        .reads(&LIST_KEPT, |control, (), ()| control.kept_snapshots())
        .reads(&SHOW_USAGE, |control, (), ()| control.usage())
        .reads(&SHOW_SNAPSHOT_USAGE, |control, of, ()| control.snapshot_usage(&of))
        .reads(&SHOW_SNAPSHOT, |control, of, ()| control.snapshot(&of))
        .changes(&DELETE_SNAPSHOT, |control, _, of, ()| control.delete_snapshot(&of))
        .changes(&UNDELETE_SNAPSHOT, |control, _, of, ()| control.undelete_snapshot(&of))
        .changes(&FORGET_SNAPSHOT, |control, _, of, ()| control.forget_snapshot(&of).map(Removed::Snapshot))
        .changes(&RESUME_SNAPSHOT, |control, asked, of, how| control.resume_snapshot(&of, asked, how))
}

/// Operations that are answered from memory alone.
pub(super) fn placements() -> Routes {
    Routes::default()
        .reads(&SHOW_NODE_PLACEMENT, |control, (), query| control.node_placement(&query))
        .reads(&SHOW_PLACEMENT, |control, of, ()| control.placement(&of))
}

/// The operation that reads whole snapshots.
pub(super) fn verifications() -> Routes {
    Routes::default()
        .reads_while_asked(&VERIFY_SNAPSHOT, |control, asked, of, ()| control.verify_snapshot(&of, asked))
}

/// The operation that waits for a state.
pub(super) fn waits() -> Routes {
    Routes::default().answers(&WAIT_SNAPSHOT, async |control, Taken { place, of, input: query, .. }| {
        let seconds = query.timeout_seconds.unwrap_or(limits::WAIT_SECONDS);
        let until = Instant::now() + Duration::from_secs(seconds.into());
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let turn = left.min(limits::WAIT_TURN);
            let waited = of.clone();
            let asked =
                control.ask(place.clone(), move |control| control.wait_snapshot(&waited, query.state, turn));
            match asked.await {
                Err(problem) if problem.code != Code::NotYet => return Err(problem),
                Err(_) if control.ending().has_come() => return Err(ending(&of)),
                Err(problem) if left == turn => return Err(not_yet(problem, &of, seconds)),
                Err(_) => {}
                Ok(snapshot) => return Ok(WAIT_SNAPSHOT.response(snapshot)),
            }
        }
    })
}

fn ending(reference: &str) -> Problem {
    Problem::new(Code::Ending, format!("the daemon is ending: wait for {reference} again when it is back"))
}

/// `turn`, the problem of the last turn, said of the whole wait.
fn not_yet(turn: Problem, reference: &str, seconds: u32) -> Problem {
    let detail = format!("snapshot {reference} did not reach that state within {seconds} s: {}", turn.detail);
    Problem { detail, ..turn }
}
