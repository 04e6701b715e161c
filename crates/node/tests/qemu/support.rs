//! Shared parts of these tests: a host with a keeper, an engine and a QEMU, and machines on it that are paused and
//! resumed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rekindle_disk::{Access, Disk, DiskSource, Overlay};
use rekindle_engine::engine::Engine;
use rekindle_engine::handover::Handover;
use rekindle_engine::identity::{SnapshotId, VolumeName};
use rekindle_engine::pause::{PausedGuest, PausedVolume};
use rekindle_engine::serve::{Epoch, FaultServer, Neighbours, Placement, ServeOptions};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::tracking::{Tracking, file_pages};
use rekindle_guest::machine::tiny_kernel;
use rekindle_kernel::PageKind;
use rekindle_testkit::site::Site;
use rekindle_testkit::skip::skipped;
use rekindle_testkit::started_keeper::StartedKeeper;
use rekindle_vmm::qemu::{
    BootFile, CONTROL, DiskSpec, KeptParts, Launch, Places, QemuGuest, QemuOptions, QemuProgram, QemuSpec,
    SPEC_BLOB,
};
use tempfile::TempDir;

/// Long enough for anything that happens at all.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

pub(crate) const MIB: u64 = 1 << 20;

const DEVICE_STATE: &str = "device-state";

/// A keeper, an engine, and a QEMU.
pub(crate) struct Host {
    pub(crate) keeper: StartedKeeper,
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
    /// The snapshot it runs on.
    pub(crate) origin: Option<Arc<Snapshot>>,
    pub(crate) served: Option<FaultServer>,
    pub(crate) disks: Vec<Disk>,
    pub(crate) spec: QemuSpec,
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
        Some(Self::of(program, Site::new().expect("directories")))
    }

    /// Another host that has nothing but the same store.
    pub(crate) fn elsewhere(&self) -> Self {
        let other = Self::of(self.program.clone(), self.site.elsewhere().expect("directories"));
        other.tiny(1);
        other
    }

    fn of(program: QemuProgram, site: Site) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let rekindle = Path::new(env!("CARGO_BIN_EXE_rekindle"));
        let keeper = StartedKeeper::start(rekindle, directory.path()).expect("a keeper starts");
        let engine = site.engine().expect("an engine starts");
        Self { keeper, engine, program, site, directory, machines: AtomicU32::new(0) }
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
        let disks = spec.options.disks.iter().map(|disk| self.disk_socket(key, &disk.name)).collect();
        let places = Places { boot_directory, log, disks, taps: Vec::new(), netns: None };
        Launch::new(&self.program, spec, places).expect("it fits this host")
    }

    /// Socket of a machine's disk.
    fn disk_socket(&self, key: &str, disk: &str) -> PathBuf {
        self.directory.path().join(format!("{}-{disk}.sock", key.replace('/', "-")))
    }

    /// Serves the disks of a machine from the volumes of a snapshot.
    fn serve_disks(&self, key: &str, spec: &QemuSpec, origin: &Snapshot) -> Vec<Disk> {
        let serve = |(number, disk): (usize, &DiskSpec)| {
            let base = Arc::clone(&origin.volumes()[number + 1].view);
            let source = DiskSource {
                base: Some(base),
                fetcher: self.engine.fetcher().clone(),
                overlay: Overlay::create(disk.bytes).expect("memory for what is written"),
                bytes: disk.bytes,
                access: Access::ReadWrite,
            };
            Disk::serve(&self.disk_socket(key, &disk.name), source).expect("a socket")
        };
        spec.options.disks.iter().enumerate().map(serve).collect()
    }

    /// Boots a machine whose disks begin as in `origin`, and whose memory is empty there.
    pub(crate) fn boot_on(&self, options: QemuOptions, origin: &Arc<Snapshot>) -> Running {
        let (key, spec) = (self.new_key(), self.settle(options));
        let disks = self.serve_disks(&key, &spec, origin);
        let guest = QemuGuest::start(&self.keeper, &key, &self.launch(&key, &spec)).expect("it starts");
        let console = Console::of(&guest);
        Running { key, guest, console, origin: Some(Arc::clone(origin)), served: None, disks, spec }
    }

    pub(crate) fn boot(&self, options: QemuOptions) -> Running {
        let (key, spec) = (self.new_key(), self.settle(options));
        let guest = QemuGuest::start(&self.keeper, &key, &self.launch(&key, &spec)).expect("it starts");
        let mut console = Console::of(&guest);
        console.wait_for("rekindle tiny guest");
        Running { key, guest, console, origin: None, served: None, disks: Vec::new(), spec }
    }

    /// Runs it from a snapshot.
    pub(crate) fn resume(&self, snapshot: &Arc<Snapshot>) -> Running {
        let (mut guest, server, disks, key) = self.hand_over(snapshot);
        assert_eq!(server.tracking(), Tracking::Scan, "this kernel scans for written pages");
        guest.load(state_of(snapshot)).expect("it loads what was saved");
        let console = Console::of(&guest);
        let (origin, spec) = (Some(Arc::clone(snapshot)), spec_of(snapshot));
        Running { key, guest, console, origin, served: Some(server), disks, spec }
    }

    /// A QEMU that is served from a snapshot and has not loaded its device state.
    pub(crate) fn hand_over(&self, snapshot: &Arc<Snapshot>) -> (QemuGuest, FaultServer, Vec<Disk>, String) {
        let spec = spec_of(snapshot);
        let key = self.new_key();
        let disks = self.serve_disks(&key, &spec, snapshot);
        let (listener, socket) = self.listen();
        let guest = QemuGuest::resume(&self.keeper, &key, &self.launch(&key, &spec), &socket, None);
        let guest = guest.expect("it starts");
        let stream = guest.handed_over(&listener, LIMIT).expect("it hands its memory over");
        let handover = Handover::receive(stream, snapshot.memory().pages(), LIMIT).expect("all of it");
        let view = Arc::clone(snapshot.memory());
        let options = ServeOptions {
            tracking: Tracking::Scan,
            placement: Placement::FollowFaults,
            neighbours: Neighbours::Adaptive,
        };
        let server = FaultServer::start(view, handover, self.engine.fetcher().clone(), options);
        (guest, server.expect("it can be served"), disks, key)
    }

    /// A socket of its own at which memory is handed over.
    pub(crate) fn listen(&self) -> (UnixListener, PathBuf) {
        let number = self.machines.fetch_add(1, Ordering::Relaxed);
        let socket = self.directory.path().join(format!("handover-{number}"));
        (UnixListener::bind(&socket).expect("a socket"), socket)
    }

    /// Waits until no process under the keeper lives.
    pub(crate) fn wait_for_nobody(&self) {
        for process in self.keeper.living().expect("the keeper answers") {
            assert!(process.wait_exit(LIMIT), "QEMU {} is left behind", process.pid());
        }
    }
}

/// The machine a snapshot is of.
pub(crate) fn spec_of(snapshot: &Snapshot) -> QemuSpec {
    serde_json::from_slice(&snapshot.blobs()[SPEC_BLOB]).expect("it was put there")
}

/// The device state of a snapshot.
pub(crate) fn state_of(snapshot: &Snapshot) -> &[u8] {
    &snapshot.blobs()[DEVICE_STATE]
}

impl Running {
    /// Pauses it into a snapshot, and ends it.
    pub(crate) fn pause(self, host: &Host) -> Arc<Snapshot> {
        self.pause_counting(host).0
    }

    /// The same, and how many pages were captured.
    pub(crate) fn pause_counting(mut self, host: &Host) -> (Arc<Snapshot>, u32) {
        let bytes = self.spec.options.memory_bytes;
        let permit = host.engine.permit_pause(self.origin.as_ref(), bytes).expect("there is room");
        let state = self.guest.suspend().expect("it stands");
        self.guest.process.freeze().expect("it freezes");
        let epoch = self.served.map(FaultServer::end_epoch);
        let volume = memory(&self.guest, epoch.as_ref());
        let kept = volume.pages.kept.len();
        let mut volumes = vec![volume];
        for (disk, served) in self.spec.options.disks.iter().zip(&self.disks) {
            let name = disk.name.parse().expect("it was checked");
            volumes.push(served.freeze().volume(name).expect("all of it is in memory"));
        }
        let spec = serde_json::to_vec(&self.spec).expect("plain data");
        let blobs = [(SPEC_BLOB.to_owned(), Bytes::from(spec)), (DEVICE_STATE.to_owned(), state)];
        let paused =
            PausedGuest { id: SnapshotId::new(), volumes, blobs: blobs.into(), alongside: Vec::new() };
        let snapshot = host.engine.commit_pause(permit, paused).expect("it is taken over");
        self.guest.process.kill().expect("it ends");
        (snapshot, kept)
    }

    /// Goes on with the driver that another process would have: by what the keeper holds.
    pub(crate) fn attach_again(&mut self, host: &Host) {
        let mut held = host.keeper.get(&self.key).expect("the keeper answers").expect("it is held");
        let parts =
            KeptParts::take(&mut held, 0, host.log(&self.key), Vec::new()).expect("all of it is held");
        let guest = QemuGuest::attach(parts).expect("it lives");
        drop(std::mem::replace(&mut self.guest, guest));
    }

    /// The control connection, as the keeper holds it.
    pub(crate) fn raw_control(&self, host: &Host) -> UnixStream {
        let mut held = host.keeper.get(&self.key).expect("the keeper answers").expect("it is held");
        UnixStream::from(held.fds.remove(CONTROL).expect("it is held"))
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

    /// Its answer to a command: a line that starts with the command's word, or its past tense.
    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.say(command);
        let word = command.split_whitespace().next().expect("a command has a word");
        let answer = match word {
            "verify" => "verified",
            "dirty" => "dirtied",
            "write" => "written",
            "forget" => "forgot",
            word => word,
        };
        self.wait_for(answer)
    }

    pub(crate) fn say(&mut self, command: &str) {
        self.0.get_ref().write_all(format!("{command}\n").as_bytes()).expect("it listens");
    }
}
