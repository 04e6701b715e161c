//! Machines as these tests have them, and the lines that go over their consoles.

use std::path::{Path, PathBuf};
use std::process::Command;

use rekindle_api::client::Client;
use rekindle_api::types::{Accelerator, Board, CreateSandbox, DiskImage, Machine, VmmKind};
use rekindle_guest::machine::{linux_command_line, tiny_kernel};
use rekindle_testkit::black_box;
use rekindle_testkit::linux::kernel_or_skip;
use rekindle_testkit::skip::skipped;

use crate::support::{Node, create};

/// True if machines can be run here; says so if not.
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
    // If KVM itself is emulated, a page takes milliseconds.
    let mib = if accelerator == Accelerator::Kvm { 3 } else { 24 };
    let mut wanted = machine(name, mib << 20, &kernel, None, (board, accelerator));
    if accelerator == Accelerator::Kvm {
        // A host that is a virtual machine itself may not have what QEMU takes for granted of it.
        wanted.machine.as_mut().expect("it is a machine").cpu = Some("host,-arch-capabilities".to_owned());
    }
    wanted
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
    let mut wanted =
        machine(name, 160 << 20, &kernel.image, Some(&initrd), (Board::Microvm, Accelerator::Tcg));
    let disk = DiskImage { name: "data".to_owned(), image: disk.display().to_string() };
    wanted.machine.as_mut().expect("it is a machine").disks.push(disk);
    Some(wanted)
}

fn machine(
    name: &str,
    memory_bytes: u64,
    kernel: &Path,
    initrd: Option<&Path>,
    (board, accelerator): (Board, Accelerator),
) -> CreateSandbox {
    let command_line = initrd.map_or_else(String::new, |_| linux_command_line());
    let machine = Machine {
        kernel: kernel.display().to_string(),
        initrd: initrd.map(|path| path.display().to_string()),
        command_line: Some(command_line),
        cpus: 1,
        board,
        accelerator: Some(accelerator),
        cpu: None,
        disks: Vec::new(),
        disks_of: None,
        taps: Vec::new(),
        netns: None,
        channel: false,
    };
    CreateSandbox {
        domain: None,
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

/// The console of a sandbox's machine; a missing answer fails the test.
pub(crate) struct Console<'a>(black_box::Console<'a>);

impl<'a> Console<'a> {
    /// All that was said and is known.
    pub(crate) fn of(client: &'a Client, sandbox: &str) -> Self {
        Self(black_box::Console::of(client, sandbox))
    }

    /// The output from now on.
    pub(crate) fn from_now(client: &'a Client, sandbox: &str) -> Self {
        Self(black_box::Console::from_now(client, sandbox).expect("its console is read"))
    }

    /// The rest of the first line that begins so.
    pub(crate) fn line(&mut self, start: &str) -> String {
        self.0.line(start).expect("it says so")
    }

    /// The rest of the answer to a line.
    pub(crate) fn ask(&mut self, line: &str, start: &str) -> String {
        self.0.ask(line, start).expect("it answers")
    }

    /// One more step of the guest's counter.
    pub(crate) fn tick(&mut self) -> u64 {
        self.0.tick().expect("it counts")
    }

    /// The guest finds nothing wrong with its memory.
    pub(crate) fn assert_verified(&mut self) {
        let (pages, wrong) = self.0.verify().expect("it verifies");
        assert!(pages > 0 && wrong == 0, "{wrong} of {pages} pages are wrong");
    }
}
