//! Shared parts of these tests: a keeper, an engine, a peer's scripts, and VMs driven as the daemon drives them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rekindle_engine::engine::Engine;
use rekindle_engine::handover::Handover;
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::pause::PausedGuest;
use rekindle_engine::serve::{Epoch, FaultServer};
use rekindle_engine::snapshot::Snapshot;
use rekindle_keeper::Held;
use rekindle_kernel::wakeup::wait_readable;
use rekindle_testkit::site::Site;
use rekindle_testkit::started_keeper::StartedKeeper;
use rekindle_vmm::firecracker::{
    Drive, DriveContent, DriveSource, FileDigests, FirecrackerError, FirecrackerGuest, FirecrackerSpec,
    Interface, MemoryPages, Places, SERVE_OPTIONS, Seccomp, TrackFrom,
};
use rekindle_vmm::qemu::BootFile;
use rekindle_vmm::serial_line::SerialLine;
use tempfile::TempDir;

use crate::peer::{self, Settings};

/// Long enough for anything that happens at all.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
pub(crate) const MIB: u64 = 1 << 20;

/// The blobs of a snapshot.
const STATE: &str = "device-state";
const SPEC: &str = "firecracker";

/// A node with a keeper, an engine and a Firecracker that is a peer.
pub(crate) struct Node {
    pub(crate) keeper: StartedKeeper,
    pub(crate) site: Site,
    pub(crate) engine: Engine,
    pub(crate) places: Places,
    pub(crate) directory: TempDir,
    pub(crate) listens: Listens,
    next: AtomicU32,
}

/// Place of the listener for the hand-over.
#[derive(Clone, Copy)]
pub(crate) enum Listens {
    /// In the jail, if there is one.
    WhereItIsBest,
    /// Beside it.
    Elsewhere,
}

/// A VM that runs.
pub(crate) struct Running {
    pub(crate) guest: FirecrackerGuest,
    pub(crate) key: String,
    pub(crate) server: Option<FaultServer>,
    pub(crate) base: Option<Arc<Snapshot>>,
    pub(crate) console: Console,
}

/// The guest's end of the conversation on its console.
pub(crate) struct Console {
    printed: BufReader<Printed>,
    typed: File,
}

/// The guest's output, waited for no longer than [`LIMIT`].
struct Printed(File);

impl Node {
    pub(crate) fn start() -> Self {
        Self::start_at(Site::new().expect("a site"))
    }

    fn start_at(site: Site) -> Self {
        let directory = tempfile::Builder::new().prefix("fc-").tempdir().expect("a directory");
        let program = Path::new(env!("CARGO_BIN_EXE_rekindle"));
        let keeper = StartedKeeper::start(program, directory.path()).expect("a keeper starts");
        let engine = site.engine().expect("an engine starts");
        let this = std::env::current_exe().expect("a test has a program");
        let firecracker = peer::install(directory.path(), &this);
        let places = Places {
            program: firecracker,
            jailer: None,
            run_directory: directory.path().to_owned(),
            disk_directory: directory.path().join("vms"),
            log: Some(directory.path().join("firecracker.log")),
            seccomp: Seccomp::Filtered,
            starter: program.into(),
            digests: Arc::new(FileDigests::default()),
        };
        let node = Self {
            keeper,
            site,
            engine,
            places,
            directory,
            listens: Listens::WhereItIsBest,
            next: AtomicU32::new(0),
        };
        node.set(|_| {});
        std::fs::write(node.directory.path().join("vmlinux"), b"a kernel").expect("there is room");
        node
    }

    /// Another node with the same store, which has nothing of this one's.
    pub(crate) fn elsewhere(&self) -> Self {
        Self::start_at(self.site.elsewhere().expect("a site"))
    }

    /// Makes the peers of this node what `change` makes of ones that do everything right.
    pub(crate) fn set(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = Settings { requests: Some(self.requests_file()), ..Settings::default() };
        change(&mut settings);
        settings.write(&self.directory.path().join("settings.json"));
    }

    fn requests_file(&self) -> PathBuf {
        self.directory.path().join("requests")
    }

    /// Requests to peers, one a line.
    pub(crate) fn requests(&self) -> Vec<String> {
        let all = std::fs::read_to_string(self.requests_file()).unwrap_or_default();
        all.lines().map(str::to_owned).collect()
    }

    /// The body of the last request of that kind.
    pub(crate) fn last_request(&self, call: &str) -> serde_json::Value {
        let line = self.requests().into_iter().rfind(|line| line.starts_with(&format!("{call} ")));
        let line = line.unwrap_or_else(|| panic!("nobody asked {call}"));
        serde_json::from_str(&line[call.len() + 1..]).expect("it was JSON")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn boot_file(&self, name: &str) -> BootFile {
        let path = self.file(name);
        let blake3 = self.places.digests.of(&path).expect("the file is there");
        BootFile { path, blake3, named: None }
    }

    /// A VM with so much memory and nothing else.
    pub(crate) fn spec(&self, mib: u64) -> FirecrackerSpec {
        FirecrackerSpec {
            cpus: 2,
            memory_bytes: mib * MIB,
            pages: MemoryPages::Small,
            kernel: self.boot_file("vmlinux"),
            initrd: None,
            command_line: "console=ttyS0 reboot=k panic=1".to_owned(),
            drives: Vec::new(),
            interfaces: Vec::new(),
            netns: None,
            channel: false,
            balloon: None,
            cpu_profile: None,
            tracking: TrackFrom::Start,
            saved: None,
        }
    }

    /// A writable disk whose image has `bytes` bytes, and `content` at their start.
    pub(crate) fn disk(&self, id: &str, bytes: u64, content: &[u8]) -> Drive {
        let path = self.file(&format!("{id}.img"));
        let mut image = File::create(&path).expect("the directory can be written");
        image.write_all(content).expect("there is room");
        image.set_len(bytes).expect("there is room");
        Drive { id: id.to_owned(), bytes, is_root: false, content: DriveContent::Writable(Some(path)) }
    }

    pub(crate) fn next_key(&self) -> String {
        format!("guest/vm-{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn try_start(&self, spec: &FirecrackerSpec) -> Result<Running, FirecrackerError> {
        let key = self.next_key();
        let guest = FirecrackerGuest::start(&self.keeper, &key, spec, &self.places, None)?;
        Ok(Running { console: Console::of(&guest), guest, key, server: None, base: None })
    }

    pub(crate) fn run(&self, spec: &FirecrackerSpec) -> Running {
        self.try_start(spec).expect("the VM starts")
    }

    /// A VM whose guest has filled its memory.
    pub(crate) fn filled(&self, spec: &FirecrackerSpec) -> Running {
        let mut running = self.run(spec);
        running.say("fill 3");
        running
    }

    /// A guest with 8 MiB finds all of them as they were at the pause.
    pub(crate) fn assert_resumes(&self, snapshot: &Arc<Snapshot>) {
        let mut running = self.resume(snapshot);
        assert_eq!(running.verify(), 2048);
        self.end(running);
    }

    pub(crate) fn spec_of(&self, snapshot: &Snapshot) -> FirecrackerSpec {
        serde_json::from_slice(&snapshot.blobs()[SPEC]).expect("it was written by these tests")
    }

    pub(crate) fn resume(&self, snapshot: &Arc<Snapshot>) -> Running {
        self.try_resume(snapshot, &self.spec_of(snapshot)).expect("the VM resumes")
    }

    /// As the daemon does it: the memory is handed over, and served, while the load is under way.
    pub(crate) fn try_resume(
        &self,
        snapshot: &Arc<Snapshot>,
        spec: &FirecrackerSpec,
    ) -> Result<Running, FirecrackerError> {
        let mut running = self.begin_resume(snapshot, spec)?;
        running.guest.finish_load()?;
        Ok(running)
    }

    /// Up to where the memory is served and the load may not have been answered.
    pub(crate) fn begin_resume(
        &self,
        snapshot: &Arc<Snapshot>,
        spec: &FirecrackerSpec,
    ) -> Result<Running, FirecrackerError> {
        let key = self.next_key();
        let socket = match self.listens {
            Listens::WhereItIsBest => self.places.handover(&key).expect("a directory can be made"),
            Listens::Elsewhere => self.file("elsewhere.sock"),
        };
        let listener = UnixListener::bind(&socket).expect("the socket is new");
        let disks = DriveSource { snapshot, fetcher: self.engine.fetcher() };
        let state = &snapshot.blobs()[STATE];
        let mut guest =
            FirecrackerGuest::resume(&self.keeper, &key, spec, &self.places, disks, (&socket, state))?;
        let loading = guest.loading().expect("it was begun");
        let process = guest.process.handle();
        let ready =
            wait_readable([Some(listener.as_fd()), Some(loading), Some(process.as_fd())], Some(LIMIT));
        let [connected, _, _] = ready.expect("poll");
        std::fs::remove_file(&socket).expect("it was there");
        let begun = connected.readable.then(|| begin_serving(&listener, snapshot)).flatten();
        let Some(epoch) = begun else {
            // The load has failed, or the process has ended.
            let failed = guest.finish_load().expect_err("it cannot have been loaded");
            guest.process.kill().expect("ends");
            return Err(failed);
        };
        let server = self.serve(snapshot, epoch);
        let console = Console::of(&guest);
        Ok(Running { guest, key, server: Some(server), base: Some(Arc::clone(snapshot)), console })
    }

    pub(crate) fn serve(&self, snapshot: &Arc<Snapshot>, epoch: Epoch) -> FaultServer {
        let view = Arc::clone(snapshot.memory());
        FaultServer::resume(view, epoch, self.engine.fetcher().clone(), SERVE_OPTIONS).expect("it is served")
    }

    /// Pauses a VM into a snapshot and ends it.
    pub(crate) fn pause(&self, running: Running) -> Arc<Snapshot> {
        self.try_pause(running).map_err(|failed| failed.1).expect("the VM is paused")
    }

    /// As the daemon does it.
    pub(crate) fn try_pause(
        &self,
        mut running: Running,
    ) -> Result<Arc<Snapshot>, Box<(Running, FirecrackerError)>> {
        let bytes = running.guest.facts().spec.memory_bytes + running.guest.disk_bytes_held();
        let permit = self.engine.permit_pause(running.base.as_ref(), bytes).expect("there is room");
        let state = match running.guest.suspend() {
            Ok(state) => state,
            Err(error) => return Err(Box::new((running, error))),
        };
        running.guest.process.freeze().expect("freezes");
        let epoch = running.server.take().map(FaultServer::end_epoch);
        let volumes = running.guest.volumes(epoch.as_ref()).expect("what it wrote is captured");
        let saved = Some(running.guest.saved());
        let spec = FirecrackerSpec { saved, ..running.guest.facts().spec.clone() };
        let spec = serde_json::to_vec(&spec).expect("it is plain data");
        let blobs = BTreeMap::from([(STATE.to_owned(), Bytes::from(state)), (SPEC.to_owned(), spec.into())]);
        let paused = PausedGuest { id: SnapshotId::new(), volumes, blobs, alongside: Vec::new() };
        let snapshot = self.engine.commit_pause(permit, paused).expect("the snapshot is made");
        end(running, epoch);
        Ok(snapshot)
    }

    /// Ends a VM for good.
    pub(crate) fn end(&self, mut running: Running) {
        let epoch = running.server.take();
        running.guest.process.kill().expect("ends");
        drop(epoch);
        running.guest.facts().directory.remove().expect("its files are removed");
        self.keeper.forget(&running.key).expect("the keeper answers");
    }

    /// The keeper's holdings of a VM.
    pub(crate) fn held(&self, key: &str) -> Held {
        self.keeper.get(key).expect("the keeper answers").expect("it holds something")
    }

    /// Files left in the directory of VMs' disks.
    pub(crate) fn left_behind(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(&self.places.disk_directory) else { return Vec::new() };
        entries.map(|entry| entry.expect("an entry").path()).collect()
    }
}

/// Takes the memory of a VM over that has connected, unless it has ended since.
fn begin_serving(listener: &UnixListener, snapshot: &Snapshot) -> Option<Epoch> {
    let (stream, _) = listener.accept().expect("it has connected");
    let handover = Handover::receive(stream, snapshot.memory().pages(), LIMIT).ok()?;
    Epoch::begin(handover, SERVE_OPTIONS.tracking).ok()
}

/// Ends a VM that was captured, before the descriptors by which it is served go.
fn end(mut running: Running, epoch: Option<Epoch>) {
    running.guest.process.kill().expect("ends");
    drop(epoch);
    running.guest.facts().directory.remove().expect("its files are removed");
}

impl Running {
    /// Says a line on the guest's console; the answer is what it says to it.
    pub(crate) fn say(&mut self, line: &str) -> String {
        self.console.say(line)
    }

    /// Has the guest look at all of its memory; the answer is how many pages it looked at.
    pub(crate) fn verify(&mut self) -> u32 {
        let said = self.say("verify");
        let numbers: Vec<u32> = said.split(' ').skip(1).map(|word| word.parse().expect("a number")).collect();
        assert_eq!(numbers[1], 0, "pages are wrong: {said}");
        numbers[0]
    }
}

impl Console {
    pub(crate) fn of(guest: &FirecrackerGuest) -> Self {
        let SerialLine { output, input } = guest.serial().try_clone().expect("pipes can be duplicated");
        Self { printed: BufReader::new(Printed(output.into())), typed: input.into() }
    }

    pub(crate) fn say(&mut self, line: &str) -> String {
        self.begin(line);
        self.answer()
    }

    pub(crate) fn begin(&mut self, line: &str) {
        writeln!(self.typed, "{line}").expect("the VMM lives");
    }

    /// The next line that the guest, or anything else, prints there.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.printed.read_line(&mut line).expect("the VMM lives"), 0, "the VMM ended");
        line
    }

    pub(crate) fn answer(&mut self) -> String {
        loop {
            let line = self.line();
            if let Some((_, answer)) = line.split_once("guest: ") {
                return answer.trim_end().to_owned();
            }
        }
    }
}

impl Read for Printed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let [printed] = wait_readable([Some(self.0.as_fd())], Some(LIMIT))?;
        assert!(printed.readable || printed.hung_up, "the guest prints nothing");
        self.0.read(into)
    }
}

/// A named pipe at which a peer stands until it is let go on.
pub(crate) fn pipe(path: &Path) {
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0)
        .expect("a pipe can be made");
}

/// Lets a peer go on that stands at the pipe, or will.
pub(crate) fn let_go_on(path: &Path) {
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .expect("it is there")
        .write_all(b"!")
        .expect("it reads");
}

pub(crate) fn interface(id: &str, tap: &str) -> Interface {
    Interface { id: id.to_owned(), tap: tap.to_owned(), guest_mac: None }
}
