//! Shared parts of these tests: nodes with their stores, guests of every kind, and waiting for events.

mod cases;
mod filled_node;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use object_store::local::LocalFileSystem;
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::geometry::{GuestPage, GuestPages};
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::store::Store;
use rekindle_guest::process::history::{History, Rewrite, Share};
use rekindle_guest::process::protocol::DeviceState;
use rekindle_testkit::random::Random;
use rekindle_testkit::sandbox::{Paused, Sandbox};
use rekindle_testkit::stores::{Faults, UnreliableStore};
use rekindle_vmm::process::{GuestShape, ProcessGuest};
use tempfile::TempDir;

pub(crate) use cases::{Case, each_case, each_kind};
pub(crate) use filled_node::FilledNode;

pub(crate) const MIB: u64 = 1 << 20;

/// Long enough for anything that happens at all.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// The program under test.
pub(crate) fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_rekindle"))
}

/// A node with its store, in a directory of its own.
pub(crate) struct Node {
    pub(crate) engine: Engine,
    pub(crate) directory: TempDir,
}

impl Node {
    pub(crate) fn start() -> Self {
        Self::start_with(|options| options)
    }

    pub(crate) fn start_with(change: impl FnOnce(EngineOptions) -> EngineOptions) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let options = change(options(directory.path(), "first", directory_store(directory.path())));
        Self { engine: Engine::start(options).expect("an engine starts"), directory }
    }

    /// A node whose store can be told to fail, and where it is told.
    pub(crate) fn with_faults() -> (Self, Faults) {
        let directory = tempfile::tempdir().expect("a directory");
        let (store, faults) = unreliable_store(directory.path());
        let options = options(directory.path(), "first", store);
        (Self { engine: Engine::start(options).expect("an engine starts"), directory }, faults)
    }

    /// Another engine over the same store that has nothing local.
    pub(crate) fn elsewhere(&self, name: &str) -> Engine {
        let options = options(self.directory.path(), name, directory_store(self.directory.path()));
        Engine::start(options).expect("an engine starts")
    }

    /// Another engine that has nothing local, over the same store, which can be told to fail, and where it is told.
    pub(crate) fn elsewhere_with_faults(&self, name: &str) -> (Engine, Faults) {
        let (store, faults) = unreliable_store(self.directory.path());
        let options = options(self.directory.path(), name, store);
        (Engine::start(options).expect("an engine starts"), faults)
    }

    pub(crate) fn store_directory(&self) -> PathBuf {
        self.directory.path().join("store")
    }
}

fn directory_store(directory: &Path) -> Store {
    Store::directory(&directory.join("store")).expect("a store in a directory")
}

/// The same as [`directory_store`], with faults that can be set.
fn unreliable_store(directory: &Path) -> (Store, Faults) {
    let path = directory.join("store");
    std::fs::create_dir_all(&path).expect("the directory can be made");
    let files = LocalFileSystem::new_with_prefix(&path).expect("a store in a directory").with_fsync(true);
    let unreliable = UnreliableStore::new(Arc::new(files));
    let faults = unreliable.faults();
    (Store::new(Arc::new(unreliable)), faults)
}

fn options(directory: &Path, name: &str, store: Store) -> EngineOptions {
    EngineOptions::new(directory.join(name), store, KeyRing::of_name("default"))
}

/// Choices of a new seed, or of the one in `REKINDLE_SEED`; says which.
pub(crate) fn random_of_this_run(what: &str) -> Random {
    let seed = match std::env::var("REKINDLE_SEED") {
        Ok(seed) => seed.parse().expect("REKINDLE_SEED is a number"),
        Err(_) => uuid::Uuid::now_v7().as_u64_pair().1,
    };
    eprintln!("{what}: REKINDLE_SEED={seed} replays this run");
    Random::new(seed)
}

/// A share of single pages.
pub(crate) fn share(seed: u64, percent: u8) -> Share {
    Share { seed, percent, run_pages: 1 }
}

/// Four of ten pages written, some of them with zeroes, some with what they held.
pub(crate) fn rewrite(seed: u64) -> Rewrite {
    Rewrite { share: share(seed, 40), zero_percent: 20, same_percent: 20 }
}

/// A guest that was just filled.
pub(crate) fn filled(shape: &GuestShape, seed: u64) -> Sandbox {
    let mut sandbox = Sandbox::start(shape.clone()).expect("a guest starts");
    sandbox.guest.control.fill(seed).expect("fills");
    sandbox
}

/// A snapshot of a guest that was just filled, and the guest ended.
pub(crate) fn filled_snapshot(engine: &Engine, shape: &GuestShape, seed: u64) -> Arc<Snapshot> {
    pause(engine, filled(shape, seed)).snapshot
}

pub(crate) fn resume(engine: &Engine, snapshot: &Arc<Snapshot>, shape: &GuestShape) -> Sandbox {
    Sandbox::resume(engine, snapshot, shape.clone()).expect("resumes")
}

pub(crate) fn pause(engine: &Engine, sandbox: Sandbox) -> Paused {
    sandbox.pause(engine).expect("pauses")
}

/// Every page of the guest holds what its history says.
pub(crate) fn assert_verified(guest: &mut ProcessGuest) {
    let verified = guest.control.verify().expect("the guest verifies");
    assert!(verified.pages > 0);
    assert_eq!(verified.mismatches, 0, "{verified:?}");
}

/// A guest of the snapshot runs, and every page of it is right.
pub(crate) fn assert_resumes(engine: &Engine, snapshot: &Arc<Snapshot>, shape: &GuestShape) {
    assert_verified(&mut resume(engine, snapshot, shape).guest);
}

/// Every page of the snapshot, read without a guest, holds what `history` says.
pub(crate) fn assert_reads(engine: &Engine, snapshot: &Snapshot, history: &History) {
    let view = snapshot.memory();
    let mut bytes = vec![0; 64 * 4096];
    for start in (0..view.pages()).step_by(64) {
        let pages = GuestPages::new(GuestPage::new(start), 64.min(view.pages() - start));
        let into = &mut bytes[..pages.iter().len() * 4096];
        engine.read(view, pages, into).expect("the snapshot can be read");
        for (page, found) in pages.iter().zip(into.chunks(4096)) {
            assert!(found == history.expected(page.number()).bytes(), "page {}", page.number());
        }
    }
}

/// The device state that was paused with a snapshot.
pub(crate) fn state_of(snapshot: &Snapshot) -> DeviceState {
    let state = snapshot.blobs().values().next().expect("a process guest has a device state");
    serde_json::from_slice(state).expect("the state was written by the program")
}

/// Waits until the snapshot is in the store.
pub(crate) fn wait_published(snapshot: &Snapshot) {
    let published = snapshot.wait_state(SnapshotState::Published, LIMIT);
    assert!(published, "{:?}", snapshot.status());
}

/// Waits until `happened`, looking again and again.
pub(crate) fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !happened() {
        assert!(Instant::now() < deadline, "{what} did not happen within {LIMIT:?}");
        thread::yield_now();
    }
}

/// Runs `work` on a thread of its own; a failure of the test if it never ends.
pub(crate) fn ends<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, is_done) = channel();
    let thread = thread::spawn(move || {
        // The test that waits may have given up and be gone.
        done.send(work()).ok();
    });
    let answer = is_done.recv_timeout(LIMIT);
    assert_ne!(
        answer.as_ref().err(),
        Some(&RecvTimeoutError::Timeout),
        "{what} did not end within {LIMIT:?}"
    );
    thread.join().expect("the work does not fail");
    answer.expect("work that does not fail sends its answer")
}
