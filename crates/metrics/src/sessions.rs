//! Sessions of fault serving: those that go on, and the counts of those that are over.

use std::fmt::Debug;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rekindle_engine::identity::SnapshotId;
use rekindle_engine::serve::{ServeStats, ServeStatus, ServerWatch};

/// Sessions that are remembered before those that are over are looked for, at least.
const SESSIONS_BEFORE_A_LOOK: usize = 64;

/// Questions to a session.
pub(super) trait Watched: Debug {
    fn stats(&self) -> ServeStats;
    /// True if its guest is served.
    fn is_serving(&self) -> bool;
    /// True if its counts are final.
    fn is_over(&self) -> bool;
}

impl Watched for ServerWatch {
    fn stats(&self) -> ServeStats {
        self.stats()
    }

    fn is_serving(&self) -> bool {
        !matches!(self.status(), ServeStatus::Ended { .. })
    }

    fn is_over(&self) -> bool {
        self.is_last()
    }
}

/// All sessions of this process.
#[derive(Debug)]
pub(super) struct Sessions<W>(Mutex<Known<W>>);

#[derive(Debug)]
struct Known<W> {
    sessions: Vec<Session<W>>,
    /// Counts of those that are over.
    before: ServeStats,
    look_at: usize,
}

#[derive(Debug)]
struct Session<W> {
    snapshot: SnapshotId,
    watch: W,
    first_fault_told: bool,
}

/// Findings of a look.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Counts of all sessions, also of those that are over.
    pub(super) stats: ServeStats,
    /// Sessions that go on.
    pub(super) serving: u64,
    /// First faults that were not seen before.
    pub(super) first_faults: Vec<(SnapshotId, Instant)>,
}

impl<W> Default for Sessions<W> {
    fn default() -> Self {
        let known =
            Known { sessions: Vec::new(), before: ServeStats::default(), look_at: SESSIONS_BEFORE_A_LOOK };
        Self(Mutex::new(known))
    }
}

impl<W: Watched> Sessions<W> {
    /// Begins a session; true if there are enough of them for a look, which forgets those that are over.
    pub(super) fn begin(&self, snapshot: SnapshotId, watch: W) -> bool {
        let mut known = self.lock();
        known.sessions.push(Session { snapshot, watch, first_fault_told: false });
        known.sessions.len() >= known.look_at
    }

    /// Adds everything up.
    pub(super) fn look(&self) -> Seen {
        let mut known = self.lock();
        let Known { sessions, before, look_at } = &mut *known;
        let (mut seen, mut running) = (Seen::default(), ServeStats::default());
        sessions.retain_mut(|session| {
            // Asked before the counts are read: over, they stay as they are.
            let over = session.watch.is_over();
            let stats = session.watch.stats();
            if let Some(at) = stats.first_fault_at.filter(|_| !session.first_fault_told) {
                session.first_fault_told = true;
                seen.first_faults.push((session.snapshot, at));
            }
            seen.serving += u64::from(session.watch.is_serving());
            if over {
                before.add(&stats)
            } else {
                running.add(&stats)
            }
            !over
        });
        *look_at = (sessions.len() * 2).max(SESSIONS_BEFORE_A_LOOK);
        seen.stats = *before;
        seen.stats.add(&running);
        seen
    }

    fn lock(&self) -> MutexGuard<'_, Known<W>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    #[derive(Clone, Debug, Default)]
    struct Guest(Rc<Cell<(ServeStats, bool)>>);

    impl Watched for Guest {
        fn stats(&self) -> ServeStats {
            self.0.get().0
        }

        fn is_serving(&self) -> bool {
            !self.is_over()
        }

        fn is_over(&self) -> bool {
            self.0.get().1
        }
    }

    fn faults(faults: u64) -> ServeStats {
        ServeStats { faults, ..ServeStats::default() }
    }

    #[test]
    fn what_sessions_did_stays_counted_once_when_they_are_over() {
        let (sessions, guest, other) = (Sessions::default(), Guest::default(), Guest::default());
        sessions.begin(SnapshotId::new(), guest.clone());
        sessions.begin(SnapshotId::new(), other.clone());
        guest.0.set((faults(5), false));
        other.0.set((faults(2), false));
        let seen = sessions.look();
        assert_eq!((seen.stats.faults, seen.serving), (7, 2));
        guest.0.set((faults(6), true));
        for _ in 0..2 {
            let seen = sessions.look();
            assert_eq!((seen.stats.faults, seen.serving), (8, 1));
        }
    }

    #[test]
    fn a_first_fault_is_seen_once() {
        let (sessions, guest, snapshot) = (Sessions::default(), Guest::default(), SnapshotId::new());
        sessions.begin(snapshot, guest.clone());
        assert_eq!(sessions.look().first_faults, []);
        let at = Instant::now();
        guest.0.set((ServeStats { first_fault_at: Some(at), ..faults(1) }, true));
        assert_eq!(sessions.look().first_faults, [(snapshot, at)]);
        assert_eq!(sessions.look().first_faults, []);
    }

    #[test]
    fn a_look_is_due_before_sessions_that_are_over_pile_up() {
        let sessions = Sessions::default();
        for _ in 0..10_000 {
            let guest = Guest::default();
            guest.0.set((faults(1), true));
            if sessions.begin(SnapshotId::new(), guest) {
                sessions.look();
            }
            assert!(sessions.lock().sessions.len() < SESSIONS_BEFORE_A_LOOK);
        }
        assert_eq!(sessions.look().stats.faults, 10_000);
    }
}
