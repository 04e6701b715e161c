//! Processes, found by the path of their program, or by a path in their arguments.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

/// A process that runs the program, or was started by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its process id.
    pub pid: u32,
    /// Its role.
    pub role: Role,
}

/// Role of a process, from its first argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `rekindle serve`.
    Daemon,
    /// `rekindle keeper`.
    Keeper,
    /// `rekindle guest`.
    Guest,
    /// Another command, or the VMM of a machine.
    Other,
}

impl Process {
    /// Number of descriptors it has open.
    pub fn fds(&self) -> io::Result<u64> {
        let count = fs::read_dir(format!("/proc/{}/fd", self.pid))?.count();
        Ok(u64::try_from(count).expect("usize is 64 bits"))
    }

    /// Number of its descriptors of each kind of file.
    pub fn fd_kinds(&self) -> io::Result<BTreeMap<String, u64>> {
        let mut kinds = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{}/fd", self.pid))? {
            // A descriptor that was closed meanwhile does not count.
            let Ok(target) = fs::read_link(entry?.path()) else { continue };
            let target = target.to_string_lossy().into_owned();
            let kind = target.split_once(":[").map_or(target.as_str(), |(kind, _)| kind);
            *kinds.entry(kind.to_owned()).or_default() += 1;
        }
        Ok(kinds)
    }

    /// Its state as the kernel shows it: `R (running)`, `S (sleeping)`, `T (stopped)`.
    pub fn doing(&self) -> io::Result<String> {
        self.status("State:")
    }

    /// Bytes of its own RAM, without shared memory files.
    pub fn own_ram_bytes(&self) -> io::Result<u64> {
        let words = self.status("RssAnon:")?;
        let kibibytes = words.strip_suffix("kB").and_then(|number| number.trim().parse::<u64>().ok());
        let unknown = || io::Error::new(io::ErrorKind::InvalidData, words.clone());
        kibibytes.map(|kibibytes| kibibytes * 1024).ok_or_else(unknown)
    }

    /// The value of `name` in its status.
    fn status(&self, name: &str) -> io::Result<String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let unknown =
            || io::Error::new(io::ErrorKind::InvalidData, format!("no {name} in a process's status"));
        line.map(|line| line.trim().to_owned()).ok_or_else(unknown)
    }
}

/// The processes whose program is in `programs`, and those with an argument in `root`.
pub(super) fn of(programs: &Path, root: &Path) -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if belongs(pid, programs, root) {
            found.push(Process { pid, role: role_of(pid) });
        }
    }
    Ok(found)
}

/// True if `pid` runs a program in `programs`, or has an argument in `root`; false once it has ended.
pub(super) fn belongs(pid: u32, programs: &Path, root: &Path) -> bool {
    // If the program was removed, the link ends with a word that says so.
    let runs_from =
        fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|program| program.starts_with(programs));
    let words = || fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    runs_from || String::from_utf8_lossy(&words()).contains(&*root.to_string_lossy())
}

fn role_of(pid: u32) -> Role {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    match words.split(|byte| *byte == 0).nth(1) {
        Some(b"serve") => Role::Daemon,
        Some(b"keeper") => Role::Keeper,
        Some(b"guest") => Role::Guest,
        Some(_) | None => Role::Other,
    }
}
