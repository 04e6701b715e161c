//! Shared parts of these tests: a daemon that can be killed and started again, and guests that know what they must
//! hold.

use std::fs;
use std::path::{Path, PathBuf};

use rekindle_api::client::Client;
use rekindle_api::types::{
    CreateSandbox, MemoryBacking, PauseSandbox, ResumeSandbox, ResumeSnapshot, Sandbox, SandboxState,
    Snapshot, SnapshotState,
};
use rekindle_guest::process::history::{Rewrite, Share};
pub(crate) use rekindle_testkit::black_box::Outage;
use rekindle_testkit::black_box::{BlackBox, PATIENCE, RunningDaemon, Told, ask_until};

pub(crate) const MEMORY_BYTES: u64 = 16 << 20;
/// The unit of `ulimit -f`.
pub(crate) const BLOCK_BYTES: u64 = 512;

/// The program under test.
pub(crate) fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_rekindle"))
}

/// A daemon in directories of its own.
pub(crate) struct Node {
    pub(crate) place: BlackBox,
    pub(crate) client: Client,
    daemon: Option<RunningDaemon>,
}

impl Node {
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    pub(crate) fn start_with(settings: &str) -> Self {
        Self::start_in(BlackBox::with_settings(&program(), settings).expect("directories"))
    }

    pub(crate) fn start_in(place: BlackBox) -> Self {
        let daemon = place.start().expect("a daemon starts");
        Self { client: place.client(), place, daemon: Some(daemon) }
    }

    /// A daemon of its own with a copy of another's keys.
    pub(crate) fn start_with_keys_of(other: &Self) -> Self {
        let place = BlackBox::new(&program()).expect("directories");
        place.copy_key_ring(&other.place).expect("the other has keys");
        Self::start_in(place)
    }

    /// Kills the daemon by SIGKILL.
    pub(crate) fn kill(&mut self) {
        let daemon = self.daemon.take().expect("a daemon runs");
        daemon.kill().expect("it can be killed");
    }

    /// Tells the daemon to end.
    pub(crate) fn terminate(&mut self) {
        let daemon = self.daemon.take().expect("a daemon runs");
        let status = daemon.terminate().expect("it ends when it is told to");
        assert!(status.success(), "{status}");
    }

    /// Starts a daemon on what another left.
    pub(crate) fn start_again(&mut self) {
        self.daemon = Some(self.place.start().expect("a daemon starts on what another left"));
    }

    /// The same, of a daemon that answers and need not say that it is ready.
    pub(crate) fn begin_again(&mut self) {
        self.daemon = Some(self.place.begin().expect("a daemon begins"));
        self.eventually("the daemon answering", || self.client.readiness().is_ok());
    }

    /// The daemon dies, and another one starts.
    pub(crate) fn crash(&mut self) {
        self.kill();
        self.start_again();
    }

    /// A sandbox whose guest was filled.
    pub(crate) fn filled(&self, name: &str, seed: u64) -> Sandbox {
        self.filled_of(name, seed, MemoryBacking::Shared)
    }

    pub(crate) fn filled_of(&self, name: &str, seed: u64, backing: MemoryBacking) -> Sandbox {
        let wanted = create(name, backing);
        let sandbox = self.client.create_sandbox(None, &wanted).expect("a sandbox is made");
        assert_eq!(sandbox.state, SandboxState::Running);
        self.told(name).fill(seed).expect("its guest fills its memory");
        sandbox
    }

    pub(crate) fn told(&self, sandbox: &str) -> Told<'_> {
        Told::new(&self.client, sandbox)
    }

    pub(crate) fn pause(&self, sandbox: &str, name: &str) -> Snapshot {
        self.client.pause_sandbox(sandbox, None, &pause_as(name)).expect("it is paused")
    }

    pub(crate) fn resume(&self, sandbox: &str) -> Sandbox {
        self.client.resume_sandbox(sandbox, &ResumeSandbox::default()).expect("it is resumed")
    }

    /// A new sandbox of a snapshot.
    pub(crate) fn resumed(&self, snapshot: &str, name: &str) -> Sandbox {
        let made = self.client.resume_snapshot(snapshot, None, &resume_as(name, 1)).expect("it is resumed");
        assert_eq!(made.len(), 1);
        made.into_iter().next().expect("one was asked for")
    }

    pub(crate) fn wait(&self, snapshot: &str, state: SnapshotState) -> Snapshot {
        self.client.wait_snapshot(snapshot, state, PATIENCE).expect("it comes so far")
    }

    /// Every page of the sandbox holds what its guest knows it must.
    pub(crate) fn assert_verified(&self, sandbox: &str) {
        let verified = self.told(sandbox).verify().expect("its guest verifies");
        assert!(verified.pages > 0);
        assert_eq!(verified.mismatches, 0, "{sandbox}: {verified:?}");
    }

    /// The keys that the keeper holds something under, and that begin so.
    pub(crate) fn kept(&self, prefix: &str) -> Vec<String> {
        let keeper = self.place.keeper().expect("a keeper runs");
        let held = keeper.list().expect("it tells what it holds");
        held.into_iter().map(|entry| entry.key).filter(|key| key.starts_with(prefix)).collect()
    }

    /// Every object in the store of `other` is in this one's as well, but for the identity: each keeps its own.
    pub(crate) fn copy_store(&self, other: &Self) {
        let to = self.place.store_directory();
        fs::create_dir_all(&to).expect("a disk");
        for entry in fs::read_dir(other.place.store_directory()).expect("it is there") {
            let from = entry.expect("it can be read").path();
            if from.is_dir() {
                let copy = || std::process::Command::new("cp").arg("-r").arg(&from).arg(&to).status();
                let copied = || copy().expect("there is cp").success();
                // This daemon may put an object of the same name meanwhile, which a second try finds.
                assert!(copied() || copied());
            }
        }
    }

    pub(crate) fn eventually(&self, what: &str, mut happened: impl FnMut() -> bool) {
        let done = ask_until(PATIENCE, || happened().then_some(()));
        assert!(done.is_some(), "{what} did not happen within {PATIENCE:?}");
    }
}

pub(crate) fn create(name: &str, backing: MemoryBacking) -> CreateSandbox {
    CreateSandbox {
        domain: None,
        name: Some(name.parse().expect("it is a name")),
        labels: Default::default(),
        vmm: Default::default(),
        memory_bytes: MEMORY_BYTES,
        backing,
        machine: None,
        checkpoints: None,
    }
}

pub(crate) fn pause_as(name: &str) -> PauseSandbox {
    PauseSandbox { name: Some(name.parse().expect("it is a name")), ..Default::default() }
}

pub(crate) fn resume_as(name: &str, count: u32) -> ResumeSnapshot {
    let name = Some(name.parse().expect("it is a name"));
    ResumeSnapshot { count: count.try_into().expect("a few"), name, ..Default::default() }
}

/// A share of single pages.
pub(crate) fn share(seed: u64, percent: u8) -> Share {
    Share { seed, percent, run_pages: 1 }
}

/// Four of ten pages written, some of them with zeroes, some with what they held.
pub(crate) fn rewrite(seed: u64) -> Rewrite {
    Rewrite { share: share(seed, 40), zero_percent: 20, same_percent: 20 }
}

/// Every file below `directory`.
pub(crate) fn files_in(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let entry = entry.expect("it can be read");
        if entry.file_type().expect("it has a type").is_dir() {
            files.extend(files_in(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files
}
