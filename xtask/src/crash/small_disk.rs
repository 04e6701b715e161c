//! A disk that can be full: a file system in RAM that is shrunk to the size of its content.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

/// Its size while it is not full.
const BYTES: u64 = 4 << 30;

/// A file system of its own; unmounted on drop, even while it is used.
#[derive(Debug)]
pub(crate) struct SmallDisk {
    directory: PathBuf,
    is_left: bool,
}

impl SmallDisk {
    /// Mounts one at `directory`, which takes a right that only root has.
    pub(crate) fn mount(directory: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&directory)?;
        let options = format!("size={BYTES},mode=700");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&directory))?;
        Ok(Self { directory, is_left: false })
    }

    /// Has no room from now on.
    pub(crate) fn fill(&self) -> anyhow::Result<()> {
        let used = Command::new("df").args(["--output=used", "-B1"]).arg(&self.directory).output()?;
        let text = String::from_utf8_lossy(&used.stdout).into_owned();
        let used: u64 = text.lines().last().unwrap_or_default().trim().parse().context("asking df")?;
        // Writes meanwhile make it larger than that; then the kernel refuses, and it is tried again.
        let more = [0, 1 << 20, 8 << 20, 64 << 20];
        let filled = more.iter().find(|more| self.resize(used + *more).is_ok());
        filled.map(drop).context("the disk cannot be made smaller")
    }

    /// Has room again.
    pub(crate) fn free(&self) -> anyhow::Result<()> {
        self.resize(BYTES)
    }

    /// Stays when this is dropped.
    pub(crate) fn leave(&mut self) {
        self.is_left = true;
    }

    fn resize(&self, bytes: u64) -> anyhow::Result<()> {
        let options = format!("remount,size={bytes}");
        run(Command::new("mount").args(["-o", &options]).arg(&self.directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if self.is_left {
            return;
        }
        if let Err(error) = unmount(&self.directory) {
            eprintln!("{} is left mounted: {error:#}", self.directory.display());
        }
    }
}

fn unmount(directory: &Path) -> anyhow::Result<()> {
    run(Command::new("umount").arg("--lazy").arg(directory))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
