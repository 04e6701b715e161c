//! Turns at work that waits for the disk and is done by one thread at a time.

use crate::sync::{Condvar, Mutex, lock};

/// The turns at one kind of work on one thing.
#[derive(Debug)]
pub(crate) struct Turns {
    is_taken: Mutex<bool>,
    given_back: Condvar,
}

/// One turn, given back by drop.
#[derive(Debug)]
pub(crate) struct Turn<'a>(&'a Turns);

impl Turns {
    pub(crate) fn new() -> Self {
        Self { is_taken: Mutex::new(false), given_back: Condvar::new() }
    }

    /// Waits for a turn: not for fault threads or async tasks.
    pub(crate) fn take(&self) -> Turn<'_> {
        let mut is_taken = lock(&self.is_taken);
        while *is_taken {
            is_taken = self.given_back.wait(is_taken).expect("no thread panics while it holds a lock");
        }
        *is_taken = true;
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *lock(&self.0.is_taken) = false;
        self.0.given_back.notify_one();
    }
}
