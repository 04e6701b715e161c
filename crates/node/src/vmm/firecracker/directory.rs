//! The directory that one Firecracker process starts in: its disks by name, its socket, and what lies beside it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files;
use super::jailer::Jailer;

/// Where one process's files are. What it opens it opens by names in its directory, which for a jailed one is its root:
/// so a saved state, which has these names in it, finds the files of whichever process loads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmDirectory {
    /// What the process sees: it starts here.
    root: PathBuf,
    /// What it does not see.
    aside: PathBuf,
    /// Its API socket.
    api: PathBuf,
    /// Who owns its files, where it is jailed.
    jailed: Option<JailOwner>,
}

/// The user and group that a jailed process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct JailOwner {
    user_id: u32,
    group_id: u32,
}

/// The API socket's name in a jail.
pub(super) const API_IN_JAIL: &str = "api.sock";
/// The hand-over socket's name in a jail.
const HANDOVER_IN_JAIL: &str = "handover.sock";

impl VmDirectory {
    /// A directory for process `id` under `disks`, its socket under `run`.
    pub(super) fn create(disks: &Path, run: &Path, id: &str) -> io::Result<Self> {
        let root = disks.join(id);
        let aside = disks.join(format!("{id}.aside"));
        let directory = Self { api: run.join(format!("firecracker-{id}.sock")), root, aside, jailed: None };
        directory.make()?;
        Ok(directory)
    }

    /// The root of a jail for process `id`, which runs `program`.
    pub(super) fn create_jail(disks: &Path, jailer: &Jailer, program: &Path, id: &str) -> io::Result<Self> {
        let root = jailer.root(program, id);
        let aside = disks.join(format!("{id}.aside"));
        let jailed = Some(JailOwner { user_id: jailer.user_id, group_id: jailer.group_id });
        let directory = Self { api: root.join(API_IN_JAIL), root, aside, jailed };
        directory.make()?;
        directory.give(&directory.root)?;
        Ok(directory)
    }

    fn make(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.root)?;
        DirBuilder::new().recursive(true).mode(0o700).create(&self.aside)
    }

    /// Where it starts.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its API socket, as this process reaches it.
    pub fn api(&self) -> &Path {
        &self.api
    }

    /// Whether the process sees nothing but its root.
    pub fn is_jailed(&self) -> bool {
        self.jailed.is_some()
    }

    /// A file in it.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A file beside it.
    pub(super) fn beside(&self, name: &str) -> PathBuf {
        self.aside.join(name)
    }

    /// Makes a file that nobody writes openable by `name`.
    pub(super) fn place(&self, source: &Path, name: &str) -> io::Result<()> {
        let target = self.file(name);
        if self.jailed.is_none() {
            return std::os::unix::fs::symlink(source, target);
        }
        // A link shares the owner with the file itself, so only one that everybody may read can be linked.
        let everybody_reads = fs::metadata(source)?.mode() & 0o004 != 0;
        if everybody_reads && fs::hard_link(source, &target).is_ok() {
            return Ok(());
        }
        files::copy(&File::open(source)?, &target)?;
        self.give(&target)
    }

    /// Makes a file of the process's own out of a new one.
    pub(super) fn give(&self, path: &Path) -> io::Result<()> {
        match self.jailed {
            None => Ok(()),
            Some(owner) => std::os::unix::fs::chown(path, Some(owner.user_id), Some(owner.group_id)),
        }
    }

    /// Where to listen in a jail with that root, which is made if it is not there.
    pub(super) fn handover_in_jail(root: &Path) -> io::Result<PathBuf> {
        DirBuilder::new().recursive(true).mode(0o700).create(root)?;
        Ok(root.join(HANDOVER_IN_JAIL))
    }

    /// The path by which the process connects to the listener at `handover`.
    pub(super) fn handover(&self, handover: &Path) -> io::Result<PathBuf> {
        if self.jailed.is_none() {
            return Ok(handover.to_owned());
        }
        if let Ok(inside) = handover.strip_prefix(&self.root) {
            self.give(handover)?;
            return Ok(inside.to_owned());
        }
        fs::hard_link(handover, self.file(HANDOVER_IN_JAIL))?;
        self.give(handover)?;
        Ok(PathBuf::from(HANDOVER_IN_JAIL))
    }

    /// Removes everything, once the process has ended.
    pub fn remove(&self) -> io::Result<()> {
        // The jailer makes its root in a directory of the process's own.
        let all = if self.is_jailed() { self.root.parent().unwrap_or(&self.root) } else { &self.root };
        for directory in [all, &self.aside] {
            files::if_there(fs::remove_dir_all(directory))?;
        }
        files::if_there(fs::remove_file(&self.api)).map(drop)
    }
}
