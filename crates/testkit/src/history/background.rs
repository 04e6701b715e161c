//! Events around guests: VMMs end, seals are held, the store goes away and comes back, local files are lost, the node
//! is restarted.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use rekindle_engine::engine::Engine;
use rekindle_engine::geometry::u64_of;
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::keep::Keeper as _;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::snapshot::Snapshot;
use rekindle_kernel::PAGE_BYTES;

use super::History;
use super::known::Known;
use super::machine::Machine;
use crate::catalogs::{CatalogRule, Fate};
use crate::hooks::{Failing, Point};
use crate::model::ModelMemory;
use crate::site::{PATIENCE, Site};

impl History {
    pub(super) fn vmm_ends(&mut self) -> Result<(), String> {
        if !self.vmms.is_empty() {
            self.say("a VMM ends");
            drop(self.vmms.swap_remove(0));
        }
        Ok(())
    }

    pub(super) fn hold_or_release(&mut self) -> Result<(), String> {
        if self.held.is_empty() {
            let point = match self.random.below(10) {
                0..5 => Point::Compare,
                5..7 => Point::Manifest,
                7..9 => Point::Record,
                _ => Point::Forget,
            };
            self.say(format_args!("seals are held at {point:?}"));
            self.held.push(self.site.hooks.hold(point));
        } else {
            self.say("seals are let through");
            self.held.clear();
        }
        Ok(())
    }

    pub(super) fn outage_begins_or_ends(&mut self) -> Result<(), String> {
        if self.outage.is_empty() {
            self.say("the store goes");
            self.outage = self.site.faults.outage();
        } else {
            self.say("the store comes back");
            self.outage.clear();
        }
        Ok(())
    }

    /// Lets the catalog fail at one of its next writes, with a known or an unknown outcome, or silently; an unknown
    /// outcome stays unknown until the catalog works again or the engine crashes. Or ends that.
    pub(super) fn catalog_fails_or_not(&mut self) -> Result<(), String> {
        if !self.rules.recording {
            return Ok(());
        }
        if self.catalog_fault.take().is_some() {
            self.say("the catalog works again");
            return Ok(());
        }
        let fate = match self.random.below(10) {
            0..3 => Fate::Refused,
            3..6 => Fate::UnknownMade,
            6..9 => Fate::UnknownNotMade,
            _ => Fate::Forgotten,
        };
        let rule = CatalogRule {
            times: 1 + self.random.position(2),
            ..CatalogRule::nth(self.random.position(4), fate)
        };
        self.say(format_args!("the catalog fails: {rule:?}"));
        self.catalog_lied |= fate == Fate::Forgotten;
        self.catalog_fault = Some(self.site.catalog_faults.inject(rule));
        Ok(())
    }

    pub(super) fn parent_reads_fail(&mut self) -> Result<(), String> {
        let failing = match self.random.below(3) {
            0 => Failing::None,
            1 => Failing::Nth(u64::from(self.random.below(4))),
            _ => Failing::OneOf(u64::from(1 + self.random.below(5))),
        };
        self.say(format_args!("reads of parents fail: {failing:?}"));
        self.site.hooks.fail_parent_reads(failing);
        Ok(())
    }

    /// Truncates a local file under its mapping, like a disk that loses blocks: by whole pages, and never the only
    /// copy.
    pub(super) fn local_file_is_lost(&mut self) -> Result<(), String> {
        let layers = self.stored_layers();
        if layers.is_empty() {
            return Ok(());
        }
        let layer = layers[self.random.position(layers.len())].id();
        let path = self.site.cache_directory().join(format!("{layer}.raw"));
        let file = match OpenOptions::new().write(true).open(&path) {
            // It was evicted, or no frame of it was needed since.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            opened => opened.map_err(|error| format!("{path:?}: {error}"))?,
        };
        let pages = file.metadata().map_err(|error| error.to_string())?.len() / u64_of(PAGE_BYTES);
        let left = self.random.number() % (pages + 1) * u64_of(PAGE_BYTES);
        self.say(format_args!("the local file of layer {layer} is cut to {left} bytes"));
        file.set_len(left).map_err(|error| error.to_string())
    }

    /// Evicts the local files of published layers, as when the disk is full.
    pub(super) fn layers_are_evicted(&mut self) -> Result<(), String> {
        if self.rules.cache_bytes_max.is_none() {
            return self.snapshot_is_read();
        }
        self.say("local files are evicted");
        self.engine().hold_cache_limits();
        Ok(())
    }

    pub(super) fn wait_sealed(&mut self) -> Result<(), String> {
        if self.snapshots.is_empty() {
            return Ok(());
        }
        let position = self.random.position(self.snapshots.len());
        self.say(format_args!("snapshot {position} is waited for until it is sealed"));
        self.vmms.clear();
        self.held.clear();
        self.catalog_fault = None;
        let snapshot = &self.snapshots[position].snapshot;
        snapshot.wait_manifest(PATIENCE).map(|_| ()).map_err(|_| status(snapshot))
    }

    pub(super) fn wait_published(&mut self) -> Result<(), String> {
        if self.snapshots.is_empty() {
            return Ok(());
        }
        let position = self.random.position(self.snapshots.len());
        self.say(format_args!("snapshot {position} is waited for until it is published"));
        self.end_faults();
        published(&self.snapshots[position].snapshot)
    }

    pub(super) fn wait_all_published(&mut self) -> Result<(), String> {
        self.end_faults();
        self.snapshots.iter().try_for_each(|known| published(&known.snapshot))
    }

    /// Ends the engine and starts another one on the store, with or without the local files.
    pub(super) fn restart(&mut self) -> Result<(), String> {
        self.say("the engine is started anew");
        self.wait_all_published()?;
        let moved = self.random.percent(50);
        self.start_anew(moved)
    }

    /// Ends the engine in the middle of its work and starts another one, which must have every acknowledged change.
    pub(super) fn crash(&mut self) -> Result<(), String> {
        if !self.rules.recording {
            return self.restart();
        }
        self.say("the engine crashes");
        self.tally.crashes += 1;
        self.start_anew(false)
    }

    fn start_anew(&mut self, moved: bool) -> Result<(), String> {
        // First, since a process that dies releases nothing.
        self.engine().stop();
        self.tally.evictions += self.engine().cache_status().evicted.files;
        self.plans.clear();
        let files = self.stored_files();
        let mut snapshots: Vec<(SnapshotId, Vec<ModelMemory>)> =
            self.snapshots.drain(..).map(|Known { snapshot, contents }| (snapshot.id(), contents)).collect();
        let parents: Vec<_> = self.guests.iter_mut().map(Machine::let_go_of_parent).collect();
        // The held work is let through, and finds that the engine has ended.
        self.held.clear();
        let ended = self.engine.take();
        drop(ended);
        // Changes of unknown outcome may be found made or not.
        self.catalog_fault = None;
        self.has_moved |= moved;
        if moved {
            self.site = self.site.elsewhere().map_err(|error| error.to_string())?;
        } else if !files.is_empty() && self.random.percent(30) {
            let rotten = files[self.random.position(files.len())].clone();
            self.rot(&rotten)?;
        }
        let replayed = self.rules.recording && !moved;
        let hidden = if replayed && !self.catalog_lied { self.hinder()? } else { None };
        let options = self.rules.options(&self.site).map_err(|error| error.to_string())?;
        let engine = self.engine.insert(Engine::start(options).map_err(|error| error.to_string())?);
        if let Some(hidden) = hidden {
            hidden.put_back()?;
        }
        let undecided = engine.decide().map_err(|error| error.to_string())?;
        if undecided > 0 && !self.catalog_lied {
            let listed = engine.snapshots();
            let origins = parents.iter().flatten().filter_map(|parent| engine.origin(*parent));
            let here = listed.iter().cloned().chain(origins);
            let here = here.filter(|snapshot| snapshot.status().is_undecided);
            let why: Vec<_> = here.map(|snapshot| status(&snapshot)).collect();
            return Err(format!("{undecided} snapshots stay undecided, {why:?}: {:?}", engine.replayed()));
        }
        let perhaps_deleted = std::mem::take(&mut self.perhaps_deleted);
        if replayed {
            let expected: Vec<_> = snapshots.iter().map(|(id, _)| *id).collect();
            let listed: Vec<_> = engine.snapshots().iter().map(|snapshot| snapshot.id()).collect();
            let lost: Vec<_> = engine.replayed().lost.iter().map(|lost| lost.id).collect();
            let gone = |id: &SnapshotId| !listed.contains(id) && !perhaps_deleted.contains(id);
            let unheard_of = |id: &SnapshotId| !expected.contains(id);
            let wrong = expected.iter().any(gone) || listed.iter().any(unheard_of) || !lost.is_empty();
            if wrong && !self.catalog_lied {
                return Err(format!("{expected:?} were there, now {listed:?}: {:?}", engine.replayed()));
            }
            snapshots.retain(|(id, _)| listed.contains(id) && !lost.contains(id));
        }
        for (id, contents) in snapshots {
            let snapshot = engine.open(id).map_err(|error| error.to_string())?;
            self.snapshots.push(Known { snapshot, contents });
        }
        for (mut guest, parent) in std::mem::take(&mut self.guests).into_iter().zip(parents) {
            let origin = parent.and_then(|parent| engine.origin(parent));
            match (parent, origin) {
                // Only after the catalog lied: any other loss has ended the history.
                (Some(_), Some(origin)) if origin.state() == SnapshotState::Lost => continue,
                (Some(_), Some(origin)) => guest.stand_on(engine, &origin),
                (None, _) => {}
                (Some(parent), None) if replayed && !self.catalog_lied => {
                    return Err(format!("{parent}, which a guest runs from, is gone"));
                }
                // A guest whose snapshot was deleted cannot go on: only the ended engine had that snapshot.
                (Some(_), None) => continue,
            }
            self.guests.push(guest);
        }
        engine.end_replay();
        self.tally.restarts += 1;
        Ok(())
    }

    /// Lets the keeper fail once at the next start, or hides a layer file from that start.
    fn hinder(&mut self) -> Result<Option<HiddenFile>, String> {
        let held = self.site.keeper.held().map_err(|error| error.to_string())?;
        if !held.is_empty() && self.random.percent(40) {
            let withheld = held[self.random.position(held.len())];
            self.say(format_args!("the keeper will not give {withheld} once"));
            self.site.keeper.withhold(withheld, 1);
        }
        let files = std::fs::read_dir(self.site.cache_directory()).map_err(|error| error.to_string())?;
        let mut files: Vec<_> = files.filter_map(|file| Some(file.ok()?.path())).collect();
        files.retain(|file| file.extension().is_some_and(|end| end == "raw"));
        files.sort();
        if files.is_empty() || self.random.percent(60) {
            return Ok(None);
        }
        let file = files.swap_remove(self.random.position(files.len()));
        self.say(format_args!("{} cannot be read at a start", file.display()));
        HiddenFile::hide(file).map(Some)
    }

    /// Opens every snapshot on a node that has nothing of it, and checks every page.
    pub(super) fn read_elsewhere(&mut self) -> Result<(), String> {
        self.say("everything is read on another node");
        let site: Site = self.site.elsewhere().map_err(|error| error.to_string())?;
        let engine = site.engine().map_err(|error| error.to_string())?;
        for Known { snapshot, contents } in &self.snapshots {
            let snapshot = engine.open(snapshot.id()).map_err(|error| error.to_string())?;
            self.tally.pages += Known { snapshot, contents: contents.clone() }.compare(&engine)?;
        }
        Ok(())
    }
}

/// A layer file with a directory in its place, so that it cannot be opened.
struct HiddenFile {
    file: PathBuf,
    away: PathBuf,
}

impl HiddenFile {
    fn hide(file: PathBuf) -> Result<Self, String> {
        let away = file.with_extension("hidden");
        let hide = || std::fs::rename(&file, &away).and_then(|()| std::fs::create_dir(&file));
        hide().map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(Self { file, away })
    }

    fn put_back(self) -> Result<(), String> {
        let Self { file, away } = self;
        let back = || {
            // The start sets aside what no snapshot names, and the same bytes may be packed again.
            match std::fs::symlink_metadata(&file) {
                Ok(there) if there.is_file() => return std::fs::remove_file(&away),
                Ok(_) => std::fs::remove_dir(&file)?,
                Err(_) => {}
            }
            std::fs::rename(&away, &file)
        };
        back().map_err(|error| format!("{}: {error}", file.display()))
    }
}

pub(super) fn published(snapshot: &Arc<Snapshot>) -> Result<(), String> {
    let done = snapshot.wait_state(SnapshotState::Published, PATIENCE);
    if done { Ok(()) } else { Err(status(snapshot)) }
}

fn status(snapshot: &Snapshot) -> String {
    format!("snapshot {} does not get on: {:?}", snapshot.id(), snapshot.status())
}
