//! `rekindle guests`: writes the demo's guests as files, to run them as machines of one's own.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use rekindle_guest::machine::{LinuxKernel, linux_command_line, tiny_kernel};
use serde::Serialize;

use super::session::Session;
use super::status::Status;

/// Directory to write them to.
#[derive(Args, Clone, Debug)]
pub struct GuestsArguments {
    /// The directory to write them into
    directory: PathBuf,
    /// Debian's kernel as well, downloaded with apt-get and not installed, with a first file system for it
    #[arg(long)]
    linux: bool,
}

/// The files written.
#[derive(Debug, Serialize)]
struct Written {
    tiny: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    linux: Option<WrittenLinux>,
}

#[derive(Debug, Serialize)]
struct WrittenLinux {
    kernel: PathBuf,
    initrd: PathBuf,
    command_line: String,
}

/// Writes them.
pub fn run(session: &Session, arguments: &GuestsArguments) -> anyhow::Result<Status> {
    let directory = &arguments.directory;
    std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let tiny = write(directory, "tiny.elf", tiny_kernel())?;
    let get = || linux(directory);
    let linux = arguments.linux.then(|| session.output.during("getting Debian's kernel", get)).transpose()?;
    if session.output.json {
        session.output.value(&Written { tiny, linux })?;
        return Ok(Status::Done);
    }
    session
        .output
        .line(&format!("{}: answers at its console to `fill 1`, `verify`, `tick`", tiny.display()))?;
    if let Some(linux) = linux {
        let (kernel, initrd) = (linux.kernel.display(), linux.initrd.display());
        session.output.line(&format!("{kernel} and {initrd}: Linux, which answers to the same"))?;
        session.output.hint(&format!("Run it with `rekindle run vm --kernel {kernel} --initrd {initrd}`."));
    }
    Ok(Status::Done)
}

fn linux(directory: &Path) -> anyhow::Result<WrittenLinux> {
    let work = tempfile::tempdir_in(directory)?;
    let kernel = LinuxKernel::of_debian(work.path()).context("getting Debian's kernel")?;
    let image = std::fs::read(&kernel.image).context("reading the kernel")?;
    Ok(WrittenLinux {
        kernel: write(directory, "vmlinuz", &image)?,
        initrd: write(directory, "initrd", &kernel.initrd())?,
        command_line: linux_command_line(),
    })
}

fn write(directory: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<PathBuf> {
    let path = directory.join(name);
    std::fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use rekindle_guest::machine::linux_init;

    use super::*;

    #[test]
    fn the_tiny_guest_is_an_elf_program_and_the_first_process_is_too() {
        assert!(tiny_kernel().starts_with(b"\x7fELF") && linux_init().starts_with(b"\x7fELF"));
    }
}
