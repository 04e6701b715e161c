//! The directory of the files that machines boot from, and the copies in it.

use std::path::{Path, PathBuf};

use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::Machine;
use rekindle_input::asker::Asker;
use rekindle_vmm::kernel_format::KernelFormats;
use rekindle_vmm::qemu::{BootFile, BootRole};

use super::host::Host;

/// The directory.
pub(super) fn boot_directory(host: &Host) -> PathBuf {
    host.state_directory.join("boot")
}

/// Keeps the files that a machine boots from: a kernel of one of `formats` and, if it has one, an initrd.
pub(super) fn keep_boot_files(
    directory: &Path,
    machine: &Machine,
    formats: KernelFormats,
    memory_bytes: u64,
    asker: &Asker,
) -> anyhow::Result<(BootFile, Option<BootFile>)> {
    let kernel = keep_boot_file(directory, ("kernel", &machine.kernel), BootRole::Kernel(formats), asker)?;
    let keep_initrd =
        |path| keep_boot_file(directory, ("initrd", path), BootRole::Initrd { memory_bytes }, asker);
    Ok((kernel, machine.initrd.as_deref().map(keep_initrd).transpose()?))
}

/// Keeps a file that a machine boots from; `role` is its name in the request.
fn keep_boot_file(
    directory: &Path,
    (role, path): (&str, &str),
    boot_role: BootRole,
    asker: &Asker,
) -> anyhow::Result<BootFile> {
    let kept = BootFile::keep(Path::new(path), directory, boot_role, asker);
    Ok(kept.map_err(|error| Problem::new(Code::InvalidRequest, format!("{role} {path}: {error}")))?)
}
