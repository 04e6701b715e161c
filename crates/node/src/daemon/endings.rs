//! Guests that were told to end: one thread waits for them, then lets go of what the keeper holds for them.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rekindle_engine::catalog::Unsettled;
use rekindle_engine::serve::Epoch;
use rekindle_kernel::{ProcessHandle, Signal};
use uuid::Uuid;

use super::guests::remove_files;
use super::keeping::{Keeping, guest_key};
use crate::vmm::vmm_process::take_process;

/// How long a killed process may take to end; a process in the kernel's hands can take longer, and is then left to it.
const END_LIMIT: Duration = Duration::from_secs(60);

/// The thread that waits.
#[derive(Debug)]
pub(super) struct Endings {
    queue: Mutex<Option<Sender<Ending>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A guest that was told to end.
#[derive(Debug)]
pub(super) enum Ending {
    /// A guest.
    Guest {
        guest: Uuid,
        process: Arc<ProcessHandle>,
        /// Held until the guest has ended: without any userfaultfd its faults would read zeroes.
        epoch: Option<Box<Epoch>>,
    },
    /// Whatever the keeper holds for a guest that never came to be.
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
        let work = move || wait_for_all(&endings, &keeping, (&state_directory, &run_directory));
        let thread = std::thread::Builder::new().name("guest-endings".into()).spawn(work)?;
        Ok(Self { queue: Mutex::new(Some(queue)), thread: Mutex::new(Some(thread)) })
    }

    /// Waits for the end of a guest that was killed.
    pub(super) fn end(&self, ending: Ending) {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = &*queue {
            // An error says that the thread is gone: the next start finds what is left.
            queue.send(ending).ok();
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

fn wait_for_all(
    endings: &Receiver<Ending>,
    keeping: &Keeping,
    (state_directory, run_directory): (&Path, &Path),
) {
    let mut later = Vec::new();
    for ending in endings {
        settle(&mut later, keeping);
        let guest = match ending {
            Ending::Guest { guest, process, epoch } => {
                wait_for(&process, guest);
                drop(epoch);
                guest
            }
            Ending::Unborn(guest) => {
                if let Err(error) = kill_unborn(keeping, guest) {
                    tracing::warn!(%guest, %error, "a guest that never came to be may be left over");
                }
                guest
            }
            Ending::Unsettled { guest, unsettled } => {
                if let Err(error) = kill_unborn(keeping, guest) {
                    tracing::warn!(%guest, %error, "a guest that never came to be may be left over");
                }
                remove_files(state_directory, run_directory, guest);
                later.push((guest, unsettled));
                settle(&mut later, keeping);
                continue;
            }
        };
        remove_files(state_directory, run_directory, guest);
        forget(keeping, guest);
    }
    settle(&mut later, keeping);
}

/// Lets go of guests whose births the catalog has taken back by now.
fn settle(later: &mut Vec<(Uuid, Unsettled)>, keeping: &Keeping) {
    later.retain(|(guest, unsettled)| match unsettled.settle() {
        Ok(()) => {
            forget(keeping, *guest);
            false
        }
        Err(error) => {
            tracing::warn!(%guest, %error, "a guest that never came to be is held until the catalog can be written");
            true
        }
    });
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

/// Kills whatever process the keeper started as `guest`, and waits for its end.
pub(super) fn kill_unborn(keeping: &Keeping, guest: Uuid) -> anyhow::Result<()> {
    let Some(mut held) = keeping.client().get(&guest_key(guest))? else { return Ok(()) };
    if let Some(process) = take_process(&mut held) {
        let process = ProcessHandle::adopt(process)?;
        // An error says that it has ended.
        process.signal(Signal::Kill).ok();
        wait_for(&process, guest);
    }
    Ok(())
}
