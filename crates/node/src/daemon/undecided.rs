//! Resumes what the last daemon's drain paused, tries again to decide the things that a start could not, publishes again
//! what an accepted store lacks, and removes snapshots that are not kept, files set aside when their time is over, and
//! boot files that nothing names.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rekindle_engine::republish::LookedFor;

use super::collection::remove_boot_files;
use super::guest_owners::GuestOwners;

/// Pause before what is undecided is tried again, the first time.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest such pause, and the time between two looks when nothing is undecided: another node may have accepted a
/// store.
const RETRY_LAST: Duration = Duration::from_secs(60);
/// Time between two looks at snapshots that are not kept and files that were set aside.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

/// The thread that tries again; a drop waits for its end.
#[derive(Debug)]
pub(super) struct Deciding {
    over: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Deciding {
    pub(super) fn start(owners: &Arc<GuestOwners>) -> io::Result<Self> {
        let over = Arc::new((Mutex::new(false), Condvar::new()));
        let (owners, heard) = (Arc::downgrade(owners), Arc::clone(&over));
        let work = move || decide_until_over(&owners, &heard);
        let thread = std::thread::Builder::new().name("deciding".into()).spawn(work)?;
        Ok(Self { over, thread: Some(thread) })
    }
}

impl Drop for Deciding {
    fn drop(&mut self) {
        *self.over.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.over.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic in it ended the program already.
            drop(thread.join());
        }
    }
}

fn decide_until_over(owners: &Weak<GuestOwners>, (over, changed): &(Mutex<bool>, Condvar)) {
    let mut pause = RETRY_FIRST;
    let mut looked: Option<Instant> = None;
    loop {
        let Some(here) = owners.upgrade() else { return };
        let is_over = || *over.lock().unwrap_or_else(PoisonError::into_inner);
        let is_decided =
            here.sandboxes.resume_the_drained(is_over) & here.decide() & here.publish_what_is_missing();
        if looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY) {
            here.sandboxes.delete_what_is_not_kept();
            here.remove_old_aside();
            remove_boot_files(&here.sandboxes);
            looked = Some(Instant::now());
        }
        drop(here);
        let is_over = over.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = if is_decided { RETRY_LAST } else { pause };
        pause = (pause * 2).min(RETRY_LAST);
        let waited = changed.wait_timeout_while(is_over, limit, |over| !*over);
        if *waited.unwrap_or_else(PoisonError::into_inner).0 {
            return;
        }
    }
}

impl GuestOwners {
    /// Tries once more to say how undecided snapshots and sandboxes are; whether none is left.
    fn decide(&self) -> bool {
        let snapshots = self.host().engine.decide().unwrap_or_else(|error| {
            tracing::warn!(%error, "undecided snapshots are tried again later");
            1
        });
        let left = self.sandboxes.decide();
        let sockets = self.fault_sockets.decide().unwrap_or_else(|error| {
            tracing::warn!(error = format!("{error:#}"), "undecided fault sockets are tried again later");
            false
        });
        if left == 0 && sockets {
            self.host().engine.end_replay();
        }
        snapshots == 0 && left == 0 && sockets
    }

    /// Publishes again what the store lacks if it took another one's place; whether that need not be tried again.
    fn publish_what_is_missing(&self) -> bool {
        let looked = self.host().engine.publish_what_is_missing().unwrap_or_else(|error| {
            tracing::warn!(%error, "published snapshots are looked for in the accepted store again later");
            LookedFor::Some
        });
        looked == LookedFor::All
    }

    fn remove_old_aside(&self) {
        match self.host().engine.aside().remove_older(self.host().settings().set_aside_kept) {
            Ok(removed) if removed.files > 0 => {
                tracing::warn!(
                    files = removed.files,
                    bytes = removed.bytes,
                    "layer files that were set aside are gone: their time was over"
                );
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "files that were set aside stay"),
        }
        if let Err(error) = self.end_old_aside(self.host().settings().set_aside_kept) {
            tracing::warn!(%error, "guests, snapshots and fault sockets that were set aside stay");
        }
    }
}
