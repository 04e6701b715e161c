//! Makes seals and uploads give way to resuming guests: idle priority leaves guests the processor, but not a warm cache
//! or the memory's bandwidth.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::deadline::Deadline;
use crate::limits;
use crate::sync::{Condvar, Mutex, lock};

/// The resuming guests of a node, to which background work gives way. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Precedence(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    none_left: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Number of resuming guests.
    guests: u32,
    /// The end of the first steps of the last of them.
    first_steps: Option<Deadline>,
}

impl State {
    /// Time until all known reasons to wait have ended; `None` without any.
    fn wait(&self) -> Option<Duration> {
        if self.guests > 0 {
            return Some(Duration::MAX);
        }
        self.first_steps.map(Deadline::left).filter(|left| !left.is_zero())
    }
}

impl Precedence {
    /// Begins a resume: it lasts until the result is dropped, and its first steps for [`limits::FIRST_STEPS`] after
    /// that.
    pub fn bring_up(&self) -> BringingUp {
        lock(&self.0.state).guests += 1;
        BringingUp(self.clone())
    }

    /// Waits while a guest is resuming, at most `limit`.
    fn wait_for_none(&self, limit: Duration) {
        let deadline = Deadline::after(limit);
        let mut state = lock(&self.0.state);
        while let Some(wait) = state.wait().filter(|_| !deadline.is_over()) {
            let waited = self.0.none_left.wait_timeout(state, wait.min(deadline.left()));
            state = waited.expect("no thread panics while it holds a lock").0;
        }
    }
}

/// A resuming guest: background work gives way to it, for a while.
#[derive(Debug)]
#[must_use = "dropping it ends it"]
pub struct BringingUp(Precedence);

impl Drop for BringingUp {
    fn drop(&mut self) {
        let shared = &self.0.0;
        let mut state = lock(&shared.state);
        state.guests -= 1;
        state.first_steps = Some(Deadline::after(limits::FIRST_STEPS));
        drop(state);
        shared.none_left.notify_all();
    }
}

/// The time that one piece of background work may still give way to resuming guests.
#[derive(Debug)]
pub struct GiveWayLimit {
    precedence: Precedence,
    /// Total time for which it may still give way.
    left: Mutex<Duration>,
}

impl GiveWayLimit {
    /// Gives way to the guests of `precedence`, for [`limits::GIVE_WAY_MAX`] in total.
    pub fn new(precedence: &Precedence) -> Self {
        Self { precedence: precedence.clone(), left: Mutex::new(limits::GIVE_WAY_MAX) }
    }

    /// Waits while guests are resuming. Cheap without any.
    pub fn give_way(&self) {
        if lock(&self.precedence.0.state).wait().is_none() {
            return;
        }
        // Other threads of the same work wait for the lock, which has the same effect.
        let mut left = lock(&self.left);
        let begun = Instant::now();
        self.precedence.wait_for_none(*left);
        *left = left.saturating_sub(begun.elapsed());
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn work_waits_until_the_last_guest_is_up() {
        let precedence = Precedence::default();
        let give_way_limit = GiveWayLimit { precedence: precedence.clone(), left: Mutex::new(Duration::MAX) };
        let (first, second) = (precedence.bring_up(), precedence.bring_up());
        thread::scope(|scope| {
            let work = scope.spawn(|| give_way_limit.give_way());
            drop(first);
            assert!(!work.is_finished(), "another one is being brought up");
            drop(second);
        });
        give_way_limit.give_way();
    }

    #[test]
    fn work_gives_way_no_longer_than_it_may_altogether() {
        let precedence = Precedence::default();
        let _guest = precedence.bring_up();
        let give_way_limit =
            GiveWayLimit { precedence: precedence.clone(), left: Mutex::new(Duration::from_millis(2)) };
        for _ in 0..1000 {
            give_way_limit.give_way();
        }
        assert_eq!(*lock(&give_way_limit.left), Duration::ZERO);
    }
}
