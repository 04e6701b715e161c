//! The directory that one Firecracker process starts in: its disks by name, its socket, and what lies beside it.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files;
use super::jailer::{API_IN_JAIL, Jailer, LOG_IN_JAIL};

/// The places of one process's files. The process opens its files by names in its directory, which for a jailed one is
/// its root: so a saved state, which has these names in it, finds the files of the process that loads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmDirectory {
    /// The directory that the process sees: it starts here.
    root: PathBuf,
    /// The directory that it does not see.
    aside: PathBuf,
    /// Its API socket.
    api: PathBuf,
    /// Its log; empty for one that release 0.1 started, which logged to its console.
    #[serde(default)]
    log: PathBuf,
    /// Owner of its files, if it is jailed.
    jailed: Option<JailOwner>,
}

/// The user and group that a jailed process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct JailOwner {
    user_id: u32,
    group_id: u32,
}

/// Ending of the name of the directory that a process does not see.
const ASIDE: &str = ".aside";
/// The hand-over socket's name in a jail.
const HANDOVER_IN_JAIL: &str = "handover.sock";
/// Beside the jail: a link to all of it, there before the jail is and gone after it, for callers that know only the id.
const JAIL: &str = "jail";

impl VmDirectory {
    /// A directory for process `id` under `disks`, its socket under `run`.
    pub(super) fn create(disks: &Path, run: &Path, id: &str) -> io::Result<Self> {
        let directory = Self::free(disks, run, id);
        directory.make()?;
        Ok(directory)
    }

    fn free(disks: &Path, run: &Path, id: &str) -> Self {
        let (root, aside) = (disks.join(id), disks.join(format!("{id}{ASIDE}")));
        let [api, log] = ["sock", "log"].map(|kind| run.join(format!("firecracker-{id}.{kind}")));
        Self { api, log, root, aside, jailed: None }
    }

    /// The ids of processes that have, or had, files under `disks`.
    pub fn ids(disks: &Path) -> io::Result<BTreeSet<String>> {
        let entries = match fs::read_dir(disks) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            entries => entries?,
        };
        let id = |entry: io::Result<fs::DirEntry>| {
            let name = entry?.file_name().to_string_lossy().into_owned();
            Ok(name.strip_suffix(ASIDE).unwrap_or(&name).to_owned())
        };
        entries.map(id).collect()
    }

    /// The root of a jail for process `id`, which runs `program`.
    pub(super) fn create_jail(disks: &Path, jailer: &Jailer, program: &Path, id: &str) -> io::Result<Self> {
        let directory = Self::jail(disks, jailer, program, id);
        directory.make()?;
        directory.give(&directory.root)?;
        Ok(directory)
    }

    fn jail(disks: &Path, jailer: &Jailer, program: &Path, id: &str) -> Self {
        let root = jailer.root(program, id);
        let aside = disks.join(format!("{id}{ASIDE}"));
        let jailed = Some(JailOwner { user_id: jailer.user_id, group_id: jailer.group_id });
        Self { api: root.join(API_IN_JAIL), log: root.join(LOG_IN_JAIL), root, aside, jailed }
    }

    fn make(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.aside)?;
        if self.is_jailed() {
            match std::os::unix::fs::symlink(self.all(), self.beside(JAIL)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&self.root)
    }

    /// The directory with all that the process sees: the jailer makes its root in one of the process's own.
    fn all(&self) -> &Path {
        if self.is_jailed() { self.root.parent().unwrap_or(&self.root) } else { &self.root }
    }

    /// The directory it starts in.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its API socket, as this process reaches it.
    pub fn api(&self) -> &Path {
        &self.api
    }

    /// Its log, as this process reaches it. A jailed one may have put anything there.
    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    /// True if the process sees nothing but its root.
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

    /// Makes a file openable by `name`; no process writes it.
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

    /// Path to listen at in the jail of process `id`, which is made if it is not there.
    pub(super) fn handover_in_jail(
        disks: &Path,
        jailer: &Jailer,
        program: &Path,
        id: &str,
    ) -> io::Result<PathBuf> {
        let jail = Self::jail(disks, jailer, program, id);
        jail.make()?;
        Ok(jail.file(HANDOVER_IN_JAIL))
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
        remove_all(self.all(), &self.aside, [&self.api, &self.log])
    }

    /// The same for process `id` under `disks` and `run`, of which nothing else is known.
    pub fn remove_of(disks: &Path, run: &Path, id: &str) -> io::Result<()> {
        let free = Self::free(disks, run, id);
        match fs::read_link(free.beside(JAIL)) {
            Ok(jail) => remove_all(&jail, &free.aside, [&free.api, &free.log]),
            Err(error) if error.kind() == io::ErrorKind::NotFound => free.remove(),
            Err(error) => Err(error),
        }
    }
}

/// The directory aside goes last but for socket and log, because it names the place of the rest.
fn remove_all(all: &Path, aside: &Path, in_run_directory: [&Path; 2]) -> io::Result<()> {
    for directory in [all, aside] {
        files::if_there(fs::remove_dir_all(directory))?;
    }
    in_run_directory.into_iter().try_for_each(|file| files::if_there(fs::remove_file(file)).map(drop))
}
