//! Room for new guests, promised before any part of them is made: RAM to run and to be paused, open files, huge pages.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytesize::ByteSize;
use rekindle_api::control::Answer;
use rekindle_api::problem::{Code, Problem};
use rustix::process::{Resource, getrlimit};

use super::host::Host;
use super::record::{RecordedLife, SandboxRecord};
use super::registry::Registry;
use super::room_promises::{Needed, RoomPromise, RoomPromises};
use crate::memory_left::{available_bytes, resident_bytes};

/// The room of this node for guests.
#[derive(Debug)]
pub(super) struct Room {
    promises: Arc<RoomPromises>,
    host: Arc<Host>,
    sandboxes: Arc<Registry>,
}

impl Room {
    /// The room beside `sandboxes`.
    pub(super) fn new(host: Arc<Host>, sandboxes: Arc<Registry>) -> Self {
        Self { promises: Arc::default(), host, sandboxes }
    }

    /// Refuses a guest that could never be paused, unless such guests are wanted.
    pub(super) fn check_pausable(&self, memory_bytes: u64) -> Answer<()> {
        let settings = self.host.settings();
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

    /// Promises nothing from now on; whether it promised anything before.
    pub(super) fn close(&self) -> bool {
        self.promises.close(true)
    }

    /// Promises room again; whether it did not before.
    pub(super) fn open(&self) -> bool {
        self.promises.close(false)
    }

    /// True if no new guest is taken.
    pub(super) fn is_closed(&self) -> bool {
        self.promises.is_closed()
    }

    /// Waits at most `limit` until no guest is being made; whether none is.
    pub(super) fn wait_until_made(&self, limit: Duration) -> bool {
        self.promises.wait_until_over(limit)
    }

    /// Promises guests all that they need, or refuses them.
    pub(super) fn promise(&self, needed: &Needed) -> Answer<RoomPromise> {
        let keeper = self.host.keeping.client().identity().pid;
        let overcommit = self.host.settings().memory_overcommit;
        let mut room = self.promises.promise(needed.share, |others| {
            let spoken_for = self.untaken_bytes().saturating_add(others.memory_bytes);
            check_ram(needed.share.memory_bytes, spoken_for, overcommit, available_bytes(keeper))?;
            let files = needed.share + others;
            [("daemon", std::process::id()), ("keeper", keeper)]
                .iter()
                .try_for_each(|(process, pid)| check_files(process, files.files, open_files(*pid)))
        })?;
        room.huge_pages = Mutex::new(self.host.promise_huge_pages(&needed.huge_pages)?);
        Ok(room)
    }

    /// Bytes of memory that running guests have not taken yet and may still take.
    fn untaken_bytes(&self) -> u64 {
        let untaken = |record: SandboxRecord| match &record.life {
            RecordedLife::Running(guest) => {
                Needed::by(&record.spec).share.memory_bytes.saturating_sub(resident_bytes(guest.vmm.pid()))
            }
            RecordedLife::Paused
            | RecordedLife::Forked
            | RecordedLife::Drained { .. }
            | RecordedLife::Stopped { .. }
            | RecordedLife::Lost { .. }
            | RecordedLife::Undecided { .. } => 0,
        };
        let all = self.sandboxes.all();
        all.iter().fold(0, |sum, entry| sum.saturating_add(untaken(entry.record())))
    }
}

/// Memory is taken page by page as a guest touches it, so all guests' may be some times what is there. `spoken_for` is what
/// those that run and those that are being made may still take of what is available.
fn check_ram(memory_bytes: u64, spoken_for: u64, overcommit: usize, available: Option<u64>) -> Answer<()> {
    let Some(available) = available else { return Ok(()) };
    let may_be = available.saturating_mul(u64::try_from(overcommit).unwrap_or(u64::MAX));
    if memory_bytes.saturating_add(spoken_for) <= may_be {
        return Ok(());
    }
    let why = format!(
        "there is no RAM for it: {} of memory is asked for, guests that run may still take {}, and {} is available, of \
         which memory_overcommit allows {} times as much: end something, ask for less memory, or raise memory_overcommit",
        ByteSize::b(memory_bytes),
        ByteSize::b(spoken_for),
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

/// Numbers of files a process has open, and may have open.
fn open_files(pid: u32) -> Option<(u64, u64)> {
    // Linux tells the number as the size of the directory (since 6.2; proc(5)).
    let open = fs::metadata(format!("/proc/{pid}/fd")).ok()?.len();
    if pid == std::process::id() {
        // This process may have no file left to read its limits from.
        return Some((open, getrlimit(Resource::Nofile).current?));
    }
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
    fn this_process_has_files_open() {
        let (open, files_max) = open_files(std::process::id()).expect("Linux tells both");
        assert!((3..files_max).contains(&open), "{open} of {files_max}");
    }
}
