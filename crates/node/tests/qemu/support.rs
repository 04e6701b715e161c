//! What these tests share: a host with a keeper, an engine and a QEMU, and machines on it that are paused and resumed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rekindle::keeper::{Found, KeeperClient, PROCESS};
use rekindle::vmm::guests::tiny_kernel;
use rekindle::vmm::qemu::{
    BootFile, Launch, Places, QemuGuest, QemuOptions, QemuProgram, QemuSpec, SPEC_BLOB,
};
use rekindle_engine::engine::Engine;
use rekindle_engine::handover::Handover;
use rekindle_engine::identity::{SnapshotId, VolumeName};
use rekindle_engine::pause::{PausedGuest, PausedVolume};
use rekindle_engine::serve::{Epoch, FaultServer, Neighbours, Placement, ServeOptions, ServeStats};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::tracking::{Tracking, file_pages};
use rekindle_kernel::{PageKind, ProcessHandle, Signal};
use rekindle_testkit::site::Site;
use rekindle_testkit::skip::skipped;
use tempfile::TempDir;

/// Long enough for anything that happens at all.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

pub(crate) const MIB: u64 = 1 << 20;

const DEVICE_STATE: &str = "device-state";

/// A keeper, an engine, and a QEMU. On drop every process of it is killed.
pub(crate) struct Host {
    pub(crate) keeper: KeeperClient,
    pub(crate) engine: Engine,
    pub(crate) program: QemuProgram,
    pub(crate) site: Site,
    pub(crate) directory: TempDir,
    machines: AtomicU32,
}

/// A machine that runs, and the server of its faults if it was resumed.
pub(crate) struct Running {
    pub(crate) key: String,
    pub(crate) guest: QemuGuest,
    pub(crate) console: Console,
    pub(crate) served: Option<Served>,
    pub(crate) spec: QemuSpec,
}

pub(crate) struct Served {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) server: FaultServer,
}

/// The serial console.
pub(crate) struct Console(BufReader<UnixStream>);

impl Host {
    /// None, and a line that says so, where there is no QEMU.
    pub(crate) fn start() -> Option<Self> {
        let program = match QemuProgram::find(None) {
            Ok(program) => program,
            Err(error) => {
                skipped("qemu", &error.to_string());
                return None;
            }
        };
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("keeper.sock");
        let rekindle = PathBuf::from(env!("CARGO_BIN_EXE_rekindle"));
        let (keeper, found) = KeeperClient::connect_or_start(&socket, &rekindle).expect("a keeper starts");
        assert_eq!(found, Found::Started);
        let site = Site::new().expect("directories");
        let engine = site.engine().expect("an engine starts");
        Some(Self { keeper, engine, program, site, directory, machines: AtomicU32::new(0) })
    }

    pub(crate) fn new_key(&self) -> String {
        format!("guest/{}", self.machines.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn boot_directory(&self) -> PathBuf {
        self.directory.path().join("boot")
    }

    /// The tiny guest with some MiB of memory.
    pub(crate) fn tiny(&self, mib: u64) -> QemuOptions {
        let kernel = BootFile::keep_bytes(tiny_kernel(), &self.boot_directory()).expect("there is room");
        QemuOptions::new(mib * MIB, kernel)
    }

    pub(crate) fn settle(&self, options: QemuOptions) -> QemuSpec {
        options.settle(&self.program).expect("this host can make it")
    }

    pub(crate) fn log(&self, key: &str) -> PathBuf {
        self.directory.path().join(format!("{}.log", key.replace('/', "-")))
    }

    pub(crate) fn launch(&self, key: &str, spec: &QemuSpec) -> Launch {
        let (boot_directory, log) = (self.boot_directory(), self.log(key));
        let places = Places { boot_directory, log, disks: Vec::new(), taps: Vec::new() };
        Launch::new(&self.program, spec, places).expect("it fits this host")
    }

    pub(crate) fn boot(&self, options: QemuOptions) -> Running {
        let (key, spec) = (self.new_key(), self.settle(options));
        let guest = QemuGuest::start(&self.keeper, &key, &self.launch(&key, &spec)).expect("it starts");
        let mut console = Console::of(&guest);
        console.wait_for("rekindle tiny guest");
        Running { key, guest, console, served: None, spec }
    }

    pub(crate) fn resume(&self, snapshot: &Arc<Snapshot>) -> Running {
        let spec: QemuSpec = serde_json::from_slice(&snapshot.blobs()[SPEC_BLOB]).expect("it was put there");
        let key = self.new_key();
        let socket = self.directory.path().join("handover");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let guest = QemuGuest::resume(&self.keeper, &key, &self.launch(&key, &spec), &socket);
        let mut guest = guest.expect("it starts");
        let stream = guest.handed_over(&listener, LIMIT).expect("it hands its memory over");
        std::fs::remove_file(&socket).expect("it is there");
        let handover = Handover::receive(stream, snapshot.memory().pages(), LIMIT).expect("all of it");
        let view = Arc::clone(snapshot.memory());
        let options = ServeOptions {
            tracking: Tracking::Scan,
            placement: Placement::FollowFaults,
            neighbours: Neighbours::Adaptive,
        };
        let server = FaultServer::start(view, handover, self.engine.fetcher().clone(), options);
        let server = server.expect("it can be served");
        assert_eq!(server.tracking(), Tracking::Scan, "this kernel scans for written pages");
        guest.load(&snapshot.blobs()[DEVICE_STATE]).expect("it loads what was saved");
        let console = Console::of(&guest);
        Running { key, guest, console, served: Some(Served { snapshot: Arc::clone(snapshot), server }), spec }
    }

    /// Processes under the keeper that have not ended.
    pub(crate) fn living(&self) -> usize {
        let entries = self.keeper.list().expect("the keeper answers");
        entries.iter().filter(|entry| entry.process.is_some_and(|process| process.exited.is_none())).count()
    }
}

impl Running {
    /// Pauses it into a snapshot, and ends it.
    pub(crate) fn pause(mut self, host: &Host) -> Arc<Snapshot> {
        let parent = self.served.as_ref().map(|served| Arc::clone(&served.snapshot));
        let bytes = self.spec.options.memory_bytes;
        let permit = host.engine.permit_pause(parent.as_ref(), bytes).expect("there is room");
        let state = self.guest.suspend().expect("it stands");
        self.guest.process.freeze().expect("it freezes");
        let epoch = self.served.map(|served| served.server.end_epoch());
        let volume = memory(&self.guest, epoch.as_ref());
        let spec = serde_json::to_vec(&self.spec).expect("plain data");
        let blobs = [(SPEC_BLOB.to_owned(), Bytes::from(spec)), (DEVICE_STATE.to_owned(), state)];
        let paused = PausedGuest {
            id: SnapshotId::new(),
            volumes: vec![volume],
            blobs: blobs.into(),
            alongside: Vec::new(),
        };
        let snapshot = host.engine.commit_pause(permit, paused).expect("it is taken over");
        self.guest.process.kill().expect("it ends");
        snapshot
    }

    /// Pages that were asked of its server so far.
    pub(crate) fn stats(&self) -> ServeStats {
        self.served.as_ref().expect("it was resumed").server.stats()
    }

    pub(crate) fn verify(&mut self) -> u64 {
        let answer = self.console.ask("verify");
        let mut words = answer.split_whitespace().skip(1).map(|word| word.parse::<u64>().expect("a number"));
        let (pages, wrong) = (words.next().expect("pages"), words.next().expect("wrong ones"));
        assert_eq!(wrong, 0, "{answer}");
        pages
    }

    pub(crate) fn tick(&mut self) -> u64 {
        let answer = self.console.ask("tick");
        answer.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number")
    }
}

/// The memory as a volume: all a guest on empty memory has, or what another one changed.
fn memory(guest: &QemuGuest, epoch: Option<&Epoch>) -> PausedVolume {
    let (memfd, pages) = match epoch {
        Some(epoch) => (epoch.memfd().expect("QEMU sends it"), epoch.changed_pages().expect("it stands")),
        None => {
            let memfd = guest.memory().expect("it is ours");
            let pages = u32::try_from(memfd.bytes() / 4096).expect("a small machine");
            (memfd, file_pages(memfd, pages).expect("a memfd tells its holes"))
        }
    };
    let memfd = memfd.try_clone().expect("a descriptor is free");
    PausedVolume { name: VolumeName::memory(), page_kind: PageKind::Small, memfd, pages }
}

impl Console {
    pub(crate) fn of(guest: &QemuGuest) -> Self {
        let serial = guest.serial().try_clone_to_owned().expect("a descriptor is free");
        let stream = UnixStream::from(serial);
        stream.set_read_timeout(Some(LIMIT)).expect("a limit can be set");
        Self(BufReader::new(stream))
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("it prints a line");
        assert!(line.ends_with('\n'), "it ended: {line:?}");
        line.trim_end().to_owned()
    }

    /// The first line that starts so.
    pub(crate) fn wait_for(&mut self, start: &str) -> String {
        loop {
            let line = self.line();
            assert!(!line.starts_with("error: "), "{line}");
            if line.starts_with(start) {
                return line;
            }
        }
    }

    /// What it answers to a command: a line that starts with its word, or its past tense.
    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.say(command);
        let word = command.split_whitespace().next().expect("a command has a word");
        let answer = match word {
            "verify" => "verified",
            "dirty" => "dirtied",
            word => word,
        };
        self.wait_for(answer)
    }

    pub(crate) fn say(&mut self, command: &str) {
        self.0.get_ref().write_all(format!("{command}\n").as_bytes()).expect("it listens");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for entry in self.keeper.list().unwrap_or_default() {
            let held = self.keeper.get(&entry.key).ok().flatten();
            if let Some(true) = held.map(|held| held.fds.contains_key(PROCESS))
                && let Some(process) = entry.process.filter(|process| process.exited.is_none())
                && let Ok(handle) = ProcessHandle::open(process.pid)
            {
                handle.signal(Signal::Kill).ok();
            }
        }
        self.keeper.shutdown(true).ok();
    }
}
