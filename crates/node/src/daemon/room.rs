//! Room for new guests, promised before any part of them is made: RAM to run and to be paused, open files, huge pages.

use std::fs;
use std::ops::{Add, Sub};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytesize::ByteSize;
use rekindle_engine::budget::BudgetError;
use rekindle_engine::pause::PauseError;
use rustix::process::{Resource, getrlimit};

use super::Daemon;
use super::guests::GuestSpec;
use super::huge_pages::{HugePromise, pages_of};
use super::record::{RecordedLife, SandboxRecord};
use crate::api::control::Answer;
use crate::api::problem::{Code, Problem};
use crate::api::types::{MemoryBacking, VmmKind};
use crate::memory_left::{available_bytes, resident_bytes};

/// Open files that a guest takes in the daemon, and as many at most in the keeper: its process, connections, memory,
/// userfaultfd, journal, and what serving them takes.
const GUEST_FILES: u64 = 24;
/// Open files that each of its disks takes: its socket, its connection, and what was written.
const DISK_FILES: u64 = 8;

/// RAM and open files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    memory_bytes: u64,
    files: u64,
}

/// Needs of new guests.
#[derive(Clone, Debug, Default)]
pub(super) struct Needed {
    share: Share,
    /// Pages of each guest whose memory is of huge pages.
    pub(super) huge_pages: Vec<u64>,
}

/// The shares of all guests that are being made. Nothing else tells of them: what runs is counted by its records.
#[derive(Debug, Default)]
pub(super) struct RoomPromises(Mutex<Promised>);

#[derive(Clone, Copy, Debug, Default)]
struct Promised {
    share: Share,
    /// Number of promises that were made or are over.
    changes: u64,
}

/// The room of guests that are being made. It is dropped once their records tell of them, or they came to nothing.
#[derive(Debug)]
#[must_use = "dropped before the guests are recorded, their room is promised to others as well"]
pub(super) struct RoomPromise {
    share: Share,
    huge_pages: Mutex<Vec<HugePromise>>,
    all: Arc<RoomPromises>,
}

impl Daemon {
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

    /// Promises guests all that they need, or refuses them.
    pub(super) fn promise_room(&self, needed: &Needed) -> Answer<RoomPromise> {
        let keeper = self.host.keeping.client().identity().pid;
        let overcommit = self.host.settings().memory_overcommit;
        let mut room = self.room_promises.promise(needed.share, |others| {
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
            | RecordedLife::Stopped { .. }
            | RecordedLife::Lost { .. }
            | RecordedLife::Undecided { .. } => 0,
        };
        let all = self.sandboxes.all();
        all.iter().fold(0, |sum, entry| sum.saturating_add(untaken(entry.record())))
    }
}

impl Needed {
    /// Needs of a guest with this memory and this many disks. Huge pages were set aside from the RAM before.
    pub(super) fn of(memory_bytes: u64, backing: MemoryBacking, disks: usize) -> Self {
        let files = count(disks).saturating_mul(DISK_FILES).saturating_add(GUEST_FILES);
        let huge_pages = pages_of(memory_bytes, backing);
        let memory_bytes = if huge_pages.is_some() { 0 } else { memory_bytes };
        Self { share: Share { memory_bytes, files }, huge_pages: huge_pages.into_iter().collect() }
    }

    /// Needs of a guest with these parts.
    pub(super) fn by(spec: &GuestSpec) -> Self {
        Self::of(spec.memory_bytes(), spec.backing(), spec.disks())
    }

    /// Needs of a guest that others start and that is served: its memory is their matter.
    pub(super) fn to_serve_another_ones() -> Self {
        Self { share: Share { memory_bytes: 0, files: GUEST_FILES }, huge_pages: Vec::new() }
    }

    /// Needs of a guest with these parts that goes on from its own pause.
    pub(super) fn to_go_on(spec: &GuestSpec) -> Self {
        let needed = Self::by(spec);
        match spec.kind() {
            // The capture is the huge pages themselves, so it needs others.
            VmmKind::Process | VmmKind::Qemu => needed,
            // Its end gives them back: the capture is a copy in small pages.
            VmmKind::Firecracker => Self { huge_pages: Vec::new(), ..needed },
        }
    }

    /// Needs of so many guests of this kind.
    pub(super) fn times(self, guests: usize) -> Self {
        let Share { memory_bytes, files } = self.share;
        let times = |one: u64| one.saturating_mul(count(guests));
        let share = Share { memory_bytes: times(memory_bytes), files: times(files) };
        Self { share, huge_pages: self.huge_pages.repeat(guests) }
    }

    /// The needs of both.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.huge_pages.extend(other.huge_pages);
        Self { share: self.share + other.share, ..self }
    }
}

impl RoomPromises {
    /// Promises a share that `check` allows beside those of others. It is asked again if they have changed meanwhile: a
    /// guest that was recorded while it looked may have been in neither account.
    fn promise(self: &Arc<Self>, share: Share, check: impl Fn(Share) -> Answer<()>) -> Answer<RoomPromise> {
        loop {
            let seen = *self.lock();
            let checked = check(seen.share);
            let mut promised = self.lock();
            if promised.changes != seen.changes {
                continue;
            }
            checked?;
            *promised = Promised { share: seen.share + share, changes: seen.changes + 1 };
            return Ok(RoomPromise { share, huge_pages: Mutex::default(), all: Arc::clone(self) });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Promised> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RoomPromise {
    /// The huge pages of one of its guests; none once each has its own, or where memory is of other pages.
    pub(super) fn take_huge_pages(&self) -> Option<HugePromise> {
        self.huge_pages.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

impl Drop for RoomPromise {
    fn drop(&mut self) {
        let mut promised = self.all.lock();
        *promised = Promised { share: promised.share - self.share, changes: promised.changes + 1 };
    }
}

impl Add for Share {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
            files: self.files.saturating_add(other.files),
        }
    }
}

impl Sub for Share {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
            files: self.files.saturating_sub(other.files),
        }
    }
}

fn count(things: usize) -> u64 {
    u64::try_from(things).unwrap_or(u64::MAX)
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
        error @ (PauseError::Lost { .. } | PauseError::Unsealed { .. } | PauseError::Unwanted) => {
            error.into()
        }
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

    #[test]
    fn room_that_was_promised_to_a_guest_in_the_making_is_promised_to_no_other() {
        let promises = Arc::<RoomPromises>::default();
        let share = Share { memory_bytes: 6, files: 2 };
        let fits = |others: Share| match others.memory_bytes + 6 <= 10 {
            true => Ok(()),
            false => Err(Problem::new(Code::Misfit, "it does not fit")),
        };
        let other = Mutex::new(None);
        let refused = promises.promise(share, |others| {
            // Another request of the same instant is promised its room while this one looks.
            let mut other = other.lock().expect("no thread has panicked");
            other.get_or_insert_with(|| promises.promise(share, fits).expect("it is the first"));
            fits(others)
        });
        assert_eq!(refused.map(drop).map_err(|problem| problem.code), Err(Code::Misfit));
        assert_eq!(promises.lock().share, share, "the other's");
        drop(other);
        promises.promise(share, fits).map(drop).expect("the other is recorded");
        assert_eq!(promises.lock().share, Share::default());
    }

    #[test]
    fn needs_of_several_are_the_sum_of_each_ones() {
        let small = Needed::of(GIB, MemoryBacking::Shared, 2);
        assert_eq!(small.share, Share { memory_bytes: GIB, files: GUEST_FILES + 2 * DISK_FILES });
        let huge = Needed::of(GIB, MemoryBacking::Huge, 0).times(2);
        assert_eq!(huge.share, Share { memory_bytes: 0, files: 2 * GUEST_FILES });
        let both = small.and(huge);
        assert_eq!((both.share.memory_bytes, both.huge_pages), (GIB, vec![512, 512]));
    }

    #[test]
    fn a_pause_without_ram_names_the_settings_and_human_sizes() {
        let never = no_ram(&BudgetError::NeverFits { asked: 900 * GIB, bytes_max: 12 * GIB });
        assert_eq!(never, "900.0 GiB is needed, capture_bytes_max is 12.0 GiB: raise capture_bytes_max");
        let now = no_ram(&BudgetError::Exhausted { asked: GIB, bytes_held: 2 * GIB, bytes_max: 2 * GIB });
        assert!(now.contains("pause_wait") && now.contains("2.0 GiB"), "{now}");
    }
}
