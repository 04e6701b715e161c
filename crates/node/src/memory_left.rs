//! The RAM that a process's children can still get: of the machine, and of the control groups that the process is in.

use std::fs;
use std::path::Path;

use rekindle_kernel::PAGE_BYTES;

/// Bytes of RAM and swap that the children of process `pid` can still get; none where the system does not say.
pub(crate) fn available_bytes(pid: u32) -> Option<u64> {
    Linux { proc: Path::new("/proc"), groups: Path::new("/sys/fs/cgroup") }.available_bytes(pid)
}

/// Bytes of a process that are in RAM (`statm`, proc(5)); none of one that is gone.
pub(crate) fn resident_bytes(pid: u32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0).saturating_mul(u64::try_from(PAGE_BYTES).expect("4096"))
}

/// The directories in which Linux tells of memory.
#[derive(Clone, Copy, Debug)]
struct Linux<'a> {
    proc: &'a Path,
    /// The control groups: of version 2 the root itself, of version 1 a directory for each controller.
    groups: &'a Path,
}

/// The names that a version of control groups has for its figures of memory.
struct Names {
    bytes_max: &'static str,
    bytes: &'static str,
    /// Lines of `memory.stat`: the bytes of files, which can go, of the group and those below it.
    of_files: [&'static str; 2],
}

const VERSION_1: Names = Names {
    bytes_max: "memory.limit_in_bytes",
    bytes: "memory.usage_in_bytes",
    of_files: ["total_inactive_file", "total_active_file"],
};

const VERSION_2: Names =
    Names { bytes_max: "memory.max", bytes: "memory.current", of_files: ["inactive_file", "active_file"] };

impl Linux<'_> {
    fn available_bytes(self, pid: u32) -> Option<u64> {
        let told = fs::read_to_string(self.proc.join("meminfo")).ok()?;
        let host = field(&told, "MemAvailable:")?.saturating_add(field(&told, "SwapFree:").unwrap_or(0));
        let groups = fs::read_to_string(self.proc.join(pid.to_string()).join("cgroup")).unwrap_or_default();
        let left = groups.lines().filter_map(|line| self.left_to_group(line));
        Some(left.fold(host, u64::min))
    }

    /// Bytes that the group in a line of `/proc/PID/cgroup` (cgroups(7)) and those above it leave; none without a limit.
    fn left_to_group(self, line: &str) -> Option<u64> {
        let (controllers, path) = line.split_once(':')?.1.split_once(":/")?;
        let (root, names) = match controllers {
            "" => (self.groups.to_owned(), VERSION_2),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (self.groups.join("memory"), VERSION_1)
            }
            _ => return None,
        };
        // In a container, a path from outside may not be there; the root is the container's group then.
        let groups = Path::new(path).ancestors().map(|group| root.join(group));
        groups
            .filter(|group| names.counts(group, &root.join(path)))
            .filter_map(|group| names.left_in(&group))
            .min()
    }
}

impl Names {
    /// True if the limit of a group holds for the group `own` as well, which is it or below it. In version 1 a group can
    /// leave those below it out of its account.
    fn counts(&self, group: &Path, own: &Path) -> bool {
        group == own || number(&group.join("memory.use_hierarchy")).is_none_or(|used| used == 1)
    }

    /// Bytes that a group may still take, given that what it has of files can go; none where it has no limit.
    fn left_in(&self, group: &Path) -> Option<u64> {
        let (bytes_max, bytes) = (number(&group.join(self.bytes_max))?, number(&group.join(self.bytes))?);
        let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let figure = |name: &str| {
            let mut figures = stat.lines().filter_map(|line| line.split_once(' '));
            figures.find(|(of, _)| *of == name).and_then(|(_, bytes)| bytes.trim().parse::<u64>().ok())
        };
        let of_files = self.of_files.iter().filter_map(|name| figure(name)).sum();
        // Limits above the root of a container are told only here.
        let above = figure("hierarchical_memory_limit").unwrap_or(u64::MAX);
        Some(bytes_max.min(above).saturating_sub(bytes.saturating_sub(of_files)))
    }
}

/// The number that a file holds; none of a file that is not there or holds a word.
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// A field of /proc/meminfo, in bytes.
fn field(told: &str, name: &str) -> Option<u64> {
    let line = told.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A machine whose Linux tells of 100 KiB of RAM and 28 KiB of swap that are available, and of a process 7.
    struct Machine(TempDir);

    impl Machine {
        fn new(groups_of_process: &str) -> Self {
            let machine = Self(tempfile::tempdir().expect("a directory"));
            machine.say("proc/meminfo", "MemTotal: 900 kB\nMemAvailable: 100 kB\nSwapFree: 28 kB\n");
            machine.say("proc/7/cgroup", groups_of_process);
            machine
        }

        fn say(&self, file: &str, text: &str) {
            let path = self.0.path().join(file);
            fs::create_dir_all(path.parent().expect("it is in a directory")).expect("there is room");
            fs::write(path, text).expect("there is room");
        }

        fn available_bytes(&self) -> Option<u64> {
            let (proc, groups) = (self.0.path().join("proc"), self.0.path().join("groups"));
            Linux { proc: &proc, groups: &groups }.available_bytes(7)
        }
    }

    #[test]
    fn a_group_of_version_2_leaves_what_its_files_do_not_need_and_one_above_it_may_leave_less() {
        let machine = Machine::new("0::/of/process\n");
        assert_eq!(machine.available_bytes(), Some(128 << 10));
        machine.say("groups/of/process/memory.current", "700\n");
        machine.say("groups/of/process/memory.max", "max\n");
        assert_eq!(machine.available_bytes(), Some(128 << 10));
        machine.say("groups/of/process/memory.max", "1000\n");
        assert_eq!(machine.available_bytes(), Some(300));
        machine.say("groups/of/process/memory.stat", "anon 1\ninactive_file 100\nactive_file 50\n");
        assert_eq!(machine.available_bytes(), Some(450));
        machine.say("groups/of/memory.max", "2000\n");
        machine.say("groups/of/memory.current", "1999\n");
        assert_eq!(machine.available_bytes(), Some(1));
    }

    #[test]
    fn a_group_of_version_1_leaves_what_its_files_do_not_need_and_one_above_it_may_leave_less() {
        let machine = Machine::new("5:devices:/\n4:cpu,memory:/of/process\n0::/\n");
        machine.say("groups/memory/of/process/memory.limit_in_bytes", "1000\n");
        machine.say("groups/memory/of/process/memory.usage_in_bytes", "700\n");
        assert_eq!(machine.available_bytes(), Some(300));
        let files = "inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 50\n";
        machine.say("groups/memory/of/process/memory.stat", files);
        assert_eq!(machine.available_bytes(), Some(450));
        machine.say("groups/memory/of/memory.limit_in_bytes", "2000\n");
        machine.say("groups/memory/of/memory.usage_in_bytes", "1999\n");
        machine.say("groups/memory/of/memory.use_hierarchy", "0\n");
        assert_eq!(machine.available_bytes(), Some(450), "that group does not count those below it");
        machine.say("groups/memory/of/memory.use_hierarchy", "1\n");
        assert_eq!(machine.available_bytes(), Some(1));
    }

    #[test]
    fn limits_above_a_container_count_although_its_root_is_all_that_is_seen() {
        let machine = Machine::new("4:memory:/docker/from-outside\n");
        machine.say("groups/memory/memory.limit_in_bytes", "9223372036854771712\n");
        machine.say("groups/memory/memory.usage_in_bytes", "700\n");
        assert_eq!(machine.available_bytes(), Some(128 << 10));
        machine.say("groups/memory/memory.stat", "hierarchical_memory_limit 1000\n");
        assert_eq!(machine.available_bytes(), Some(300));
    }

    #[test]
    fn a_machine_that_does_not_tell_of_its_memory_has_an_unknown_amount() {
        let machine = Machine::new("");
        fs::remove_file(machine.0.path().join("proc/meminfo")).expect("it is there");
        assert_eq!(machine.available_bytes(), None);
        assert!(available_bytes(std::process::id()).is_some_and(|bytes| bytes > 0), "this one tells");
    }

    #[test]
    fn this_process_has_ram_and_one_that_is_gone_has_none() {
        assert!(resident_bytes(std::process::id()) > 0);
        assert_eq!(resident_bytes(u32::MAX), 0);
    }
}
