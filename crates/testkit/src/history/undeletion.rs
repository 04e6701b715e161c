//! Deletions that can be undone, and snapshots that are brought back, by this node or by the other one.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rekindle_engine::engine::{Engine, UndeleteError};
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::open::OpenError;
use rekindle_engine::snapshot::Snapshot;

use super::History;
use super::known::Known;
use crate::model::ModelMemory;
use crate::site::PATIENCE;

/// A deleted snapshot that can be brought back, with the content of each of its volumes.
#[derive(Debug)]
pub(super) struct Withdrawn {
    id: SnapshotId,
    /// Its handles on this node, which cannot bring it back while there are any.
    handle: Weak<Snapshot>,
    contents: Vec<ModelMemory>,
    /// Its window may pass within the history.
    is_short: bool,
}

const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_secs(1);

impl Withdrawn {
    fn of(deleted: Known, is_short: bool) -> Self {
        let Known { snapshot, contents } = deleted;
        Self { id: snapshot.id(), handle: Arc::downgrade(&snapshot), contents, is_short }
    }
}

impl History {
    /// Deletes a snapshot on this node, in one of three ways: for good, or for a long or a short time. Gives it back if the
    /// catalog refuses.
    pub(super) fn delete_somehow(&mut self, deleted: Known) -> Result<Option<Known>, String> {
        let (can_be_undone, is_short) = (self.random.percent(50), self.random.percent(30));
        let window = match (can_be_undone, is_short) {
            (false, _) => Duration::ZERO,
            (true, false) => LONG,
            (true, true) => SHORT,
        };
        match self.engine().delete_undoably(&deleted.snapshot, window) {
            Ok(false) => Ok(None),
            Ok(true) => {
                self.say("... it can be brought back");
                self.tally.undoable += 1;
                self.withdrawn.push(Withdrawn::of(deleted, is_short));
                Ok(None)
            }
            Err(error) if self.catalog_fault.is_some() => {
                self.say(format_args!("... refused: {error}"));
                self.perhaps_deleted.push(deleted.snapshot.id());
                Ok(Some(deleted))
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Brings a deleted snapshot back, and goes on with it.
    pub(super) fn snapshot_is_brought_back(&mut self) -> Result<(), String> {
        let usable = |(_, withdrawn): &(usize, &Withdrawn)| withdrawn.handle.strong_count() == 0;
        let usable: Vec<_> = self.withdrawn.iter().enumerate().filter(usable).map(|(at, _)| at).collect();
        if usable.is_empty() || !self.outage.is_empty() || self.catalog_fault.is_some() {
            return self.delete();
        }
        let withdrawn = self.withdrawn.swap_remove(usable[self.random.position(usable.len())]);
        let by_neighbour = self.neighbour.is_some() && self.random.percent(50);
        self.say(format_args!("{} is brought back, by the other node: {by_neighbour}", withdrawn.id));
        let neighbour = self.neighbour.as_ref().filter(|_| by_neighbour).map(|neighbour| &neighbour.engine);
        let done = neighbour.unwrap_or_else(|| self.engine()).undelete(withdrawn.id);
        self.brought_back(withdrawn, done)
    }

    fn brought_back(&mut self, withdrawn: Withdrawn, done: Result<(), UndeleteError>) -> Result<(), String> {
        match done {
            Ok(()) => {}
            Err(UndeleteError::Gone(_)) if withdrawn.is_short => return Ok(()),
            // Its deletion has not reached the store yet, or what was deleted is still used here, or a collector has it on
            // its list. Without a catalog the deletion of a process that has ended never comes.
            Err(UndeleteError::NotDeleted | UndeleteError::InUse | UndeleteError::Undecided) => {
                self.withdrawn.push(withdrawn);
                return Ok(());
            }
            Err(error) => return Err(format!("{} is not brought back: {error}", withdrawn.id)),
        }
        // Guests of an earlier process may run from it here, which go on with a deleted one.
        let snapshot = match self.engine().open(withdrawn.id) {
            Ok(snapshot) => snapshot,
            Err(OpenError::Deleted { .. }) => {
                self.withdrawn.push(withdrawn);
                return Ok(());
            }
            Err(error) => return Err(format!("after it was brought back: {error}")),
        };
        self.tally.brought_back += 1;
        self.remember(Known { snapshot, contents: withdrawn.contents })
    }

    /// True if each deletion that was acknowledged is made, also after the process that was asked has ended.
    pub(super) fn are_deletions_known(&self) -> bool {
        self.rules.recording && !self.has_moved && !self.catalog_lied
    }

    /// Brings everything back that can be, compares every page, and deletes it for good. Nothing else uses the engine.
    pub(super) fn all_is_brought_back(&mut self) -> Result<(), String> {
        self.say("all that can be is brought back");
        let are_known = self.are_deletions_known();
        let engine = self.engine.as_ref().expect("it runs");
        let listed = engine.withdrawn_snapshots().map_err(|error| error.to_string())?;
        let of_history = self.withdrawn.iter().map(|withdrawn| withdrawn.id);
        let all: BTreeSet<_> = of_history.chain(listed.iter().map(|listed| listed.id)).collect();
        for id in all {
            let withdrawn = self.withdrawn.iter().find(|withdrawn| withdrawn.id == id);
            match bring_back(engine, id) {
                Ok(snapshot) => {
                    if let Some(Withdrawn { contents, .. }) = withdrawn {
                        let back = Known { snapshot: Arc::clone(&snapshot), contents: contents.clone() };
                        self.tally.pages += back.compare(engine)?;
                        self.tally.brought_back += 1;
                    }
                    engine.delete(&snapshot).map_err(|error| error.to_string())?;
                }
                Err(UndeleteError::Gone(_)) if withdrawn.is_none_or(|withdrawn| withdrawn.is_short) => {}
                Err(UndeleteError::NotDeleted) if !are_known => {}
                // Its records may have to stay in the catalog until the next start.
                Err(UndeleteError::InUse) => self.perhaps_deleted.push(id),
                Err(error) => return Err(format!("{id} is not brought back at last: {error}")),
            }
        }
        Ok(())
    }
}

fn bring_back(engine: &Engine, id: SnapshotId) -> Result<Arc<Snapshot>, UndeleteError> {
    let begun = Instant::now();
    while let Err(error) = engine.undelete(id) {
        if !matches!(error, UndeleteError::Undecided) || begun.elapsed() > PATIENCE {
            return Err(error);
        }
        // A collector that has ended left its list to the next one.
        engine.collect(Duration::ZERO).expect("the store answers");
    }
    Ok(engine.open(id).expect("it was just brought back, and the store answers"))
}
