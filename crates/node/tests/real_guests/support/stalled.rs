//! A compare that waits until it is released.

use std::sync::{Arc, Condvar, Mutex};

use rekindle_engine::hooks::Hooks;
use rekindle_engine::identity::SnapshotId;

/// Holds every compare up; dropping it releases them, so that an engine that is dropped after it can end.
#[derive(Debug)]
pub(crate) struct StalledCompare(Arc<Gate>);

#[derive(Debug, Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl StalledCompare {
    /// The hold, and the hooks to start an engine with.
    pub(crate) fn new() -> (Self, Arc<dyn Hooks>) {
        let gate = Arc::new(Gate::default());
        (Self(Arc::clone(&gate)), gate)
    }
}

impl Drop for StalledCompare {
    fn drop(&mut self) {
        *self.0.open.lock().expect("nobody panics in here") = true;
        self.0.opened.notify_all();
    }
}

impl Hooks for Gate {
    fn before_compare(&self, _: SnapshotId) {
        let mut open = self.open.lock().expect("nobody panics in here");
        while !*open {
            open = self.opened.wait(open).expect("nobody panics in here");
        }
    }
}
