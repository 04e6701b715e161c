//! A daemon whose catalog fails at a write, with a known or an unknown outcome, and another one that starts after it.

use std::collections::BTreeMap;
use std::sync::Arc;

use rekindle::daemon::{Daemon, Served as _, StartOptions};
use rekindle_api::control::{Asked, Control as _};
use rekindle_api::problem::Code;
use rekindle_api::types::{
    CheckpointSandbox, FaultSocketState, ForkSandbox, ListQuery, MemoryBacking, OpenFaultSocket,
    PauseSandbox, Reference, ResumeSandbox, SandboxState, SnapshotState, WriteTracking,
};
use rekindle_engine::catalog::{Catalog, CatalogError, Kind};
use rekindle_guest::process::protocol::{Command, Verified};
use rekindle_kernel::ProcessHandle;
use rekindle_settings::{SettingFlags, Settings};
use rekindle_testkit::black_box::{BlackBox, PATIENCE, ask_until};
use rekindle_testkit::catalogs::{CatalogFaults, CatalogRule, Fate};

use crate::support::{create, files_in, program};

/// A reference by this name.
fn of(name: &str) -> Reference {
    name.parse().expect("it is a name")
}

const FATES: [Fate; 3] = [Fate::Refused, Fate::UnknownMade, Fate::UnknownNotMade];

/// A daemon in this process. Its keeper and guests are processes, and outlive it.
struct InProcess {
    place: BlackBox,
    settings: Settings,
    faults: CatalogFaults,
    daemon: Option<Arc<Daemon>>,
}

impl InProcess {
    fn start() -> Self {
        Self::start_with("")
    }

    fn start_with(settings: &str) -> Self {
        let place = BlackBox::with_settings(&program(), settings).expect("directories");
        let flags = SettingFlags::default().with_config(Some(place.settings_file()));
        let settings = Settings::load(&flags).expect("they are right");
        let mut this = Self { place, settings, faults: CatalogFaults::default(), daemon: None };
        this.start_again();
        this
    }

    /// Another daemon starts on what this one left; the disk is good from there on.
    fn crash(&mut self) {
        let daemon = self.daemon.take().expect("one runs");
        daemon.end();
        let last = Arc::into_inner(daemon);
        assert!(last.is_some(), "nothing else has it");
        drop(last);
        self.faults = CatalogFaults::default();
        self.start_again();
    }

    fn start_again(&mut self) {
        let faults = self.faults.clone();
        let mut options = StartOptions::new().expect("this program has a path");
        options.program = self.place.program().to_owned();
        // A process that another test has just forked has the last daemon's lock until it is another program.
        options.open_catalog = Box::new(move |path| {
            let free = || {
                let opened = Catalog::open_with(path, Arc::new(faults.clone()));
                (!matches!(opened, Err(CatalogError::Held { .. }))).then_some(opened)
            };
            ask_until(PATIENCE, free).expect("nobody else has it for long")
        });
        let daemon = Daemon::start_with(&self.settings, options);
        self.daemon = Some(daemon.expect("a daemon starts"));
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("one runs")
    }

    fn create(&self, name: &str) -> bool {
        let made = self.daemon().create_sandbox(Asked::default(), create(name, MemoryBacking::Shared));
        if made.is_ok() {
            let fill = serde_json::to_value(Command::Fill { seed: 1 }).expect("plain data");
            self.daemon().tell_guest(&of(name), Asked::default(), fill).expect("it fills its memory");
        }
        made.is_ok()
    }

    fn pause(&self, name: &str, snapshot: &str) -> bool {
        let how = PauseSandbox { name: Some(snapshot.parse().expect("it is a name")), ..Default::default() };
        self.daemon().pause_sandbox(&of(name), Asked::default(), how).is_ok()
    }

    fn checkpoint(&self, name: &str, snapshot: &str) -> bool {
        let name_of = Some(snapshot.parse().expect("it is a name"));
        let how = CheckpointSandbox { name: name_of, ..Default::default() };
        self.daemon().checkpoint_sandbox(&of(name), Asked::default(), how).is_ok()
    }

    fn resume(&self, name: &str) -> bool {
        self.daemon().resume_sandbox(&of(name), Asked::default(), ResumeSandbox::default()).is_ok()
    }

    fn fork(&self, name: &str) -> bool {
        let how = ForkSandbox {
            count: 2_u32.try_into().expect("a few"),
            name: Some("f".parse().expect("it is a name")),
            ..Default::default()
        };
        self.daemon().fork_sandbox(&of(name), Asked::default(), how).is_ok()
    }

    fn states(&self) -> Vec<(String, SandboxState)> {
        let all = self.daemon().sandboxes(&ListQuery::default()).expect("a list").sandboxes;
        let mut states: Vec<_> = all
            .into_iter()
            .map(|sandbox| (sandbox.name.expect("all are named").to_string(), sandbox.state))
            .collect();
        states.sort_by(|one, other| one.0.cmp(&other.0));
        states
    }

    fn snapshots(&self) -> usize {
        self.daemon().snapshots(&ListQuery::default()).expect("a list").snapshots.len()
    }

    /// Bytes of the files that the keeper holds for snapshots.
    fn snapshot_bytes_kept(&self) -> u64 {
        let keeper = self.place.keeper().expect("it is there");
        let held = keeper.list().expect("it answers").into_iter().map(|entry| entry.key);
        let held = held.filter(|key| key.starts_with("snapshot/"));
        let fds = held.filter_map(|key| keeper.get(&key).expect("it answers")).flat_map(|held| held.fds);
        let bytes = |(_, fd)| std::fs::File::from(fd).metadata().expect("it is open").len();
        fds.map(bytes).sum()
    }

    fn assert_verified(&self, name: &str) {
        let verify = serde_json::to_value(Command::Verify).expect("plain data");
        let verified = self.daemon().tell_guest(&of(name), Asked::default(), verify).expect("it runs");
        let verified: Verified = serde_json::from_value(verified).expect("its answer");
        assert_eq!(verified.mismatches, 0, "{name}: {verified:?}");
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.end();
        }
    }
}

fn only(name: &str, state: SandboxState) -> Vec<(String, SandboxState)> {
    vec![(name.to_owned(), state)]
}

#[test]
fn a_sandbox_whose_pause_could_not_be_recorded_runs_on_and_still_does_under_the_next_daemon() {
    for fate in FATES {
        let mut node = InProcess::start();
        assert!(node.create("a"));
        let failing = node.faults.inject(CatalogRule::next_on(Kind::Snapshot, fate));
        assert!(!node.pause("a", "s"), "{fate:?}");
        node.assert_verified("a");
        assert_eq!(node.snapshot_bytes_kept(), 0, "{fate:?}: nobody needs what was captured");
        node.crash();
        drop(failing);
        assert_eq!((node.states(), node.snapshots()), (only("a", SandboxState::Running), 0), "{fate:?}");
        node.assert_verified("a");
        assert!(node.pause("a", "s") && node.resume("a"));
        node.crash();
        node.assert_verified("a");
    }
}

#[test]
fn a_sandbox_whose_checkpoint_could_not_be_recorded_runs_on_and_still_does_under_the_next_daemon() {
    for fate in FATES {
        for is_served in [false, true] {
            let mut node = InProcess::start();
            assert!(node.create("a"));
            if is_served {
                assert!(node.pause("a", "base") && node.resume("a"));
                // Its own writes are over by then.
                node.daemon()
                    .wait_snapshot(&of("base"), SnapshotState::Published, PATIENCE)
                    .expect("it is published");
            }
            node.assert_verified("a");
            let before = node.snapshots();
            let failing = node.faults.inject(CatalogRule::next_on(Kind::Snapshot, fate));
            assert!(!node.checkpoint("a", "s"), "{fate:?}");
            node.assert_verified("a");
            node.crash();
            drop(failing);
            let found = (node.states(), node.snapshots());
            assert_eq!(found, (only("a", SandboxState::Running), before), "{fate:?}");
            node.assert_verified("a");
            assert!(node.checkpoint("a", "s") && node.checkpoint("a", "t"));
            node.crash();
            node.assert_verified("a");
            assert!(node.pause("a", "u") && node.resume("a"));
            node.assert_verified("a");
        }
    }
}

#[test]
fn a_sandbox_with_the_longest_labels_is_taken_back_as_others_are() {
    for fate in FATES {
        let mut node = InProcess::start();
        let mut wanted = create("a", MemoryBacking::Shared);
        let label = |number| (format!("{number:a>64}"), "ä".repeat(256));
        let labels: BTreeMap<_, _> = (0..64).map(label).collect();
        wanted.labels = labels.try_into().expect("they are allowed");
        let labels = wanted.labels.clone();
        node.daemon().create_sandbox(Asked::default(), wanted).expect("they are allowed");
        let failing = node.faults.inject(CatalogRule::next_on(Kind::Snapshot, fate));
        assert!(!node.pause("a", "s"), "{fate:?}");
        node.crash();
        drop(failing);
        assert_eq!((node.states(), node.snapshots()), (only("a", SandboxState::Running), 0), "{fate:?}");
        assert_eq!(node.daemon().sandbox(&of("a")).expect("it is listed").labels, labels);
        assert!(node.pause("a", "s"));
        let failing = node.faults.inject(CatalogRule::next_on(Kind::Sandbox, fate));
        assert!(!node.resume("a"), "{fate:?}");
        node.crash();
        drop(failing);
        assert_eq!(node.states(), only("a", SandboxState::Paused), "{fate:?}");
        assert!(node.resume("a"));
    }
}

#[test]
fn a_sandbox_whose_resume_could_not_be_recorded_is_paused_and_still_is_under_the_next_daemon() {
    for fate in FATES {
        let mut node = InProcess::start();
        assert!(node.create("a") && node.pause("a", "s"));
        let failing = node.faults.inject(CatalogRule::next_on(Kind::Sandbox, fate));
        assert!(!node.resume("a"), "{fate:?}");
        node.crash();
        drop(failing);
        assert_eq!((node.states(), node.snapshots()), (only("a", SandboxState::Paused), 1), "{fate:?}");
        assert!(node.resume("a"));
        node.assert_verified("a");
    }
}

#[test]
fn sandboxes_that_could_not_be_recorded_are_not_there_under_the_next_daemon_and_nothing_of_them_is_kept() {
    for fate in FATES {
        let mut node = InProcess::start();
        assert!(node.create("a") && node.pause("a", "s"));
        let failing = node.faults.inject(CatalogRule::next_on(Kind::Sandbox, fate));
        assert!(!node.create("b"), "{fate:?}");
        node.crash();
        let failing_fork = node.faults.inject(CatalogRule::next_on(Kind::Sandbox, fate));
        assert!(!node.fork("a"), "{fate:?}");
        node.crash();
        drop((failing, failing_fork));
        assert_eq!(node.states(), only("a", SandboxState::Paused), "{fate:?}");
        node.crash();
        let keeper = node.place.keeper().expect("it runs");
        let held = keeper.list().expect("it answers");
        assert!(held.iter().all(|entry| !entry.key.starts_with("guest/")), "{fate:?}: {held:?}");
        assert!(node.create("b") && node.fork("a"));
    }
}

#[test]
fn whatever_write_of_sandboxes_lives_fails_what_was_answered_is_so_under_the_next_daemon() {
    let life = |node: &InProcess| {
        let mut told = Vec::new();
        if !node.create("a") {
            return told;
        }
        let mut state = SandboxState::Running;
        node.checkpoint("a", "c");
        if node.pause("a", "s") {
            state = SandboxState::Paused;
            if node.resume("a") {
                state = SandboxState::Running;
            }
        }
        if node.fork("a") {
            told.extend(["f-1", "f-2"].map(|name| (name.to_owned(), SandboxState::Running)));
        }
        // A deletion that was refused may be found done.
        node.daemon().delete_snapshot(&of("s")).ok();
        told.insert(0, ("a".to_owned(), state));
        told
    };
    let node = InProcess::start();
    let before = node.faults.writes();
    assert_eq!(life(&node).len(), 3);
    let writes = node.faults.writes() - before;
    drop(node);
    for fate in FATES {
        for after in 0..writes {
            let mut node = InProcess::start();
            let failing = node.faults.inject(CatalogRule::nth(after, fate));
            let told = life(&node);
            node.crash();
            drop(failing);
            assert_eq!(node.states(), told, "{fate:?} at write {after}");
            for (name, _) in told.iter().filter(|(_, state)| *state == SandboxState::Running) {
                node.assert_verified(name);
            }
        }
    }
}

#[test]
fn a_fault_socket_that_could_not_be_recorded_is_nowhere_and_is_not_there_under_the_next_daemon() {
    let tracking = WriteTracking::default();
    let wanted = || OpenFaultSocket { snapshot: of("s"), serve_before_seal: None, tracking };
    for fate in FATES {
        let mut node = InProcess::start();
        assert!(node.create("a") && node.pause("a", "s"));
        // The store is remembered by then, in the same table.
        node.daemon().wait_snapshot(&of("s"), SnapshotState::Published, PATIENCE).expect("it is published");
        let failing = node.faults.inject(CatalogRule::next_on(Kind::Meta, fate));
        node.daemon().open_fault_socket(Asked::default(), wanted()).expect_err("it cannot be recorded");
        let assert_nowhere = |node: &InProcess| {
            assert_eq!(node.daemon().fault_sockets().expect("a list").len(), 0, "{fate:?}");
            let held = node.place.keeper().and_then(|keeper| keeper.list()).expect("it answers");
            assert!(held.iter().all(|entry| !entry.key.starts_with("socket/")), "{fate:?}: {held:?}");
            let files = files_in(&node.place.run_directory());
            assert!(
                !files.iter().any(|file| file.to_string_lossy().contains("/faults-")),
                "{fate:?}: {files:?}"
            );
        };
        assert_nowhere(&node);
        node.crash();
        drop(failing);
        assert_nowhere(&node);
        let opened = node.daemon().open_fault_socket(Asked::default(), wanted()).expect("it is opened");
        node.crash();
        assert_eq!(
            node.daemon().fault_socket(opened.id).expect("it is known").state,
            FaultSocketState::Listening
        );
    }
}

/// A guest that compares pages for hours answers nothing, so whoever told it to do so waits.
#[test]
fn a_busy_sandbox_whose_deletion_cannot_be_recorded_has_not_noticed_it() {
    let node = InProcess::start_with("pause_wait = \"1ms\"\n");
    assert!(node.create("a"));
    let pid = node.daemon().sandbox(&of("a")).expect("it is there").pid.expect("it runs");
    let guest = ProcessHandle::open(pid).expect("it runs");
    let tick = serde_json::to_value(Command::Tick { pages: u32::MAX }).expect("plain data");
    let end: [fn(&Daemon) -> bool; 2] = [
        |daemon| daemon.stop_sandbox(&of("a"), Asked::default()).is_ok(),
        |daemon| daemon.remove_sandbox(&of("a"), Asked::default()).is_ok(),
    ];
    std::thread::scope(|scope| {
        let telling = scope.spawn(|| node.daemon().tell_guest(&of("a"), Asked::default(), tick));
        let is_busy = || {
            let resumed = node.daemon().resume_sandbox(&of("a"), Asked::default(), ResumeSandbox::default());
            let refused = resumed.expect_err("it is not paused");
            refused.detail.contains("is being told something").then_some(())
        };
        ask_until(PATIENCE, is_busy).expect("it is told something");
        for end in end {
            let failing = node.faults.inject(CatalogRule::next_on(Kind::Sandbox, Fate::Refused));
            assert!(!end(node.daemon()));
            drop(failing);
        }
        assert!(guest.is_alive() && !telling.is_finished(), "it goes on with what it was told");
        assert_eq!(node.states(), only("a", SandboxState::Running));
        node.daemon().remove_sandbox(&of("a"), Asked::default()).expect("nothing fails");
        let refused = telling.join().expect("asking does not panic").expect_err("its guest was ended");
        assert!(matches!(refused.code, Code::WrongState | Code::NotFound), "{refused}");
    });
    assert!(guest.wait_exit(PATIENCE));
    assert_eq!(node.states(), []);
}
