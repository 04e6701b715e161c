//! Guests that are being ended: one thread waits for them, then lets go of their descriptors at the keeper.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rekindle_engine::catalog::Unsettled;
use rekindle_engine::serve::Epoch;
use rekindle_kernel::{ProcessHandle, Signal};
use rekindle_vmm::vmm_process::take_process;
use uuid::Uuid;

use super::exclusive::Exclusive;
use super::guest_files::remove_files;
use super::keeping::Keeping;
use super::keys::guest_key;

/// Longest time for a killed process to end; a process inside a system call can take longer, and is then left to the
/// kernel.
const END_LIMIT: Duration = Duration::from_secs(60);

/// Pause before the end of a guest that could not be killed, or not be let go of, is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// The thread that waits.
#[derive(Debug)]
pub(super) struct Endings {
    queue: Mutex<Option<Sender<Ending>>>,
    leaving: Arc<Leaving>,
    keeping: Arc<Keeping>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The guests that were told to end, as long as another one may have to wait for that.
#[derive(Debug, Default)]
struct Leaving(Mutex<HashMap<Uuid, Leaver>>);

#[derive(Clone, Debug)]
enum Leaver {
    Guest {
        process: Arc<ProcessHandle>,
        has: Exclusive,
    },
    /// One that never came to be: it may have anything, and the keeper has its process.
    Unborn,
}

/// A guest that was told to end.
#[derive(Debug)]
pub(super) enum Ending {
    /// A guest.
    Guest {
        guest: Uuid,
        has: Exclusive,
        process: Arc<ProcessHandle>,
        /// Held until the guest has ended: without any userfaultfd its faults would read zeroes.
        epoch: Option<Box<Epoch>>,
    },
    /// The keeper's holdings for a guest that never came to be.
    Unborn(Uuid),
    /// A guest that never came to be, although the catalog may say that it did: until that was taken back, the keeper's
    /// note on it stays for the next start.
    Unsettled { guest: Uuid, unsettled: Unsettled },
}

impl Endings {
    pub(super) fn start(
        keeping: Arc<Keeping>,
        (state_directory, run_directory): (PathBuf, PathBuf),
    ) -> std::io::Result<Self> {
        let (queue, endings) = channel();
        let leaving = Arc::<Leaving>::default();
        let (left, kept) = (Arc::clone(&leaving), Arc::clone(&keeping));
        let work = move || wait_for_all(&endings, &left, &kept, (&state_directory, &run_directory));
        let thread = std::thread::Builder::new().name("guest-endings".into()).spawn(work)?;
        Ok(Self { queue: Mutex::new(Some(queue)), leaving, keeping, thread: Mutex::new(Some(thread)) })
    }

    /// Waits for the end of a guest that was killed.
    pub(super) fn end(&self, ending: Ending) {
        self.leaving.begin(&ending);
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = &*queue {
            // An error says that the thread is gone: the next start finds what is left.
            queue.send(ending).ok();
        }
    }

    /// Waits until no guest that was told to end has any of `wanted`, but for one whose process takes too long to end.
    pub(super) fn make_way(&self, wanted: &Exclusive) {
        for (guest, leaver) in self.leaving.in_the_way_of(wanted) {
            match leaver {
                Leaver::Guest { process, has: _ } => wait_for(&process, guest),
                Leaver::Unborn => end_unborn(&self.keeping, guest),
            }
        }
    }

    /// Ends what there may be of a guest that never came to be.
    pub(super) fn end_unborn(&self, guest: Uuid) {
        self.end(Ending::Unborn(guest));
    }

    /// Waits until all that were told to end have ended.
    pub(super) fn finish(&self) {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            drop(thread.join());
        }
    }
}

impl Leaving {
    fn begin(&self, ending: &Ending) {
        let (guest, leaver) = match ending {
            Ending::Guest { guest, has, process, epoch: _ } => {
                (*guest, Leaver::Guest { process: Arc::clone(process), has: has.clone() })
            }
            Ending::Unborn(guest) | Ending::Unsettled { guest, .. } => (*guest, Leaver::Unborn),
        };
        self.lock().insert(guest, leaver);
    }

    fn end(&self, guest: Uuid) {
        self.lock().remove(&guest);
    }

    /// Those that have, or may have, any of `wanted`.
    fn in_the_way_of(&self, wanted: &Exclusive) -> Vec<(Uuid, Leaver)> {
        if *wanted == Exclusive::default() {
            return Vec::new();
        }
        let is_in_the_way = |leaver: &Leaver| match leaver {
            Leaver::Guest { has, .. } => has.meets(wanted),
            Leaver::Unborn => true,
        };
        let leaving = self.lock();
        let found = leaving.iter().filter(|(_, leaver)| is_in_the_way(leaver));
        found.map(|(guest, leaver)| (*guest, leaver.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Leaver>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A guest that never came to be, to be ended and let go of.
struct Unborn {
    guest: Uuid,
    /// The change that has to be taken back before it is let go of.
    unsettled: Option<Unsettled>,
}

fn wait_for_all(
    endings: &Receiver<Ending>,
    leaving: &Leaving,
    keeping: &Keeping,
    directories: (&Path, &Path),
) {
    let mut left: Vec<Unborn> = Vec::new();
    loop {
        let next = match left.is_empty() {
            true => endings.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => endings.recv_timeout(AGAIN_AFTER),
        };
        let is_last = matches!(next, Err(RecvTimeoutError::Disconnected));
        match next {
            Ok(Ending::Guest { guest, has: _, process, epoch }) => {
                wait_for(&process, guest);
                leaving.end(guest);
                drop(epoch);
                remove_files(directories.0, directories.1, guest);
                forget(keeping, guest);
            }
            Ok(Ending::Unborn(guest)) => left.push(Unborn { guest, unsettled: None }),
            Ok(Ending::Unsettled { guest, unsettled }) => {
                left.push(Unborn { guest, unsettled: Some(unsettled) });
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        left.retain(|unborn| !unborn.ends(leaving, keeping, directories));
        if is_last {
            return;
        }
    }
}

impl Unborn {
    /// Ends it and lets go of what the keeper holds for it; whether that is done. The holdings of one that could not be
    /// ended stay: without them its faults would never be answered.
    fn ends(&self, leaving: &Leaving, keeping: &Keeping, (state, run): (&Path, &Path)) -> bool {
        let guest = self.guest;
        if let Err(error) = kill_unborn(keeping, guest) {
            tracing::warn!(%guest, error = format!("{error:#}"), "a guest that is to end may be left over; it is tried again");
            return false;
        }
        leaving.end(guest);
        remove_files(state, run, guest);
        if let Some(Err(error)) = self.unsettled.as_ref().map(Unsettled::settle) {
            tracing::warn!(%guest, %error, "a guest that never came to be is held until the catalog can be written");
            return false;
        }
        forget(keeping, guest);
        true
    }
}

fn forget(keeping: &Keeping, guest: Uuid) {
    if let Err(error) = keeping.client().forget(&guest_key(guest)) {
        tracing::warn!(%guest, %error, "the keeper holds an ended guest until the next start");
    }
}

fn wait_for(process: &ProcessHandle, guest: Uuid) {
    if !process.wait_exit(END_LIMIT) {
        tracing::warn!(%guest, pid = process.pid(), "a killed guest has not ended after {END_LIMIT:?}");
    }
}

fn end_unborn(keeping: &Keeping, guest: Uuid) {
    if let Err(error) = kill_unborn(keeping, guest) {
        tracing::warn!(%guest, error = format!("{error:#}"), "a guest that never came to be may be left over");
    }
}

/// Kills the process, if any, that the keeper started as `guest`, and waits for its end.
pub(super) fn kill_unborn(keeping: &Keeping, guest: Uuid) -> anyhow::Result<()> {
    let Some(mut held) = keeping.client().get(&guest_key(guest))? else { return Ok(()) };
    let Some(process) = take_process(&mut held) else { return Ok(()) };
    match ProcessHandle::adopt(process) {
        Ok(process) => {
            // An error says that it has ended.
            process.signal(Signal::Kill).ok();
            wait_for(&process, guest);
            Ok(())
        }
        // It has ended, and the keeper has waited for it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::network::Network;

    fn at(taps: &[&str]) -> Exclusive {
        let taps = taps.iter().map(|tap| (*tap).to_owned()).collect();
        Exclusive { network: Network { netns: None, taps }, huge_pages: false }
    }

    #[test]
    fn a_start_waits_for_the_guests_that_are_ending_at_its_taps_and_for_no_others() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().expect("sleep runs");
        let process = Arc::new(ProcessHandle::open(child.id()).expect("it runs"));
        let leaving = Leaving::default();
        let [guest, unborn] = [1, 2].map(Uuid::from_u128);
        let has = at(&["tap0", "tap1"]);
        leaving.begin(&Ending::Guest { guest, has, process: Arc::clone(&process), epoch: None });
        let waited_for = |wanted: &Exclusive| {
            let mut found: Vec<_> = leaving.in_the_way_of(wanted).into_iter().map(|(id, _)| id).collect();
            found.sort_unstable();
            found
        };
        assert_eq!(waited_for(&at(&["tap1", "tap2"])), [guest]);
        assert!(waited_for(&at(&["tap2"])).is_empty());
        let huge = Exclusive { huge_pages: true, ..Exclusive::default() };
        assert!(waited_for(&huge).is_empty(), "it has none");
        assert!(waited_for(&at(&[])).is_empty());
        leaving.begin(&Ending::Unborn(unborn));
        assert_eq!(waited_for(&at(&["tap1"])), [guest, unborn]);
        assert_eq!(waited_for(&at(&["tap2"])), [unborn], "nothing says what it has");
        assert!(waited_for(&at(&[])).is_empty());
        leaving.end(guest);
        assert_eq!(waited_for(&at(&["tap1"])), [unborn]);
        process.signal(Signal::Kill).expect("it can be told");
        child.wait().expect("it has ended");
    }
}
