//! Room that was promised to guests which are being made: RAM, open files, and huge pages.

use std::ops::{Add, Sub};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rekindle_api::control::Answer;
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::{MemoryBacking, VmmKind};

use super::huge_pages::{HugePromise, pages_of};
use super::spec::GuestSpec;

/// Open files that a guest takes in the daemon, and as many at most in the keeper: its process, connections, memory,
/// userfaultfd, journal, and what serving them takes.
const GUEST_FILES: u64 = 24;
/// Open files that each of its disks takes: its socket, its connection, and what was written.
const DISK_FILES: u64 = 8;

/// Refusal of a node that is drained.
const CLOSED: &str = "this node is drained and takes no new guests: use another node, or end that by `rekindle drain \
                      --undo` or a new start of the daemon";

/// RAM and open files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) memory_bytes: u64,
    pub(super) files: u64,
}

/// Needs of new guests.
#[derive(Clone, Debug, Default)]
pub(super) struct Needed {
    pub(super) share: Share,
    /// Pages of each guest whose memory is of huge pages.
    pub(super) huge_pages: Vec<u64>,
}

/// The shares of all guests that are being made. Nothing else tells of them: what runs is counted by its records.
#[derive(Debug, Default)]
pub(super) struct RoomPromises {
    promised: Mutex<Promised>,
    /// A promise is over.
    over: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct Promised {
    share: Share,
    /// Number of promises that are not over.
    promises: u64,
    /// Number of promises that were made or are over.
    changes: u64,
    /// True if no more are made.
    is_closed: bool,
}

/// The room of guests that are being made. It is dropped once their records tell of them, or they came to nothing.
#[derive(Debug)]
#[must_use = "dropped before the guests are recorded, their room is promised to others as well"]
pub(super) struct RoomPromise {
    share: Share,
    pub(super) huge_pages: Mutex<Vec<HugePromise>>,
    all: Arc<RoomPromises>,
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
        Self::of(spec.memory_bytes(), spec.backing(), spec.disks().len())
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
    pub(super) fn promise(
        self: &Arc<Self>,
        share: Share,
        check: impl Fn(Share) -> Answer<()>,
    ) -> Answer<RoomPromise> {
        loop {
            let seen = *self.lock();
            if seen.is_closed {
                return Err(Problem::new(Code::Drained, CLOSED));
            }
            let checked = check(seen.share);
            let mut promised = self.lock();
            if promised.changes != seen.changes {
                continue;
            }
            checked?;
            *promised = Promised {
                share: seen.share + share,
                promises: seen.promises + 1,
                changes: seen.changes + 1,
                is_closed: false,
            };
            return Ok(RoomPromise { share, huge_pages: Mutex::default(), all: Arc::clone(self) });
        }
    }

    /// Makes no more promises, or makes them again; whether that is a change.
    pub(super) fn close(&self, is_closed: bool) -> bool {
        let mut promised = self.lock();
        promised.changes += 1;
        std::mem::replace(&mut promised.is_closed, is_closed) != is_closed
    }

    /// True if no promises are made.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Waits at most `limit` until all promises are over; whether they are.
    pub(super) fn wait_until_over(&self, limit: Duration) -> bool {
        let waited = self.over.wait_timeout_while(self.lock(), limit, |promised| promised.promises > 0);
        waited.unwrap_or_else(PoisonError::into_inner).0.promises == 0
    }

    fn lock(&self) -> MutexGuard<'_, Promised> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
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
        let (share, promises) = (promised.share - self.share, promised.promises - 1);
        *promised = Promised { share, promises, changes: promised.changes + 1, ..*promised };
        drop(promised);
        self.all.over.notify_all();
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

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

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
}
