//! The node that is killed: it checks the state it finds, then pauses, resumes, forks and deletes until it dies.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};

use futures_util::future::{BoxFuture, FutureExt as _};
use rekindle_engine::catalog::Catalog;
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::hooks::Hooks;
use rekindle_engine::identity::{SnapshotId, VolumeName};
use rekindle_engine::keep::{Keeper, KeptVolume};
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::store::Store;
use rekindle_testkit::black_box::ask_until;
use rekindle_testkit::guest::{Guest, Tracking, judge};
use rekindle_testkit::model::ModelMemory;
use rekindle_testkit::random::Random;
use rekindle_testkit::site::PATIENCE;

use crate::keeper::ask;
use crate::ledger::{Change, Ledger, PAGES, State, changes};

/// Number of snapshots from which on some are deleted.
const SNAPSHOTS_MAX: usize = 8;

type Known = (Arc<Snapshot>, ModelMemory);

/// Runs until it is killed; the last one runs until everything is published.
pub(crate) fn run(directory: &Path) {
    let link =
        Arc::new(Link(Mutex::new(UnixStream::connect(directory.join("keeper")).expect("the test listens"))));
    let begin = link.ask("begin", &[]).0;
    let (last, rest) = begin.split_once(' ').expect("three parts");
    let (seed, line) = rest.split_once(' ').expect("three parts");
    let ledger = Ledger::of_line(line);
    let engine = start(directory, &link);
    let mut known = check(&engine, &ledger);
    if last == "true" {
        known.iter().for_each(|(snapshot, _)| publish(snapshot));
        known.iter().for_each(|known| judge(&engine, &known.0, &known.1).expect("every page is the model's"));
        // Deleted snapshots are removed in the background, and stay for the next node if this one ends before.
        let nothing_is_held = ask_until(PATIENCE, || link.ask("held", &[]).0.is_empty().then_some(()));
        assert!(nothing_is_held.is_some(), "memory of deleted or published snapshots is kept");
        return;
    }
    let mut random = Random::new(seed.parse().expect("a number"));
    loop {
        if known.len() >= SNAPSHOTS_MAX {
            let (snapshot, _) = known.swap_remove(random.position(known.len()));
            link.say("deleting", snapshot.id());
            engine.delete(&snapshot).expect("the disk has room");
            link.say("deleted", snapshot.id());
        } else {
            let parent = random.percent(85).then(|| random.position(known.len().max(1)));
            let parent = parent.and_then(|position| known.get(position)).cloned();
            known.push(pause(&engine, &link, parent, random.number()));
        }
    }
}

fn start(directory: &Path, link: &Arc<Link>) -> Engine {
    let catalog = Catalog::open(&directory.join("catalog.redb")).expect("the one before is dead");
    let store = Store::directory(&directory.join("store")).expect("a disk");
    let options = EngineOptions {
        catalog: Some(catalog),
        keeper: link.clone(),
        hooks: link.clone(),
        ..EngineOptions::new(directory.join("layers"), store, KeyRing::of_name("default"))
    };
    Engine::start(options).expect("what is there is sound")
}

/// Checks that all acknowledged snapshots are listed, and only possible others, and that every page is right.
fn check(engine: &Engine, ledger: &Ledger) -> Vec<Known> {
    assert_eq!(engine.replayed().lost, []);
    let listed = engine.snapshots();
    for (id, entry) in &ledger.0 {
        let is_there = listed.iter().any(|snapshot| snapshot.id() == *id);
        match entry.state {
            State::Acknowledged => assert!(is_there, "{id} was acknowledged"),
            State::Deleted => assert!(!is_there, "{id} was deleted"),
            State::Begun | State::Deleting => {}
        }
    }
    let known = |snapshot: Arc<Snapshot>| {
        let model = ledger.model(snapshot.id());
        judge(engine, &snapshot, &model).expect("every page is the model's");
        (snapshot, model)
    };
    engine.end_replay();
    listed.into_iter().map(known).collect()
}

fn pause(engine: &Engine, link: &Link, parent: Option<Known>, seed: u64) -> Known {
    let mut guest = match &parent {
        Some((snapshot, memory)) => Guest::resume(snapshot, memory.clone()),
        None => Guest::fresh(PAGES),
    };
    for change in changes(seed) {
        match change {
            Change::Write(page, bytes) => {
                guest.write(engine, page, 0, &bytes).expect("its parent can be read")
            }
            Change::Remove(run) => guest.remove(run),
        }
    }
    let id = SnapshotId::new();
    let parent = parent.map_or_else(|| "-".to_owned(), |(snapshot, _)| snapshot.id().to_string());
    link.ask(&format!("pausing {id} {parent} {seed}"), &[]);
    let tracking = if seed.is_multiple_of(2) { Tracking::Exact } else { Tracking::Resident };
    let paused = guest.pause_as(id, engine, tracking).expect("it waits as long as it takes");
    link.say("paused", id);
    paused.end_vmm()
}

fn publish(snapshot: &Snapshot) {
    let published = snapshot.wait_state(SnapshotState::Published, PATIENCE);
    assert!(published, "{} does not get on: {:?}", snapshot.id(), snapshot.status());
}

/// The connection to the processes that survive this one. Every message waits for its answer.
#[derive(Debug)]
struct Link(Mutex<UnixStream>);

impl Link {
    fn ask(&self, line: &str, fds: &[OwnedFd]) -> (String, Vec<OwnedFd>) {
        ask(&self.0.lock().expect("no thread panics while it holds a lock"), line, fds)
    }

    fn say(&self, word: &str, id: SnapshotId) {
        self.ask(&format!("{word} {id}"), &[]);
    }

    fn step(&self, id: SnapshotId) -> BoxFuture<'_, ()> {
        async move { self.say("step", id) }.boxed()
    }
}

impl Keeper for Link {
    fn keep(&self, snapshot: SnapshotId, volumes: &[KeptVolume]) -> io::Result<()> {
        let [volume] = volumes else { return Err(io::Error::other("guests here have one volume")) };
        let fds = [volume.memory.try_clone()?, volume.sets.try_clone()?];
        self.ask(&format!("keep {snapshot}"), &fds);
        Ok(())
    }

    fn take_back(&self, _: SnapshotId) -> io::Result<()> {
        Err(io::Error::other("no catalog here leaves an outcome unknown"))
    }

    fn kept(&self, snapshot: SnapshotId) -> io::Result<Option<Vec<KeptVolume>>> {
        let (_, fds) = self.ask(&format!("kept {snapshot}"), &[]);
        let fds: Result<[OwnedFd; 2], _> = fds.try_into();
        Ok(fds.ok().map(|[memory, sets]| vec![KeptVolume { name: VolumeName::memory(), memory, sets }]))
    }

    fn forget(&self, snapshot: SnapshotId) -> io::Result<()> {
        self.say("forget", snapshot);
        Ok(())
    }

    fn held(&self) -> io::Result<Vec<SnapshotId>> {
        let (held, _) = self.ask("held", &[]);
        Ok(held.split_whitespace().map(|id| id.parse().expect("an id")).collect())
    }
}

/// Points between two steps, at which the test may kill the node.
impl Hooks for Link {
    fn before_compare(&self, snapshot: SnapshotId) -> BoxFuture<'_, ()> {
        self.step(snapshot)
    }

    fn before_manifest(&self, snapshot: SnapshotId) -> BoxFuture<'_, ()> {
        self.step(snapshot)
    }

    fn before_record(&self, snapshot: SnapshotId) -> BoxFuture<'_, ()> {
        self.step(snapshot)
    }

    fn before_forget(&self, snapshot: SnapshotId) -> BoxFuture<'_, ()> {
        self.step(snapshot)
    }
}
