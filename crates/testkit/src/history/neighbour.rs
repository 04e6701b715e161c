//! Collection of the store, and another node that uses the same store: it makes snapshots on those of the history, deletes
//! them and the history's, and collects as well.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use rekindle_engine::engine::Engine;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_kernel::PAGE_BYTES;

use super::History;
use super::background::published;
use super::known::{Known, Rules};
use super::machine::{Machine, PausedMachine};
use crate::guest::Tracking;
use crate::site::{PATIENCE, Site};

/// The other node.
#[derive(Debug)]
pub(super) struct Neighbour {
    snapshots: Vec<Known>,
    pub(super) engine: Engine,
    _site: Site,
}

const SNAPSHOTS_MAX: usize = 5;
/// Time that a deletion gets to reach the store before a collection.
const DELETION_COMES: Duration = Duration::from_millis(100);

/// Time between two looks at what is left.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// Places of the store that have nothing once all is deleted and collected.
const EMPTY_AT_LAST: [&str; 5] = ["layers", "manifests", "working-sets", "roots", "condemned"];

impl Neighbour {
    /// A node beside that of `site`.
    pub(super) fn beside(site: &Site, rules: Rules) -> Self {
        let site = site.beside().expect("a temporary directory");
        let options = rules.options(&site).expect("a new catalog");
        let engine = Engine::start(options).expect("threads for an engine");
        Self { snapshots: Vec::new(), engine, _site: site }
    }

    /// Compares every page of a snapshot that was made by it.
    fn read(&self, known: &Known) -> Result<u64, String> {
        known.compare(&self.engine).map_err(|error| format!("on the other node: {error}"))
    }
}

impl History {
    /// Deletes from the store what nobody needs, by this node or by the other one, while guests run.
    pub(super) fn store_is_collected(&mut self) -> Result<(), String> {
        // A planned read of a deleted snapshot has no root.
        while !self.plans.is_empty() {
            self.plan_is_read()?;
        }
        for _ in 0..self.random.below(3) {
            self.published_one_is_deleted()?;
        }
        self.say("the store is collected");
        match self.engine().collect(Duration::ZERO) {
            Ok(done) => self.tally.collected += done.deleted,
            Err(error) if self.may_fail_to_collect() => {
                self.say(format_args!("... not now: {error}"));
                return Ok(());
            }
            Err(error) => return Err(format!("the store is not collected: {error}")),
        }
        self.tally.collections += 1;
        // From here on the guests of this node have their roots: the other node may collect too.
        let Some(neighbour) = self.neighbour.as_ref().filter(|_| self.outage.is_empty()) else {
            return Ok(());
        };
        let done = neighbour.engine.collect(Duration::ZERO).map_err(|error| error.to_string())?;
        self.tally.collections += 1;
        self.tally.collected += done.deleted;
        Ok(())
    }

    /// Deletes a published snapshot for good, and lets its tombstone come, so that a collection has something to do.
    fn published_one_is_deleted(&mut self) -> Result<(), String> {
        let Some(position) = self.published_one().filter(|_| self.catalog_fault.is_none()) else {
            return Ok(());
        };
        self.say(format_args!("snapshot {position} is deleted for good"));
        let Known { snapshot, .. } = self.snapshots.swap_remove(position);
        let tombstone = Path::from(format!("deleted/{}", snapshot.id()));
        self.engine().delete(&snapshot).map_err(|error| error.to_string())?;
        drop(snapshot);
        let begun = Instant::now();
        // Held work or an outage may stand in its way.
        while begun.elapsed() < DELETION_COMES {
            let asked = self.site.objects.head(&tombstone).now_or_never();
            if asked.expect("memory answers at once").is_ok() {
                break;
            }
            thread::park_timeout(LOOK_AGAIN);
        }
        Ok(())
    }

    fn may_fail_to_collect(&self) -> bool {
        !self.outage.is_empty() || self.catalog_fault.is_some()
    }

    /// The other node pauses a guest of one of this node's snapshots, or deletes a snapshot, or compares one of its own.
    pub(super) fn neighbour_works(&mut self) -> Result<(), String> {
        if self.neighbour.is_none() {
            return self.write_pages();
        }
        match self.random.below(10) {
            0..5 => self.neighbour_pauses(),
            5..7 => self.neighbour_deletes_its_own(),
            7..9 => self.neighbour_deletes(),
            _ => self.neighbour_is_read(),
        }
    }

    fn neighbour_pauses(&mut self) -> Result<(), String> {
        let Some(position) = self.published_one() else { return Ok(()) };
        self.say(format_args!("the other node pauses a guest of snapshot {position}"));
        // Its guest would wait for right bytes.
        self.mend_store();
        let Known { snapshot, contents } = self.snapshots[position].clone();
        let (volume, run) = self.some_run(40);
        let neighbour = self.neighbour.as_mut().expect("it was there just now");
        let opened = match neighbour.engine.open(snapshot.id()) {
            Err(_) if self.catalog_lied => return Ok(()),
            opened => opened.map_err(|error| format!("on the other node: {error}"))?,
        };
        let mut guest = Machine::resume(&neighbour.engine, &opened, &contents);
        let mut bytes = vec![0; PAGE_BYTES];
        for page in run.iter() {
            self.random.fill(&mut bytes);
            let written = guest.volume(volume).write(&neighbour.engine, page, 0, &bytes);
            written.map_err(|error| format!("on the other node: {error}"))?;
        }
        let Ok(PausedMachine { snapshot, contents, vmms }) = guest.pause(&neighbour.engine, Tracking::Exact)
        else {
            return Ok(());
        };
        drop(vmms);
        if self.random.percent(70) {
            published(&snapshot)?;
        }
        self.tally.neighbours_pauses += 1;
        neighbour.snapshots.push(Known { snapshot, contents });
        if neighbour.snapshots.len() > SNAPSHOTS_MAX { self.neighbour_deletes_its_own() } else { Ok(()) }
    }

    fn neighbour_deletes_its_own(&mut self) -> Result<(), String> {
        let neighbour = self.neighbour.as_mut().expect("it was there just now");
        if neighbour.snapshots.is_empty() {
            return Ok(());
        }
        let position = self.random.position(neighbour.snapshots.len());
        let deleted = neighbour.snapshots.swap_remove(position);
        neighbour.engine.delete(&deleted.snapshot).map_err(|error| error.to_string())?;
        self.say("the other node deletes one of its own");
        Ok(())
    }

    /// Both nodes delete a snapshot of this one, the other one first.
    fn neighbour_deletes(&mut self) -> Result<(), String> {
        let Some(position) = self.published_one().filter(|_| self.catalog_fault.is_none()) else {
            return Ok(());
        };
        self.say(format_args!("the other node deletes snapshot {position}, and so does this one"));
        let deleted = self.snapshots.swap_remove(position);
        let neighbour = self.neighbour.as_ref().expect("it was there just now");
        match neighbour.engine.open(deleted.snapshot.id()) {
            Ok(opened) => neighbour.engine.delete(&opened).map_err(|error| error.to_string())?,
            Err(_) if self.catalog_lied => {}
            Err(error) => return Err(format!("on the other node: {error}")),
        }
        self.engine().delete(&deleted.snapshot).map_err(|error| error.to_string())
    }

    /// Compares every page of the other node's snapshots.
    pub(super) fn neighbour_is_read(&mut self) -> Result<(), String> {
        self.mend_store();
        let Some(neighbour) = &self.neighbour else { return Ok(()) };
        for known in &neighbour.snapshots {
            self.tally.pages += neighbour.read(known)?;
        }
        self.say("the snapshots of the other node are compared");
        Ok(())
    }

    fn published_one(&mut self) -> Option<usize> {
        if self.snapshots.is_empty() {
            return None;
        }
        let position = self.random.position(self.snapshots.len());
        let is_published = self.snapshots[position].snapshot.state() == SnapshotState::Published;
        is_published.then_some(position)
    }

    /// Deletes everything on both nodes: after a collection the store has nothing of any snapshot.
    pub(super) fn all_is_deleted_and_collected(&mut self) -> Result<(), String> {
        self.say("all is deleted and collected");
        self.plans.clear();
        self.guests.clear();
        self.all_is_brought_back()?;
        let told = |error: rekindle_engine::catalog::CatalogError| error.to_string();
        for Known { snapshot, .. } in self.snapshots.drain(..) {
            self.engine.as_ref().expect("it runs").delete(&snapshot).map_err(told)?;
        }
        if let Some(neighbour) = &mut self.neighbour {
            for Known { snapshot, .. } in neighbour.snapshots.drain(..) {
                neighbour.engine.delete(&snapshot).map_err(told)?;
            }
        }
        // Without a catalog a deletion ends with its process.
        if !self.are_deletions_known() || !self.perhaps_deleted.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        loop {
            let engines =
                self.engine.iter().chain(self.neighbour.as_ref().map(|neighbour| &neighbour.engine));
            for engine in engines {
                engine.collect(Duration::ZERO).map_err(|error| error.to_string())?;
            }
            let left = self.left();
            if left.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("after all was deleted and collected, there is {left:?}"));
            }
            thread::park_timeout(LOOK_AGAIN);
        }
    }

    fn left(&self) -> Vec<String> {
        let objects = Arc::clone(&self.site.objects);
        let listed = objects.list(None).collect::<Vec<_>>().now_or_never().expect("memory answers at once");
        let names = listed.into_iter().filter_map(|object| Some(object.ok()?.location.to_string()));
        names.filter(|name| EMPTY_AT_LAST.iter().any(|place| name.starts_with(place))).collect()
    }
}
