//! The flags of `rekindle run` that describe a virtual machine.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use rekindle_api::limits;
use rekindle_api::types::{Accelerator, Board, DiskImage, Machine, Netns, Reference, Tap, TapName, VmmKind};

use uuid::Uuid;

use super::numbers::number;

/// The machine of a virtual machine; a sandbox without a kernel is a process guest.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Virtual machine")]
pub struct MachineArguments {
    /// VMM to use; qemu unless given
    #[arg(long, value_enum, requires = "kernel")]
    vmm: Option<VmmWord>,
    /// Kernel to boot
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initrd: the first file system of the kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Kernel command line; by default one with which Linux uses the console
    #[arg(long, value_name = "WORDS", requires = "kernel", allow_hyphen_values = true)]
    append: Option<String>,
    /// Virtual processors
    #[arg(long, value_name = "COUNT", default_value_t = 1, requires = "kernel", value_parser = number::<u32>(1..=limits::CPUS_MAX.into()))]
    cpus: u32,
    /// Machine type, under QEMU
    #[arg(long, value_enum, default_value_t = BoardWord::Microvm, requires = "kernel")]
    board: BoardWord,
    /// Accelerator; kvm if this host has it, unless given
    #[arg(long, value_enum, requires = "kernel")]
    accelerator: Option<AcceleratorWord>,
    /// CPU model, by the VMM's name for it
    #[arg(long, value_name = "MODEL", requires = "kernel")]
    cpu: Option<String>,
    /// A disk that begins as a copy of a raw image; can be given again
    #[arg(long = "disk", value_name = "[NAME=]FILE", requires = "kernel")]
    disks: Vec<String>,
    /// Boot on the disks of this snapshot instead, with empty memory
    #[arg(long, value_name = "NAME|ID", requires = "kernel", conflicts_with = "disks")]
    pub disks_of: Option<String>,
    /// A network device at this existing tap device; can be given again
    #[arg(long = "tap", value_name = "DEVICE[,MAC]", requires = "kernel")]
    taps: Vec<String>,
    /// Run the VMM in this network namespace, where its tap devices are
    #[arg(long, value_name = "NAME|PATH", requires = "kernel")]
    netns: Option<String>,
    /// Give it a channel to its guest's agent, for `rekindle connect`
    #[arg(long, requires = "kernel")]
    channel: bool,
}

/// VMM of a virtual machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum VmmWord {
    /// QEMU, as the distribution has it
    Qemu,
    /// Firecracker
    Firecracker,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum BoardWord {
    /// Few devices, no PCI, no firmware tables: the quickest to start
    Microvm,
    /// A PC
    Q35,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AcceleratorWord {
    /// By the processor
    Kvm,
    /// By translation: slower, and works everywhere
    Tcg,
}

impl MachineArguments {
    /// The VMM of the guest, and its machine if it is a virtual one, on the disks of that snapshot if one is named. Paths
    /// are made absolute.
    pub fn machine(&self, disks_of: Option<Uuid>) -> anyhow::Result<(VmmKind, Option<Machine>)> {
        let Some(kernel) = &self.kernel else { return Ok((VmmKind::Process, None)) };
        let vmm = match self.vmm {
            None | Some(VmmWord::Qemu) => VmmKind::Qemu,
            Some(VmmWord::Firecracker) => VmmKind::Firecracker,
        };
        let machine = Machine {
            kernel: absolute(kernel)?,
            initrd: self.initrd.as_deref().map(absolute).transpose()?,
            command_line: self.append.clone(),
            cpus: self.cpus,
            board: match self.board {
                BoardWord::Microvm => Board::Microvm,
                BoardWord::Q35 => Board::Q35,
            },
            accelerator: self.accelerator.map(|word| match word {
                AcceleratorWord::Kvm => Accelerator::Kvm,
                AcceleratorWord::Tcg => Accelerator::Tcg,
            }),
            cpu: self.cpu.clone(),
            disks: self
                .disks
                .iter()
                .enumerate()
                .map(|(at, word)| disk(at, word))
                .collect::<Result<_, _>>()?,
            disks_of: disks_of.map(Reference::from),
            taps: self.taps.iter().map(|word| tap(word)).collect(),
            netns: self.netns.clone().map(Netns),
            channel: self.channel,
        };
        Ok((vmm, Some(machine)))
    }
}

/// `NAME=FILE`, or a file whose disk is named by its place.
fn disk(at: usize, word: &str) -> anyhow::Result<DiskImage> {
    let (name, file) = match word.split_once('=') {
        Some((name, file)) if !name.contains('/') => (name.to_owned(), file),
        Some(_) | None => (format!("disk{at}"), word),
    };
    Ok(DiskImage { name, image: absolute(Path::new(file))? })
}

fn tap(word: &str) -> Tap {
    match word.split_once(',') {
        Some((device, mac)) => {
            Tap { device: TapName(device.to_owned()), mac: Some(mac.to_ascii_lowercase()) }
        }
        None => Tap { device: TapName(word.to_owned()), mac: None },
    }
}

/// The daemon has another directory than this program.
fn absolute(path: &Path) -> anyhow::Result<String> {
    let found = path.canonicalize().with_context(|| format!("looking for the file {}", path.display()))?;
    found.into_os_string().into_string().ok().with_context(|| format!("{} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_looked_at_is_not_said_to_be_missing() {
        let place = tempfile::tempdir().expect("a directory");
        let link = place.path().join("loop");
        std::os::unix::fs::symlink(&link, &link).expect("there is room");
        let said = format!("{:#}", absolute(&link).expect_err("it leads to itself"));
        assert!(said.contains("levels of symbolic links") && !said.contains("there is no"), "{said}");
    }

    #[test]
    fn disks_and_taps_are_named_as_they_are_given() {
        assert_eq!(disk(1, "/dev/null").expect("it is there").name, "disk1");
        assert_eq!(disk(1, "root=/dev/null").expect("it is there").name, "root");
        assert!(disk(0, "/no such=file").expect_err("it is not there").to_string().contains("/no such=file"));
        assert_eq!(tap("tap0"), Tap { device: TapName("tap0".to_owned()), mac: None });
        let mac = Some("02:00:00:00:00:0a".to_owned());
        assert_eq!(tap("tap0,02:00:00:00:00:0A"), Tap { device: TapName("tap0".to_owned()), mac });
    }
}
