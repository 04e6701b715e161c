//! Firecracker's jailer: a process that sees nothing but a directory, as a user of its own.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, StatVfsMountFlags};
use serde::{Deserialize, Serialize};

/// The API socket's name in a jail.
pub(super) const API_IN_JAIL: &str = "api.sock";
/// The log's name in a jail.
pub(super) const LOG_IN_JAIL: &str = "firecracker.log";

/// Options of jailing Firecracker. The base is best a tmpfs: a pause writes the guest's changed memory into the jail,
/// which has no `/proc` through which a memory file of ours could be opened. It must not be mounted `nodev`: the jail
/// has a `/dev/kvm` of its own.
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

/// Reason that nothing can be jailed with these options.
#[derive(Debug, thiserror::Error)]
pub enum NoJail {
    /// The jailer cannot be run.
    #[error("the jailer {} cannot be run: {source}; set firecracker.jailer.program to one that can", program.display())]
    Program {
        /// The jailer.
        program: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Devices do not work where jails are made.
    #[error(
        "{} is on a file system that is mounted nodev, where a jail's /dev/kvm does not work: set firecracker.jailer.base to a directory on another one, or mount a tmpfs there",
        base.display()
    )]
    WithoutDevices {
        /// Directory of the jails.
        base: PathBuf,
    },
    /// Nothing can be told of where jails are made.
    #[error("the jails' directory {}: {source}; set firecracker.jailer.base to another one", base.display())]
    Base {
        /// Directory of the jails.
        base: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl Jailer {
    /// Checks that a Firecracker can be jailed with these options, before anything is made.
    pub fn check(&self) -> Result<(), NoJail> {
        let runs = rustix::fs::access(&self.program, Access::EXEC_OK);
        runs.map_err(|error| NoJail::Program { program: self.program.clone(), source: error.into() })?;
        let base = || self.base.clone();
        let there = self.base.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
        let mount = rustix::fs::statvfs(there);
        let mount = mount.map_err(|error| NoJail::Base { base: base(), source: error.into() })?;
        match mount.f_flag.contains(StatVfsMountFlags::NODEV) {
            true => Err(NoJail::WithoutDevices { base: base() }),
            false => Ok(()),
        }
    }

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

    /// The log as the jailed process names it.
    pub(super) fn log() -> OsString {
        format!("/{LOG_IN_JAIL}").into()
    }

    /// The API socket as the jailed process names it.
    pub(super) fn api() -> OsString {
        format!("/{API_IN_JAIL}").into()
    }
}
