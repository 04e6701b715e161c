//! The memory of guests that have ended, given back at once by a thread that does nothing else: the kernel may be about to
//! end another guest for want of it.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use rekindle_kernel::wakeup::wait_any;
use rekindle_kernel::{ProcessHandle, placement};

use super::over::Over;
use super::registry::Registry;

/// Time between two looks for guests whose beginning was not told.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The thread that waits for the ends of guests; its own end is waited for on drop.
#[derive(Debug)]
pub(super) struct Freeing {
    over: Arc<Over>,
    thread: Option<JoinHandle<()>>,
}

impl Freeing {
    pub(super) fn start(sandboxes: &Arc<Registry>) -> io::Result<Self> {
        let over = Over::not_yet()?;
        let (sandboxes, heard) = (Arc::downgrade(sandboxes), Arc::clone(&over));
        let work = move || free_until_over(&sandboxes, &heard);
        let thread = std::thread::Builder::new().name("freeing".into()).spawn(work)?;
        Ok(Self { over, thread: Some(thread) })
    }

    /// Tells the thread of new guests.
    pub(super) fn look(&self) {
        self.over.wakeup().wake();
    }
}

impl Drop for Freeing {
    fn drop(&mut self) {
        self.over.end();
        if let Some(thread) = self.thread.take() {
            // A panic in it ended the program already.
            drop(thread.join());
        }
    }
}

fn free_until_over(sandboxes: &Weak<Registry>, over: &Over) {
    // One that may not run first notices ends as soon as the processors have time for that.
    placement::first_priority().ok();
    while !over.is_over() {
        // Before it is looked: a guest that comes later wakes it again.
        over.wakeup().clear();
        let Some(here) = sandboxes.upgrade() else { return };
        let alive = free_memory_of_ended(&here);
        drop(here);
        if over.is_over() {
            return;
        }
        let fds = alive.iter().map(|process| process.as_fd()).chain([over.wakeup().as_fd()]);
        if let Err(error) = wait_any(&fds.collect::<Vec<_>>(), Some(LOOK_EVERY)) {
            tracing::debug!(%error, "the memory of ended guests is given back late");
            std::thread::park_timeout(LOOK_EVERY);
        }
    }
}

/// Has the memory of each guest that has ended closed; the processes of the others.
fn free_memory_of_ended(sandboxes: &Registry) -> Vec<Arc<ProcessHandle>> {
    let mut alive = Vec::new();
    for entry in sandboxes.all() {
        let Some(process) = entry.process() else { continue };
        if process.is_alive() {
            alive.push(process);
            continue;
        }
        // The end of a turn closes it: of this one, or of the operation that has the guest now.
        drop(entry.turn_at_once("has ended"));
    }
    alive
}
