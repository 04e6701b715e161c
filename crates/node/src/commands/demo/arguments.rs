//! Arguments of the demo, and its needs of the machine.

use std::path::PathBuf;

use anyhow::{Context, bail};
use bytesize::ByteSize;
use clap::builder::ArgPredicate;
use clap::{Args, ValueEnum};
use rekindle_api::types::Accelerator;
use rekindle_kernel::hugepages;
use rekindle_settings::parse_size;

use crate::commands::numbers::number;
use crate::memory_left::available_bytes;

/// Arguments of the demo.
#[derive(Args, Clone, Debug)]
pub struct DemoArguments {
    /// Use a virtual machine, in QEMU, with this guest in it
    #[arg(long, value_enum, value_name = "GUEST", num_args = 0..=1, default_missing_value = "tiny")]
    pub vm: Option<MachineWord>,
    /// The kernel of a Linux guest; Debian's, downloaded with apt-get, unless given
    #[arg(long, value_name = "FILE", requires = "vm")]
    pub kernel: Option<PathBuf>,
    /// Accelerator of the machine
    #[arg(long, value_enum, default_value_t = AcceleratorWord::Tcg, requires = "vm")]
    pub accelerator: AcceleratorWord,
    /// Guest memory, from 64MiB on, a multiple of 2MiB
    #[arg(long, default_value = "1GiB", default_value_if("vm", ArgPredicate::IsPresent, "256MiB"))]
    #[arg(value_name = "SIZE", value_parser = memory)]
    pub memory: ByteSize,
    /// Percent of the guest's pages rewritten between the two pauses
    #[arg(long, default_value_t = 50, value_name = "PERCENT", value_parser = number::<u8>(0..=100))]
    pub dirty: u8,
    /// Pages of guest memory; huge ones of 2 MiB must be reserved first
    #[arg(long, value_enum, default_value_t = PageSize::Small)]
    pub pages: PageSize,
    /// Way to take the guest's memory at a pause: as it is, or by copying the written pages
    #[arg(long, value_enum, default_value_t = CaptureKind::Adopt)]
    pub capture: CaptureKind,
    /// Make each resume wait until its snapshot is saved, for comparison
    #[arg(long)]
    pub no_early_serve: bool,
    /// Directory of the object store; a temporary one unless given. The key of what is stored there ends with the demo
    #[arg(long)]
    pub store: Option<PathBuf>,
    /// The directory that this process works in, made by the one that watches it
    #[arg(long, hide = true)]
    pub place: Option<PathBuf>,
    /// Print one JSON object and nothing else
    #[arg(long)]
    pub json: bool,
}

/// Guest of a virtual machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MachineWord {
    /// A guest of a few KB that needs no operating system
    Tiny,
    /// Linux
    Linux,
}

/// Way in which a machine's instructions are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AcceleratorWord {
    /// By translation; works everywhere
    Tcg,
    /// By the processor
    Kvm,
}

impl MachineWord {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Linux => "linux",
        }
    }
}

impl From<AcceleratorWord> for Accelerator {
    fn from(word: AcceleratorWord) -> Self {
        match word {
            AcceleratorWord::Tcg => Self::Tcg,
            AcceleratorWord::Kvm => Self::Kvm,
        }
    }
}

/// Pages of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PageSize {
    /// 4 KiB
    Small,
    /// 2 MiB
    Huge,
}

/// Way in which a pause takes the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CaptureKind {
    /// The guest's memory is a memfd, which is kept as it is
    Adopt,
    /// The guest's memory is its own; written pages are copied
    Copy,
}

impl DemoArguments {
    /// Checks that this machine has room for such a demo; the error says what to ask for instead.
    pub fn check(&self) -> anyhow::Result<()> {
        let bytes = self.memory.as_u64();
        if bytes < ByteSize::mib(64).as_u64() || !bytes.is_multiple_of(ByteSize::mib(2).as_u64()) {
            bail!("--memory {}: at least 64MiB, and a multiple of 2MiB", self.memory);
        }
        if self.vm.is_some() && (self.pages == PageSize::Huge || self.capture == CaptureKind::Copy) {
            bail!("--vm: a machine's memory is a memfd of 4 KiB pages; leave --pages and --capture out");
        }
        if self.vm == Some(MachineWord::Linux) && bytes < ByteSize::mib(192).as_u64() {
            bail!("--memory {}: Linux and its check of memory need 192MiB", self.memory);
        }
        let (free, needed) = (available_memory()?, bytes.saturating_mul(5));
        if free < needed {
            bail!(
                "--memory {}: up to five guests' memory is held at once, {}, but {} is available; try --memory {}MiB",
                self.memory,
                ByteSize::b(needed),
                ByteSize::b(free),
                (free / 6 / ByteSize::mib(2).as_u64() * 2).max(64),
            );
        }
        if self.pages == PageSize::Huge {
            check_huge_pages(needed)?;
        }
        Ok(())
    }
}

fn memory(given: &str) -> Result<ByteSize, String> {
    parse_size(given).map(ByteSize::b)
}

fn check_huge_pages(needed_bytes: u64) -> anyhow::Result<()> {
    let (free, needed) = (hugepages::pages_free()?, needed_bytes / ByteSize::mib(2).as_u64());
    if free < needed {
        bail!(
            "--pages huge: {free} huge pages are free, {needed} are needed; reserve them, and give them back after \
             it, with: echo {needed} | sudo tee /proc/sys/vm/nr_hugepages"
        );
    }
    Ok(())
}

fn available_memory() -> anyhow::Result<u64> {
    available_bytes(std::process::id()).context("/proc/meminfo does not say how much memory is available")
}
