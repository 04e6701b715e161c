//! Nodes whose Firecracker is a peer that plays it, and machines in it.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use rekindle_api::types::{CreateSandbox, DiskImage, Machine, VmmKind};
use rekindle_testkit::black_box::{BlackBox, Console};

use crate::peer::{self, Settings, Step};
use crate::support::{Node, create, program};

/// Pages of a machine's memory.
const PAGES: u64 = 2048;

/// A node and the peers on it.
pub(crate) struct Peers {
    pub(crate) node: Node,
    /// Directory of their scripts and settings, beside the node's own program: so they end with it.
    directory: PathBuf,
}

/// A peer that stands at a step until it is let go on.
pub(crate) struct Standing(fs::File);

impl Peers {
    pub(crate) fn start() -> Self {
        Self::start_with(|_, _| String::new())
    }

    /// With settings of its own, which may name the peers' scripts and what is in another directory with a short name.
    pub(crate) fn start_with(settings: impl FnOnce(&Path, &Path) -> String) -> Self {
        let place = BlackBox::new(&program()).expect("directories");
        let directory = place.program().parent().expect("it is in a directory").to_owned();
        let this = directory.join("peer");
        let tests = std::env::current_exe().expect("a test has a program");
        fs::hard_link(&tests, &this)
            .or_else(|_| rekindle_testkit::programs::copy(&tests, &this))
            .expect("it can have another name");
        let firecracker = peer::install(&directory, &this);
        let more = format!(
            "[firecracker]\nprogram = {firecracker:?}\n{}",
            settings(&directory, &place.home_directory())
        );
        let file = fs::OpenOptions::new().append(true).open(place.settings_file());
        write!(file.expect("it is there"), "{more}").expect("there is room");
        fs::write(place.home_directory().join("vmlinux"), elf_start()).expect("there is room");
        Settings::default().write(&directory.join("settings.json"));
        let peers = Self { node: Node::start_in(place), directory };
        peers.set(|_| {});
        peers
    }

    /// Makes the peers of this node what `change` makes of ones that do everything right.
    pub(crate) fn set(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = Settings { requests: Some(self.file("requests")), ..Settings::default() };
        change(&mut settings);
        settings.write(&self.file("settings.json"));
    }

    /// A file beside the scripts.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Number of requests to peers.
    pub(crate) fn requests(&self) -> usize {
        fs::read_to_string(self.file("requests")).unwrap_or_default().lines().count()
    }

    /// A new machine with a disk.
    pub(crate) fn machine(&self, name: &str) -> CreateSandbox {
        let home = self.node.place.home_directory();
        let image = home.join("disk.img");
        let file = fs::File::create(&image).expect("there is room");
        file.set_len(1 << 20).expect("there is room");
        let machine = Machine {
            kernel: home.join("vmlinux").display().to_string(),
            initrd: None,
            command_line: None,
            cpus: 1,
            board: Default::default(),
            accelerator: None,
            cpu: None,
            disks: vec![DiskImage { name: "data".to_owned(), image: image.display().to_string() }],
            disks_of: None,
            taps: Vec::new(),
            netns: None,
            channel: false,
        };
        CreateSandbox {
            domain: None,
            vmm: VmmKind::Firecracker,
            memory_bytes: PAGES << 12,
            machine: Some(machine),
            ..create(name, Default::default())
        }
    }

    /// A machine that has filled its memory, and written to its disk.
    pub(crate) fn filled(&self, name: &str) {
        self.node.client.create_sandbox(None, &self.machine(name)).expect("a machine is made");
        self.say(name, "fill 1");
        self.write_disk(name, 3, 4);
    }

    /// The guest's answer to a line at its console.
    pub(crate) fn say(&self, sandbox: &str, line: &str) -> String {
        let mut console = Console::from_now(&self.node.client, sandbox).expect("its console is read");
        console.ask(line, "guest: ").expect("it answers")
    }

    /// One more step of the guest's counter.
    pub(crate) fn tick(&self, sandbox: &str) -> u64 {
        let said = self.say(sandbox, "tick");
        said.strip_prefix("tick ").and_then(|count| count.parse().ok()).expect("it counts")
    }

    /// Every page holds what the guest wrote there last.
    pub(crate) fn assert_verified(&self, sandbox: &str) {
        assert_eq!(self.say(sandbox, "verify"), format!("verified {PAGES} 0"), "{sandbox}");
    }

    pub(crate) fn write_disk(&self, sandbox: &str, block: u64, seed: u64) {
        let said = self.say(sandbox, &format!("disk data write {block} {seed}"));
        assert_eq!(said, format!("wrote data {block}"));
    }

    /// The disk holds at that block what was written with that seed; zeroes without one.
    pub(crate) fn assert_disk(&self, sandbox: &str, block: u64, seed: u64) {
        let said = self.say(sandbox, &format!("disk data check {block} {seed}"));
        assert_eq!(said, format!("right data {block}"), "{sandbox}");
    }

    /// The next peer that comes to that step stands there. A process that opens the returned pipe waits until the peer
    /// stands there.
    pub(crate) fn stand_at(&self, step: Step) -> PathBuf {
        let pipe = self.stand_aside();
        self.set(|settings| settings.stands_at = Some((step, pipe.clone())));
        pipe
    }

    /// A pipe at which something can stand.
    pub(crate) fn stand_aside(&self) -> PathBuf {
        let pipe = self.file("gate");
        pipe_at(&pipe);
        pipe
    }

    /// Directories that are left of machines.
    pub(crate) fn machine_files(&self) -> Vec<PathBuf> {
        entries(&self.node.place.state_directory().join("machines"))
    }
}

impl Standing {
    /// Waits until a peer stands at that pipe.
    pub(crate) fn wait(pipe: &Path) -> Self {
        Self(fs::OpenOptions::new().write(true).open(pipe).expect("it is there"))
    }

    /// Lets it go on.
    pub(crate) fn let_go_on(mut self) {
        self.0.write_all(b"!").expect("it reads");
    }
}

/// Content of a directory, which may not be there.
pub(crate) fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

fn pipe_at(path: &Path) {
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    // One of an earlier step does.
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).ok();
}

/// First bytes of a file that Firecracker would boot; the peer boots anything.
fn elf_start() -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[18] = 62;
    bytes
}
