//! Guests that are brought up go before what is saved: idle priority leaves them the processor, but neither a cold cache
//! nor the memory's bandwidth.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::deadline::Deadline;
use crate::limits;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Condvar, Mutex, lock};

/// Who goes first on this node. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Precedence(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Also read without the lock, by work that asks often.
    guests: AtomicU32,
    lock: Mutex<()>,
    none_left: Condvar,
}

impl Precedence {
    /// A guest is being brought up until what is returned is dropped.
    pub fn take(&self) -> BringingUp {
        self.0.guests.fetch_add(1, Ordering::Relaxed);
        BringingUp(self.clone())
    }

    /// Waits while guests are being brought up, until `deadline`.
    fn wait_for_none(&self, deadline: Deadline) {
        let mut locked = lock(&self.0.lock);
        while self.0.guests.load(Ordering::Relaxed) > 0 && !deadline.is_over() {
            let waited = self.0.none_left.wait_timeout(locked, deadline.left());
            locked = waited.expect("no thread panics while it holds a lock").0;
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
        let locked = lock(&shared.lock);
        shared.guests.fetch_sub(1, Ordering::Relaxed);
        drop(locked);
        shared.none_left.notify_all();
    }
}

/// The manners of one piece of background work: it gives way where it is told to, and not for ever.
#[derive(Debug)]
pub struct Courtesy {
    precedence: Precedence,
    /// How much longer it gives way altogether.
    left: Mutex<Duration>,
}

impl Courtesy {
    /// Towards the guests of `precedence`, for [`limits::GIVE_WAY_MAX`] altogether.
    pub fn new(precedence: &Precedence) -> Self {
        Self { precedence: precedence.clone(), left: Mutex::new(limits::GIVE_WAY_MAX) }
    }

    /// Waits while guests are being brought up. Cheap where there are none.
    pub fn give_way(&self) {
        if self.precedence.0.guests.load(Ordering::Relaxed) == 0 {
            return;
        }
        // Other threads of the same work wait for the lock, which comes to the same.
        let mut left = lock(&self.left);
        let begun = Instant::now();
        self.precedence.wait_for_none(Deadline::after(*left));
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
        let (first, second) = (precedence.take(), precedence.take());
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
        let _guest = precedence.take();
        let courtesy =
            Courtesy { precedence: precedence.clone(), left: Mutex::new(Duration::from_millis(2)) };
        for _ in 0..1000 {
            courtesy.give_way();
        }
        assert_eq!(*lock(&courtesy.left), Duration::ZERO);
    }
}
