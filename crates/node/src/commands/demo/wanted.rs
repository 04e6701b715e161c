//! The guest that the demo asks its node for: a process guest, or a machine with its boot files.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rekindle_api::types::{self, CreateSandbox, Labels, MemoryBacking, VmmKind};
use rekindle_guest::machine::{self, LinuxKernel};

use super::arguments::{CaptureKind, DemoArguments, MachineWord, PageSize};

/// The guest of `arguments`; its boot files are made in `place`.
pub(super) fn wanted(arguments: &DemoArguments, place: &Path) -> anyhow::Result<CreateSandbox> {
    let machine = arguments.vm.map(|guest| machine_of(arguments, guest, place)).transpose()?;
    Ok(CreateSandbox {
        domain: None,
        name: None,
        labels: Labels::new(),
        vmm: if machine.is_some() { VmmKind::Qemu } else { VmmKind::Process },
        memory_bytes: arguments.memory.as_u64(),
        backing: match (arguments.capture, arguments.pages) {
            (CaptureKind::Adopt, PageSize::Small) => MemoryBacking::Shared,
            (CaptureKind::Adopt, PageSize::Huge) => MemoryBacking::Huge,
            (CaptureKind::Copy, PageSize::Small) => MemoryBacking::Private,
            (CaptureKind::Copy, PageSize::Huge) => MemoryBacking::PrivateHuge,
        },
        machine,
        checkpoints: None,
    })
}

fn machine_of(arguments: &DemoArguments, guest: MachineWord, place: &Path) -> anyhow::Result<types::Machine> {
    let (kernel, initrd, command_line) = match guest {
        MachineWord::Tiny => (boot_file(place, "tiny", machine::tiny_kernel())?, None, String::new()),
        MachineWord::Linux => {
            let (kernel, initrd) = linux(arguments, place)?;
            (kernel, Some(initrd), machine::linux_command_line())
        }
    };
    Ok(types::Machine {
        kernel: path_text(&kernel)?,
        initrd: initrd.as_deref().map(path_text).transpose()?,
        command_line: Some(command_line),
        cpus: 1,
        board: types::Board::Microvm,
        accelerator: Some(arguments.accelerator.into()),
        cpu: None,
        disks: Vec::new(),
        disks_of: None,
        taps: Vec::new(),
        netns: None,
        channel: false,
    })
}

/// A kernel, the one that was named or Debian's, and a first file system with our own first process.
fn linux(arguments: &DemoArguments, place: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let (image, initrd) = match &arguments.kernel {
        Some(image) => (image.clone(), machine::initrd(&[])),
        None => {
            let kept = kernels_directory();
            let kernel = LinuxKernel::of_debian(&kept).with_context(|| {
                format!("getting Debian's kernel into {}; name another by --kernel FILE", kept.display())
            })?;
            (kernel.image.clone(), kernel.initrd())
        }
    };
    Ok((image, boot_file(place, "initrd", &initrd)?))
}

fn boot_file(place: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<PathBuf> {
    let path = place.join(name);
    std::fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// Directory in which a kernel that was downloaded once is found again.
fn kernels_directory() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("rekindle/kernels")
}

fn path_text(path: &Path) -> anyhow::Result<String> {
    let path = path.canonicalize().with_context(|| format!("looking for the file {}", path.display()))?;
    path.into_os_string().into_string().ok().context("the path is not UTF-8")
}
