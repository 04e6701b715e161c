//! The gate that every request passes before it touches a disk's bytes: closed while the disk is frozen.

use std::sync::{Condvar, Mutex, MutexGuard};

/// Open, or closed with no request behind it.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    behind: u32,
    closed: bool,
    gone: bool,
}

/// Leave to touch the disk's bytes until this is dropped.
#[derive(Debug)]
pub(super) struct Passage<'a>(&'a Gate);

impl Gate {
    /// Goes through, waiting while the gate is closed; none if it never opens again.
    pub(super) fn pass(&self) -> Option<Passage<'_>> {
        let mut state = self.lock();
        while state.closed && !state.gone {
            state = self.changed.wait(state).expect("no thread panics at the gate");
        }
        if state.gone {
            return None;
        }
        state.behind += 1;
        Some(Passage(self))
    }

    /// Closes the gate; when this returns, no request is behind it.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        while state.behind > 0 {
            state = self.changed.wait(state).expect("no thread panics at the gate");
        }
    }

    /// Opens the gate.
    pub(super) fn open(&self) {
        self.lock().closed = false;
        self.changed.notify_all();
    }

    /// No request passes any more.
    pub(super) fn remove(&self) {
        self.lock().gone = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics at the gate")
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.behind -= 1;
        if state.behind == 0 && state.closed {
            self.0.changed.notify_all();
        }
    }
}
