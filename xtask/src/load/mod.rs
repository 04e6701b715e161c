//! Work for a daemon, as its users make it, and the model that says what must come of it.

mod actor;
mod choice;
mod findings;
mod model;
mod operation;
mod shard;
mod world;

pub(crate) use actor::{Actor, Ended, News};
pub(crate) use choice::{Kind, Limits};
pub(crate) use findings::Findings;
pub(crate) use model::{ById, GuestModel, Life, Pages, SnapshotModel};
pub(crate) use operation::{Operation, Outcome};
pub(crate) use shard::Shard;
pub(crate) use world::World;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

/// The program `rekindle` in its release form, made by Cargo from the workspace at `root`.
pub(crate) fn program(root: &Path) -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let made = Command::new(cargo)
        // The workspace's default members: the program, and the library that belongs beside it.
        .args(["build", "--release", "--message-format=json"])
        .current_dir(root)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo")?;
    ensure!(made.status.success(), "cargo could not make the program: {}", made.status);
    let messages = String::from_utf8(made.stdout).context("what cargo said")?;
    let executable = messages.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message.get("executable")?.as_str().map(PathBuf::from)
    });
    executable.context("cargo did not say where the program is")
}
