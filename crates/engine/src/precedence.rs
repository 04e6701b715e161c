//! Guests that are brought up go before seals and uploads: idle priority leaves them the processor, but neither a cold
//! cache nor the memory's bandwidth.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::deadline::Deadline;
use crate::limits;
use crate::sync::{Condvar, Mutex, lock};

/// Lets guests that are brought up go before background work on this node. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Precedence(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    none_left: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Guests that are being brought up.
    guests: u32,
    /// Until when the last of them takes its first steps.
    first_steps: Option<Deadline>,
}

impl State {
    /// Time until all known reasons to wait end; `None` without any.
    fn wait(&self) -> Option<Duration> {
        if self.guests > 0 {
            return Some(Duration::MAX);
        }
        self.first_steps.map(Deadline::left).filter(|left| !left.is_zero())
    }
}

impl Precedence {
    /// A guest is being brought up until what is returned is dropped, and takes its first steps for
    /// [`limits::FIRST_STEPS`] after that.
    pub fn bring_up(&self) -> BringingUp {
        lock(&self.0.state).guests += 1;
        BringingUp(self.clone())
    }

    /// Waits while a guest goes first, at most `limit`.
    fn wait_for_none(&self, limit: Duration) {
        let deadline = Deadline::after(limit);
        let mut state = lock(&self.0.state);
        while let Some(wait) = state.wait().filter(|_| !deadline.is_over()) {
            let waited = self.0.none_left.wait_timeout(state, wait.min(deadline.left()));
            state = waited.expect("no thread panics while it holds a lock").0;
        }
    }
}

/// A guest is being brought up: work in the background gives way, for a while.
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

/// The manners of one piece of background work: it gives way where it is told to, and not for ever.
#[derive(Debug)]
pub struct Courtesy {
    precedence: Precedence,
    /// Time for which it may still give way altogether.
    left: Mutex<Duration>,
}

impl Courtesy {
    /// Towards the guests of `precedence`, for [`limits::GIVE_WAY_MAX`] altogether.
    pub fn new(precedence: &Precedence) -> Self {
        Self { precedence: precedence.clone(), left: Mutex::new(limits::GIVE_WAY_MAX) }
    }

    /// Waits while guests are being brought up. Cheap without any.
    pub fn give_way(&self) {
        if lock(&self.precedence.0.state).wait().is_none() {
            return;
        }
        // Other threads of the same work wait for the lock, which comes to the same.
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
        let courtesy = Courtesy { precedence: precedence.clone(), left: Mutex::new(Duration::MAX) };
        let (first, second) = (precedence.bring_up(), precedence.bring_up());
        thread::scope(|scope| {
            let work = scope.spawn(|| courtesy.give_way());
            drop(first);
            assert!(!work.is_finished(), "another one is being brought up");
            drop(second);
        });
        courtesy.give_way();
    }

    #[test]
    fn work_gives_way_no_longer_than_it_may_altogether() {
        let precedence = Precedence::default();
        let _guest = precedence.bring_up();
        let courtesy =
            Courtesy { precedence: precedence.clone(), left: Mutex::new(Duration::from_millis(2)) };
        for _ in 0..1000 {
            courtesy.give_way();
        }
        assert_eq!(*lock(&courtesy.left), Duration::ZERO);
    }
}
