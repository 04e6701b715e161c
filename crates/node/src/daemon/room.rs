//! Room for a new guest, checked before any part of it is made: RAM to run and to be paused, and open files.

use std::fs;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use rekindle_engine::budget::BudgetError;
use rekindle_engine::pause::PauseError;
use rekindle_kernel::PAGE_BYTES;

use super::Daemon;
use super::guests::GuestSpec;
use super::record::{RecordedLife, SandboxRecord};
use crate::api::control::Answer;
use crate::api::problem::{Code, Problem};
use crate::api::types::MemoryBacking;

/// Open files that a guest takes in the daemon, and as many at most in the keeper: its process, connections, memory,
/// userfaultfd, journal, and what serving them takes.
const GUEST_FILES: u64 = 24;
/// Open files that each of its disks takes: its socket, its connection, and what was written.
const DISK_FILES: u64 = 8;

/// Needs of a new guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needed {
    memory_bytes: u64,
    disks: usize,
}

impl Daemon {
    /// Refuses a guest that could never be paused, unless such guests are wanted.
    pub(super) fn check_pausable(&self, memory_bytes: u64) -> Answer<()> {
        let settings = self.settings();
        let bytes_max = settings.capture_bytes_max;
        if memory_bytes <= bytes_max {
            return Ok(());
        }
        let why = format!(
            "it could never be paused: {} is needed for that, and capture_bytes_max is {}",
            ByteSize::b(memory_bytes),
            ByteSize::b(bytes_max)
        );
        if settings.run_unpausable {
            tracing::warn!(why, "a sandbox is made anyway, because run_unpausable is set");
            return Ok(());
        }
        let advice = "ask for less memory, raise capture_bytes_max, or set run_unpausable";
        Err(Problem::new(Code::Misfit, format!("{why}: {advice}")))
    }

    /// Refuses `count` guests of a kind for which there is not enough RAM, or too few open files, now.
    pub(super) fn check_room(&self, needed: Needed, count: usize) -> Answer<()> {
        let keeper = self.keeping.client().identity().pid;
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        let wanted = needed.memory_bytes.saturating_mul(count);
        let overcommit = self.settings().memory_overcommit;
        check_ram(wanted, self.untaken_bytes(), overcommit, available_bytes(keeper))?;
        let files = needed.files().saturating_mul(count);
        for (process, pid) in [("daemon", std::process::id()), ("keeper", keeper)] {
            check_files(process, files, open_files(pid))?;
        }
        Ok(())
    }

    /// Bytes of memory that running guests have not taken yet and may still take.
    fn untaken_bytes(&self) -> u64 {
        let untaken = |record: SandboxRecord| match &record.life {
            RecordedLife::Running(guest) => {
                Needed::by(&record.spec).memory_bytes.saturating_sub(resident_bytes(guest.vmm.pid()))
            }
            RecordedLife::Paused
            | RecordedLife::Forked
            | RecordedLife::Stopped { .. }
            | RecordedLife::Lost { .. }
            | RecordedLife::Undecided { .. } => 0,
        };
        let all = self.sandboxes.all();
        all.iter().fold(0, |sum, entry| sum.saturating_add(untaken(entry.record())))
    }
}

impl Needed {
    /// Needs of a guest with this memory and this many disks. Huge pages are set aside already.
    pub(super) fn of(memory_bytes: u64, backing: MemoryBacking, disks: usize) -> Self {
        match backing {
            MemoryBacking::Shared | MemoryBacking::Private => Self { memory_bytes, disks },
            MemoryBacking::Huge => Self { memory_bytes: 0, disks },
        }
    }

    /// Needs of a guest with these parts.
    pub(super) fn by(spec: &GuestSpec) -> Self {
        Self::of(spec.memory_bytes(), spec.backing(), spec.disks())
    }

    fn files(self) -> u64 {
        u64::try_from(self.disks).unwrap_or(u64::MAX).saturating_mul(DISK_FILES).saturating_add(GUEST_FILES)
    }
}

/// Words for people on a pause without RAM.
pub(super) fn no_ram(error: &BudgetError) -> String {
    match error {
        BudgetError::NeverFits { asked, bytes_max } => format!(
            "{} is needed, capture_bytes_max is {}: raise capture_bytes_max",
            ByteSize::b(*asked),
            ByteSize::b(*bytes_max)
        ),
        BudgetError::Exhausted { asked, bytes_held, bytes_max } => format!(
            "{} is needed, and captures hold {} of the {} that capture_bytes_max allows, for all of pause_wait: pause \
             fewer at once, or raise either",
            ByteSize::b(*asked),
            ByteSize::b(*bytes_held),
            ByteSize::b(*bytes_max)
        ),
    }
}

/// The problem of new disks whose images are not taken into memory.
pub(super) fn no_room_for_disks(error: PauseError) -> Problem {
    match error {
        PauseError::Budget(error) => {
            Problem::new(Code::NoRam, format!("its disks are taken into RAM first: {}", no_ram(&error)))
        }
        error @ (PauseError::Lost { .. } | PauseError::Unsealed { .. }) => error.into(),
    }
}

/// Memory is taken page by page as a guest touches it, so all guests' may be some times what is there. `untaken` is what
/// those that run may still take of what is available.
fn check_ram(memory_bytes: u64, untaken: u64, overcommit: usize, available: Option<u64>) -> Answer<()> {
    let Some(available) = available else { return Ok(()) };
    let may_be = available.saturating_mul(u64::try_from(overcommit).unwrap_or(u64::MAX));
    if memory_bytes.saturating_add(untaken) <= may_be {
        return Ok(());
    }
    let why = format!(
        "there is no RAM for it: {} of memory is asked for, guests that run may still take {}, and {} is available, of \
         which memory_overcommit allows {} times as much: end something, ask for less memory, or raise memory_overcommit",
        ByteSize::b(memory_bytes),
        ByteSize::b(untaken),
        ByteSize::b(available),
        overcommit
    );
    Err(Problem::new(Code::Misfit, why))
}

/// `open` are the files that a process has open and may have; none where that is not known.
fn check_files(process: &str, needed: u64, open: Option<(u64, u64)>) -> Answer<()> {
    let Some((open, files_max)) = open else { return Ok(()) };
    if open.saturating_add(needed) <= files_max {
        return Ok(());
    }
    let why = format!(
        "the {process} cannot open enough files for it: it may have {files_max} open, has {open}, and {needed} more are \
         needed: end something, or raise LimitNOFILE of its unit (`ulimit -n` at a prompt)"
    );
    Err(Problem::new(Code::Misfit, why))
}

/// Bytes of RAM and swap that the children of process `pid` can still get; none where the system does not say.
fn available_bytes(pid: u32) -> Option<u64> {
    let told = fs::read_to_string("/proc/meminfo").ok()?;
    let host = field(&told, "MemAvailable:")?.saturating_add(field(&told, "SwapFree:").unwrap_or(0));
    let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let group = group.lines().find_map(|line| line.strip_prefix("0::/")).map(PathBuf::from);
    let groups = group.iter().flat_map(|group| group.ancestors());
    let left = groups.filter_map(|group| left_in(&Path::new("/sys/fs/cgroup").join(group)));
    Some(left.fold(host, u64::min))
}

/// Bytes that a control group may still take, given that what it has of files can go; none where it has no limit.
fn left_in(group: &Path) -> Option<u64> {
    let number = |file: &str| fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
    let (bytes_max, bytes) = (number("memory.max")?, number("memory.current")?);
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let of_files = ["inactive_file ", "active_file "].map(|name| {
        let line = stat.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|bytes| bytes.trim().parse::<u64>().ok()).unwrap_or(0)
    });
    Some(bytes_max.saturating_sub(bytes.saturating_sub(of_files.iter().sum())))
}

/// A field of /proc/meminfo, in bytes.
fn field(told: &str, name: &str) -> Option<u64> {
    let line = told.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Bytes of a process that are in RAM (`statm`, proc(5)); none of one that is gone.
fn resident_bytes(pid: u32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0).saturating_mul(u64::try_from(PAGE_BYTES).expect("4096"))
}

/// Numbers of files a process has open, and may have open.
fn open_files(pid: u32) -> Option<(u64, u64)> {
    // Linux tells the number as the size of the directory (since 6.2; proc(5)).
    let open = fs::metadata(format!("/proc/{pid}/fd")).ok()?.len();
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    Some((open, line.split_whitespace().next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn memory_may_be_some_times_the_ram_that_is_there_and_a_refusal_names_the_setting() {
        assert!(check_ram(8 * GIB, 0, 4, Some(2 * GIB)).is_ok());
        assert!(check_ram(8 * GIB, 0, 4, None).is_ok());
        let refused =
            check_ram(9 * GIB, 0, 4, Some(2 * GIB)).expect_err("it is more than four times as much");
        assert_eq!(refused.code, Code::Misfit);
        for told in ["9.0 GiB", "2.0 GiB", "raise memory_overcommit"] {
            assert!(refused.detail.contains(told), "{refused}");
        }
    }

    #[test]
    fn memory_that_guests_which_run_may_still_take_is_not_had_once_more() {
        assert!(check_ram(3 * GIB, 5 * GIB, 4, Some(2 * GIB)).is_ok());
        let refused = check_ram(4 * GIB, 5 * GIB, 4, Some(2 * GIB)).expect_err("they may take it");
        assert!(refused.detail.contains("guests that run may still take 5.0 GiB"), "{refused}");
        assert!(resident_bytes(std::process::id()) > 0);
    }

    #[test]
    fn files_that_could_not_be_opened_are_told_before_they_are_needed() {
        assert!(check_files("daemon", 24, Some((1000, 1024))).is_ok());
        assert!(check_files("daemon", 24, None).is_ok());
        let refused = check_files("keeper", 25, Some((1000, 1024))).expect_err("one is missing");
        assert!(refused.detail.contains("LimitNOFILE"), "{refused}");
        assert!(refused.detail.contains("the keeper"), "{refused}");
    }

    #[test]
    fn this_process_has_files_open_and_this_machine_has_ram() {
        let (open, files_max) = open_files(std::process::id()).expect("Linux tells both");
        assert!((3..files_max).contains(&open), "{open} of {files_max}");
        assert!(available_bytes(std::process::id()).expect("Linux tells it") > 0);
    }

    #[test]
    fn a_group_with_a_limit_leaves_what_its_files_do_not_need() {
        let group = tempfile::tempdir().expect("a directory");
        assert_eq!(left_in(group.path()), None);
        let say = |file: &str, text: &str| fs::write(group.path().join(file), text).expect("there is room");
        say("memory.max", "max\n");
        say("memory.current", "700\n");
        assert_eq!(left_in(group.path()), None);
        say("memory.max", "1000\n");
        assert_eq!(left_in(group.path()), Some(300));
        say("memory.stat", "anon 1\ninactive_file 100\nactive_file 50\n");
        assert_eq!(left_in(group.path()), Some(450));
    }

    #[test]
    fn a_pause_without_ram_names_the_settings_and_human_sizes() {
        let never = no_ram(&BudgetError::NeverFits { asked: 900 * GIB, bytes_max: 12 * GIB });
        assert_eq!(never, "900.0 GiB is needed, capture_bytes_max is 12.0 GiB: raise capture_bytes_max");
        let now = no_ram(&BudgetError::Exhausted { asked: GIB, bytes_held: 2 * GIB, bytes_max: 2 * GIB });
        assert!(now.contains("pause_wait") && now.contains("2.0 GiB"), "{now}");
    }
}
