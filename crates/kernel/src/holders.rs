//! Finds the processes that hold a file, open or mapped, in `/proc`.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A process that holds a file, or may hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Name of its program.
    pub name: String,
}

/// Result of a search for processes that hold a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holding {
    /// No process holds it.
    Nobody,
    /// This process holds it.
    Held(Holder),
    /// This process may hold it: it cannot be inspected from here.
    Unseen(Holder),
}

/// Flags of a thread in its `stat` line (linux/sched.h): it is the kernel's own.
const PF_KTHREAD: u64 = 0x0020_0000;
/// The first process of a pid namespace, which often cannot be inspected.
const INIT: u32 = 1;

/// Searches all processes but this one and `except` for one that has `file` open or mapped. A process that is ending,
/// and may still have it, counts as one that has.
///
/// Process 1 does not count: init neither maps nor writes guest memory. At most it keeps descriptors for services that
/// restart, like systemd's descriptor store. Processes outside this pid namespace and those below it, and descriptors
/// on their way between processes, are not found.
pub fn holding(file: BorrowedFd<'_>, except: &[u32]) -> io::Result<Holding> {
    let facts = rustix::fs::fstat(file)?;
    let sought = Sought { device: facts.st_dev, inode: facts.st_ino };
    let mut found = Holding::Nobody;
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = number_of(&entry.file_name()) else { continue };
        if pid == std::process::id() || pid == INIT || except.contains(&pid) {
            continue;
        }
        match sought.is_held_by(&entry.path()) {
            Ok(true) => return Ok(Holding::Held(holder(pid))),
            Ok(false) => {}
            Err(error) if is_gone(&error) => {}
            Err(_) => found = Holding::Unseen(holder(pid)),
        }
    }
    Ok(found)
}

/// The file that is searched for, independent of its names.
struct Sought {
    device: u64,
    inode: u64,
}

impl Sought {
    /// Inspects each thread: any may have descriptors of its own, and the first may have ended before others.
    fn is_held_by(&self, process: &Path) -> io::Result<bool> {
        for task in fs::read_dir(process.join("task"))? {
            match self.is_held_by_task(&task?.path()) {
                Ok(false) => {}
                Ok(true) => return Ok(true),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    fn is_held_by_task(&self, task: &Path) -> io::Result<bool> {
        for descriptor in fs::read_dir(task.join("fd"))? {
            match fs::metadata(descriptor?.path()) {
                Ok(facts) if facts.dev() == self.device && facts.ino() == self.inode => return Ok(true),
                Ok(_) => {}
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let maps = fs::read_to_string(task.join("maps"))?;
        if maps.is_empty() {
            // Its memory is being freed, and may still be there.
            return Ok(!has_no_memory(&fs::read_to_string(task.join("stat"))?));
        }
        Ok(maps.lines().any(|line| self.is_mapped_by(line)))
    }

    /// True if a line of `maps` (proc(5)) is of the file: `address perms offset device inode path`.
    fn is_mapped_by(&self, line: &str) -> bool {
        let mut fields = line.split_ascii_whitespace().skip(3);
        let device = fields.next().and_then(|field| {
            let (major, minor) = field.split_once(':')?;
            Some(rustix::fs::makedev(
                u32::from_str_radix(major, 16).ok()?,
                u32::from_str_radix(minor, 16).ok()?,
            ))
        });
        let inode = fields.next().and_then(|field| field.parse::<u64>().ok());
        (device, inode) == (Some(self.device), Some(self.inode))
    }
}

/// True if a thread without mappings is the kernel's own or has ended: `pid (name) state ... flags ...`.
fn has_no_memory(stat: &str) -> bool {
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().collect();
    let has_ended = matches!(fields.first(), Some(&("Z" | "X")));
    let flags = fields.get(6).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    has_ended || flags & PF_KTHREAD != 0
}

fn holder(pid: u32) -> Holder {
    let name = fs::read_to_string(PathBuf::from(format!("/proc/{pid}/comm"))).unwrap_or_default();
    Holder { pid, name: name.trim_end().to_owned() }
}

fn number_of(name: &OsStr) -> Option<u32> {
    name.to_str()?.parse().ok()
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::{Memfd, PageKind};

    /// A process that has `memfd` as its standard input until it is killed.
    fn holding_process(memfd: &Memfd) -> Child {
        let input = memfd.as_fd().try_clone_to_owned().expect("a descriptor is free");
        Command::new("cat").arg("/dev/zero").stdin(input).stdout(Stdio::piped()).spawn().expect("cat runs")
    }

    #[test]
    fn another_process_that_has_a_file_open_is_named_until_it_has_ended() {
        let memfd = Memfd::create("held", 4096, PageKind::Small).expect("there is memory");
        let nobody_else = |except: &[u32]| match holding(memfd.as_fd(), except).expect("/proc is there") {
            Holding::Held(holder) => Some(holder),
            Holding::Nobody | Holding::Unseen(_) => None,
        };
        assert_eq!(nobody_else(&[]), None, "this process does not count");
        let mut child = holding_process(&memfd);
        let holder = nobody_else(&[]).expect("it has the file open");
        assert_eq!(holder.pid, child.id());
        assert_eq!(nobody_else(&[child.id()]), None, "it was told to be let off");
        child.kill().expect("it can be killed");
        child.wait().expect("it can be waited for");
        assert_eq!(nobody_else(&[]), None);
    }

    #[test]
    fn a_mapping_is_known_by_device_and_inode() {
        let sought = Sought { device: rustix::fs::makedev(0, 1), inode: 77 };
        let line = |device: &str, inode: u32| {
            format!("7f00-7f01 rw-s 00000000 {device} {inode}                         /memfd:guest (deleted)")
        };
        assert!(sought.is_mapped_by(&line("00:01", 77)));
        assert!(!sought.is_mapped_by(&line("00:01", 78)));
        assert!(!sought.is_mapped_by(&line("00:02", 77)));
        assert!(!sought.is_mapped_by(""));
    }

    #[test]
    fn a_thread_without_mappings_may_have_memory_unless_it_ended_or_is_the_kernels() {
        assert!(has_no_memory("7 (a) b) Z 1 7 7 0 -1 4228364 0"));
        assert!(has_no_memory("2 (kthreadd) S 0 0 0 0 -1 2129984 0"));
        assert!(!has_no_memory("7 (qemu) R 1 7 7 0 -1 4194564 0"));
    }
}
