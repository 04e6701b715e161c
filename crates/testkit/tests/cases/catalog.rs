//! A catalog that fails at a write: before it, after it, with an unknown outcome, or silently.

use std::path::Path;
use std::sync::Arc;

use rekindle_engine::catalog::{Catalog, Change, Kind, WriteError};
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::geometry::bytes_of_pages;
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::keep::Keeper;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::pause::CommitError;
use rekindle_engine::snapshot::Snapshot;
use rekindle_testkit::catalogs::{CatalogFaults, CatalogRule, Fate, InjectedFate};
use rekindle_testkit::guest::{Guest, Paused, Tracking, judge};
use rekindle_testkit::model::ModelMemory;
use rekindle_testkit::random::Random;
use rekindle_testkit::site::{PATIENCE, Site};

use crate::{check, first_pause, pause, run, site, wait_published};

const UNKNOWN: [Fate; 2] = [Fate::UnknownMade, Fate::UnknownNotMade];

fn start(site: &Site) -> Engine {
    Engine::start(site.recording().expect("nobody else has the catalog")).expect("an engine starts")
}

fn put(key: &str, value: &str) -> Change {
    Change::Put { kind: Kind::Sandbox, key: key.into(), value: value.into() }
}

fn value(catalog: &Catalog, key: &str) -> Option<String> {
    let value = catalog.get(Kind::Sandbox, key.as_bytes()).expect("it can be read");
    value.map(|value| String::from_utf8(value).expect("text"))
}

/// A copy of the catalog, as a crash at this moment would leave it.
fn image(path: &Path) -> Catalog {
    let image = path.with_file_name("image.redb");
    std::fs::copy(path, &image).expect("room");
    Catalog::open(&image).expect("as a crash leaves it")
}

#[test]
fn a_write_of_unknown_outcome_is_taken_back_before_anything_else_is_read_or_written() {
    for fate in UNKNOWN {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, faults) = (directory.path().join("catalog.redb"), CatalogFaults::default());
        let catalog = Catalog::open_with(&path, Arc::new(faults.clone())).expect("a new one");
        catalog.write(&[put("a", "before"), put("b", "before")]).expect("room");
        let failing = faults.inject(CatalogRule::nth(0, fate));
        let remove = Change::Remove { kind: Kind::Sandbox, key: "b".into() };
        let failed =
            catalog.write(&[put("a", "after"), remove, put("c", "after")]).expect_err("it is struck");
        let WriteError::Unknown(unsettled) = failed else { panic!("{failed}") };
        let (a, b, c) = ("a", "b", "c").map_by(|key| value(&image(&path), key));
        let made = (Some("after".to_owned()), None, Some("after".to_owned()));
        let before = (Some("before".to_owned()), Some("before".to_owned()), None);
        assert_eq!((a, b, c), if fate == Fate::UnknownMade { made } else { before.clone() });
        unsettled.settle().expect_err("the disk goes on failing");
        catalog.get(Kind::Sandbox, b"a").expect_err("what is unsettled is not read");
        assert!(matches!(catalog.write(&[put("d", "later")]), Err(WriteError::NotMade(_))));
        drop(failing);
        unsettled.settle().expect("the disk is good again");
        assert_eq!(("a", "b", "c").map_by(|key| value(&image(&path), key)), before);
        catalog.write(&[put("d", "later")]).expect("room");
        assert_eq!(("a", "b", "d").map_by(|key| value(&catalog, key)).2.as_deref(), Some("later"));
    }
}

#[test]
fn a_write_of_unknown_outcome_that_can_be_taken_back_at_once_is_known_not_to_be_made() {
    let directory = tempfile::tempdir().expect("a directory");
    let (path, faults) = (directory.path().join("catalog.redb"), CatalogFaults::default());
    let catalog = Catalog::open_with(&path, Arc::new(faults.clone())).expect("a new one");
    let refused = faults.inject(CatalogRule::nth(0, Fate::Refused));
    assert!(matches!(catalog.write(&[put("a", "1")]), Err(WriteError::NotMade(_))));
    drop(refused);
    assert_eq!((value(&catalog, "a"), value(&image(&path), "a")), (None, None));
}

/// The same for each of three keys.
trait ThreeKeys {
    fn map_by<T>(self, each: impl Fn(&str) -> T) -> (T, T, T);
}

impl ThreeKeys for (&str, &str, &str) {
    fn map_by<T>(self, each: impl Fn(&str) -> T) -> (T, T, T) {
        (each(self.0), each(self.1), each(self.2))
    }
}

/// A guest that has run for a while.
fn guest(engine: &Engine) -> Guest {
    let mut guest = Guest::fresh(40);
    guest.write_random(engine, run(0, 40), &mut Random::new(1)).expect("its own pages");
    guest
}

fn commit(engine: &Engine, guest: Guest, id: SnapshotId) -> Result<Paused, (Box<Guest>, CommitError)> {
    let permit = engine.permit_pause(guest.parent(), bytes_of_pages(40)).expect("there is room");
    guest.commit_as(id, engine, permit, (Tracking::Exact, vec![put("sandbox", "paused")]))
}

/// A running sandbox whose pause failed in the catalog.
struct StruckPause {
    site: Site,
    engine: Engine,
    catalog: Catalog,
    id: SnapshotId,
    guest: Box<Guest>,
    error: CommitError,
    failing: InjectedFate,
}

impl StruckPause {
    fn with(fate: Fate) -> Self {
        let site = site();
        let options = site.recording().expect("nobody else has the catalog");
        let catalog = options.catalog.clone().expect("it records");
        catalog.write(&[put("sandbox", "running")]).expect("room");
        let engine = Engine::start(options).expect("an engine starts");
        let id = SnapshotId::new();
        let failing = site.catalog_faults.inject(CatalogRule::next_on(Kind::Snapshot, fate));
        let (guest, error) = commit(&engine, guest(&engine), id).map(drop).expect_err("it is struck");
        Self { site, engine, catalog, id, guest, error, failing }
    }
}

#[test]
fn a_pause_that_could_not_be_recorded_is_nowhere_after_a_crash_and_its_guest_goes_on() {
    for fate in [Fate::Refused, Fate::UnknownMade, Fate::UnknownNotMade] {
        let StruckPause { site, engine, id, mut guest, error, failing, .. } = StruckPause::with(fate);
        assert_eq!(matches!(error, CommitError::Unsettled(_)), fate != Fate::Refused, "{error}");
        drop(error);
        guest.write_random(&engine, run(3, 9), &mut Random::new(2)).expect("it goes on");
        engine.stop();
        drop(engine);
        drop(failing);
        let engine = start(&site);
        assert!(engine.snapshot(id).is_none() && engine.replayed().lost.is_empty(), "{fate:?}");
        let again = pause(&engine, *guest);
        check(&engine, &again);
        wait_published(&again.0);
        assert!(site.keeper.wait_empty(PATIENCE), "memory of a pause that was taken back is kept");
    }
}

#[test]
fn a_pause_that_could_not_be_recorded_is_taken_back_with_all_that_was_recorded_alongside() {
    for fate in UNKNOWN {
        let StruckPause { site, engine, catalog, id, guest, error, failing } = StruckPause::with(fate);
        drop(failing);
        drop(error);
        assert_eq!(value(&image(&site.catalog_path()), "sandbox").as_deref(), Some("running"));
        assert!(site.keeper.held().expect("it answers").is_empty());
        let again = commit(&engine, *guest, id).map_err(|(_, error)| error).expect("its id was never used");
        let again = again.end_vmm();
        check(&engine, &again);
        assert_eq!(value(&catalog, "sandbox").as_deref(), Some("paused"));
    }
}

#[test]
fn a_crash_before_a_failed_pause_was_settled_finds_it_whole_or_not_at_all() {
    for fate in UNKNOWN {
        let StruckPause { site, engine, id, guest, error, failing, .. } = StruckPause::with(fate);
        engine.stop();
        drop(engine);
        // The error is not dropped yet, as in a process that dies now.
        let (catalog, keeper): (_, Arc<dyn Keeper>) =
            (Some(image(&site.catalog_path())), site.keeper.clone());
        let sandbox = value(catalog.as_ref().expect("just opened"), "sandbox");
        let next = Engine::start(EngineOptions { catalog, keeper, ..site.options() }).expect("it starts");
        let found = next.snapshot(id);
        assert_eq!(found.is_some(), fate == Fate::UnknownMade);
        assert_eq!(sandbox.as_deref(), Some(if found.is_some() { "paused" } else { "running" }));
        if let Some(found) = found {
            judge(&next, &found, guest.expected()).expect("the guest stood");
        }
        assert!(next.replayed().lost.is_empty());
        next.stop();
        drop((next, error, failing));
    }
}

#[test]
fn an_id_is_used_once_also_when_its_snapshot_was_deleted_and_over_a_restart() {
    let site = site();
    let engine = start(&site);
    let first = pause(&engine, guest(&engine));
    let id = first.0.id();
    let child = Guest::resume(&first.0, first.1.clone());
    wait_published(&first.0);
    engine.delete(&first.0).expect("the catalog works");
    let used = |engine: &Engine| {
        let (_, error) = commit(engine, guest(engine), id).map(drop).expect_err("its id was used");
        assert!(matches!(error, CommitError::IdUsed { snapshot } if snapshot == id), "{error}");
    };
    used(&engine);
    let (paused, error) = commit(&engine, child, id).map(drop).expect_err("it would be its own parent");
    assert!(matches!(error, CommitError::IdUsed { .. }), "{error}");
    engine.stop();
    drop((paused, first, engine));
    let engine = start(&site);
    used(&engine);
}

/// All writes of a node: a pause, a resume, a fork and a delete, each to its end.
fn life(site: &Site, engine: &Engine) -> Told {
    let mut told = Told::default();
    let Some(first) = told.pause(engine, guest(engine)) else { return told };
    told.wait_published(&first.0, site);
    let mut fork = Guest::resume(&first.0, first.1.clone());
    fork.write_random(engine, run(5, 9), &mut Random::new(2)).expect("the parent can be read");
    let second = told.pause(engine, fork);
    let fork = Guest::resume(&first.0, first.1.clone());
    told.pause(engine, fork);
    if let Some(second) = second {
        told.wait_published(&second.0, site);
    }
    told.delete(engine, &first.0);
    told
}

/// The acknowledgements of a node.
#[derive(Default)]
struct Told {
    there: Vec<(SnapshotId, ModelMemory)>,
    gone: Vec<SnapshotId>,
    refused: Vec<SnapshotId>,
    /// A snapshot whose deletion failed: it may be found deleted, as its owner asked for that.
    perhaps_gone: Option<SnapshotId>,
}

impl Told {
    fn pause(&mut self, engine: &Engine, guest: Guest) -> Option<(Arc<Snapshot>, ModelMemory)> {
        let id = SnapshotId::new();
        match commit(engine, guest, id) {
            Ok(paused) => {
                let known = paused.end_vmm();
                self.there.push((id, known.1.clone()));
                Some(known)
            }
            Err((guest, error)) => {
                drop(error);
                self.refused.push(id);
                drop(guest);
                None
            }
        }
    }

    fn delete(&mut self, engine: &Engine, snapshot: &Arc<Snapshot>) {
        if engine.delete(snapshot).is_ok() {
            self.there.retain(|(id, _)| *id != snapshot.id());
            self.gone.push(snapshot.id());
        } else {
            self.perhaps_gone = Some(snapshot.id());
        }
    }

    /// Waits until it is published, or until the catalog refuses to record that.
    fn wait_published(&self, snapshot: &Snapshot, site: &Site) {
        let struck = || site.catalog_faults.struck() > 0 && snapshot.status().failure.is_some();
        while snapshot.state() != SnapshotState::Published && !struck() {
            snapshot.wait_state(SnapshotState::Published, std::time::Duration::from_millis(5));
        }
    }
}

#[test]
fn whatever_write_of_a_life_fails_what_was_acknowledged_is_there_after_a_crash_and_nothing_else() {
    let whole = site();
    let engine = start(&whole);
    drop(life(&whole, &engine));
    drop(engine);
    let writes = whole.catalog_faults.writes();
    assert!(writes > 8, "a pause, seal, upload and publication of each: {writes}");
    for fate in [Fate::Refused, Fate::UnknownMade, Fate::UnknownNotMade, Fate::Forgotten] {
        for after in 0..writes {
            let site = site();
            let engine = start(&site);
            let failing = site.catalog_faults.inject(CatalogRule::nth(after, fate));
            let told = life(&site, &engine);
            engine.stop();
            drop(engine);
            drop(failing);
            let engine = start(&site);
            if fate != Fate::Forgotten {
                assert_told(&engine, &told, &format!("{fate:?} at write {after}"));
            }
            let lost: Vec<_> = engine.replayed().lost.iter().map(|lost| lost.id).collect();
            for (id, memory) in told.there.iter().filter(|(id, _)| !lost.contains(id)) {
                if let Some(snapshot) = engine.snapshot(*id) {
                    judge(&engine, &snapshot, memory).expect("every page is the model's");
                }
            }
        }
    }
}

#[test]
fn a_record_of_a_publication_is_enough_where_the_disk_forgot_those_of_the_seal_and_the_upload() {
    let site = site();
    let engine = start(&site);
    let forgotten =
        CatalogRule { times: 2, on: Some(Kind::Manifest), ..CatalogRule::nth(0, Fate::Forgotten) };
    let forgetting = site.catalog_faults.inject(forgotten);
    let (snapshot, content) = first_pause(&engine, 100);
    wait_published(&snapshot);
    assert_eq!(site.catalog_faults.struck(), 2);
    let id = snapshot.id();
    drop((snapshot, engine, forgetting));
    let engine = start(&site);
    let snapshot = engine.snapshot(id).expect("it was acknowledged");
    assert_eq!(snapshot.state(), SnapshotState::Published);
    judge(&engine, &snapshot, &content).expect("every page is the model's");
}

fn assert_told(engine: &Engine, told: &Told, when: &str) {
    let mut listed: Vec<_> = engine.snapshots().iter().map(|snapshot| snapshot.id()).collect();
    let mut there: Vec<_> = told.there.iter().map(|(id, _)| *id).collect();
    listed.sort();
    there.sort();
    assert!(engine.replayed().lost.is_empty(), "{when}: {:?}", engine.replayed().lost);
    assert!(listed.iter().all(|id| there.contains(id)), "{when}: {listed:?} are listed of {there:?}");
    let mut missing = there.iter().filter(|id| !listed.contains(id));
    assert!(missing.all(|id| told.perhaps_gone == Some(*id)), "{when}: {listed:?} are listed of {there:?}");
}
