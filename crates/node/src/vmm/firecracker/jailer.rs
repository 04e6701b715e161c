//! Firecracker's jailer: a process that sees nothing but a directory, as a user of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::directory::API_IN_JAIL;

/// How Firecracker is jailed. The base is best a tmpfs: a pause writes the guest's changed memory into the jail, which
/// has no `/proc` through which a memory file of ours could be opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jailer {
    /// The jailer program.
    pub program: PathBuf,
    /// The directory that jails are made in (`--chroot-base-dir`), absolute.
    pub base: PathBuf,
    /// The user that the process becomes (`--uid`).
    pub user_id: u32,
    /// Its group (`--gid`).
    pub group_id: u32,
    /// Further words, as for control groups and name spaces; no pid name space of its own, which hides its process.
    #[serde(default)]
    pub arguments: Vec<OsString>,
}

impl Jailer {
    /// The root of process `id`: the jailer's own rule.
    pub(super) fn root(&self, program: &Path, id: &str) -> PathBuf {
        self.base.join(program.file_name().unwrap_or_default()).join(id).join("root")
    }

    /// The jailer's words for process `id`, before `--`.
    pub(super) fn words(&self, program: &Path, id: &str) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec!["--id".into(), id.into(), "--exec-file".into(), program.into()];
        words.extend(["--uid".into(), self.user_id.to_string().into()]);
        words.extend(["--gid".into(), self.group_id.to_string().into()]);
        words.extend(["--chroot-base-dir".into(), self.base.clone().into()]);
        words.extend(self.arguments.iter().cloned());
        words
    }

    /// The API socket as the jailed process names it.
    pub(super) fn api() -> OsString {
        format!("/{API_IN_JAIL}").into()
    }
}
