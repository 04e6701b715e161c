//! Machines as these tests have them, and the lines that go over their consoles.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rekindle::api::types::{Accelerator, Board, ConsoleQuery, CreateSandbox, DiskImage, Machine, VmmKind};
use rekindle::client::{Client, ClientError};
use rekindle::vmm::guests::{linux_command_line, tiny_kernel};
use rekindle_testkit::linux::kernel_or_skip;
use rekindle_testkit::skip::skipped;

use crate::support::{Node, create};

/// How long a guest may take to answer, Linux to start included.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// Whether machines can be run here; says so where they cannot.
pub(crate) fn have_qemu(tier: &str) -> bool {
    let is_there = Command::new("qemu-system-x86_64").arg("--version").output().is_ok();
    if !is_there {
        skipped(tier, "there is no qemu-system-x86_64");
    }
    is_there
}

/// A machine with the tiny guest.
pub(crate) fn tiny(node: &Node, name: &str, board: Board, accelerator: Accelerator) -> CreateSandbox {
    let kernel = boot_file(node, "tiny.elf", tiny_kernel());
    machine(name, 24 << 20, kernel, None, (board, accelerator))
}

/// A machine with Linux and a disk; none where that cannot be had, which is said.
pub(crate) fn linux(node: &Node, name: &str, tier: &str) -> Option<CreateSandbox> {
    let kernel = kernel_or_skip(tier)?;
    let disk = node.place.home_directory().join("disk.img");
    std::fs::File::create(&disk).and_then(|file| file.set_len(32 << 20)).expect("a sparse file");
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk).status();
    if !made.is_ok_and(|status| status.success()) {
        skipped(tier, "there is no mkfs.ext4");
        return None;
    }
    let initrd = boot_file(node, "initrd", &kernel.initrd());
    let mut wanted = machine(name, 160 << 20, kernel.image, Some(initrd), (Board::Microvm, Accelerator::Tcg));
    let disk = DiskImage { name: "data".to_owned(), image: disk.display().to_string() };
    wanted.machine.as_mut().expect("it is a machine").disks.push(disk);
    Some(wanted)
}

fn machine(
    name: &str,
    memory_bytes: u64,
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    (board, accelerator): (Board, Accelerator),
) -> CreateSandbox {
    let command_line = initrd.as_ref().map_or_else(String::new, |_| linux_command_line());
    let machine = Machine {
        kernel: kernel.display().to_string(),
        initrd: initrd.map(|path| path.display().to_string()),
        command_line: Some(command_line),
        cpus: 1,
        board,
        accelerator: Some(accelerator),
        cpu: None,
        disks: Vec::new(),
        taps: Vec::new(),
    };
    CreateSandbox {
        vmm: VmmKind::Qemu,
        memory_bytes,
        machine: Some(machine),
        ..create(name, Default::default())
    }
}

fn boot_file(node: &Node, name: &str, bytes: &[u8]) -> PathBuf {
    let path: PathBuf = Path::new(&node.place.home_directory()).join(name);
    std::fs::write(&path, bytes).expect("there is room");
    path
}

/// The console of a sandbox's machine.
pub(crate) struct Console<'a> {
    client: &'a Client,
    sandbox: String,
    read_to: Option<u64>,
    said: Vec<u8>,
}

impl<'a> Console<'a> {
    /// All that was said and is known.
    pub(crate) fn of(client: &'a Client, sandbox: &str) -> Self {
        Self { client, sandbox: sandbox.to_owned(), read_to: None, said: Vec::new() }
    }

    /// What is said from now on.
    pub(crate) fn from_now(client: &'a Client, sandbox: &str) -> Self {
        let known = client.read_console(sandbox, ConsoleQuery::default()).expect("its console is read");
        Self { read_to: Some(known.next), ..Self::of(client, sandbox) }
    }

    /// The rest of the first line that begins so.
    pub(crate) fn line(&mut self, start: &str) -> String {
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            while let Some(at) = self.said.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.said.drain(..=at).collect();
                let line = String::from_utf8_lossy(&line).trim().to_owned();
                if let Some(rest) = line.strip_prefix(start) {
                    return rest.trim().to_owned();
                }
                assert!(!line.starts_with("error: "), "{}: {line}", self.sandbox);
            }
            assert!(Instant::now() < deadline, "{} never said {start:?}", self.sandbox);
            let query = ConsoleQuery { from: self.read_to, wait_seconds: Some(1) };
            let output = self.client.read_console(&self.sandbox, query).expect("its console is read");
            self.read_to = Some(output.next);
            self.said.extend(BASE64_STANDARD.decode(output.bytes).expect("it is base64"));
        }
    }

    /// The rest of the answer to a line.
    pub(crate) fn ask(&mut self, line: &str, start: &str) -> String {
        self.try_type(line).expect("it is typed");
        self.line(start)
    }

    pub(crate) fn try_type(&self, line: &str) -> Result<(), ClientError> {
        self.client.type_at_console(&self.sandbox, format!("{line}\n").as_bytes())
    }

    /// One more step of the guest's counter.
    pub(crate) fn tick(&mut self) -> u64 {
        self.ask("tick", "tick ").parse().expect("a number")
    }

    /// The guest finds nothing wrong with its memory.
    pub(crate) fn assert_verified(&mut self) {
        let verified = self.ask("verify", "verified ");
        let (pages, wrong) = verified.split_once(' ').expect("two numbers");
        assert!(pages != "0" && wrong == "0", "{}: verified {verified}", self.sandbox);
    }
}
