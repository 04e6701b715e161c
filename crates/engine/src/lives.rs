//! The threads of snapshots' lives. One more waits from the start on, for lives that the system has no thread for: an
//! acknowledged snapshot is saved later then, and not never.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use crate::hooks::Hooks;
use crate::identity::SnapshotId;
use crate::limits;
use crate::stop::Stop;
use crate::sync::{Mutex, lock};
use crate::threads;

/// One life, to be lived on a thread of its own.
pub(crate) struct Work {
    pub(crate) snapshot: SnapshotId,
    pub(crate) live: Box<dyn FnOnce() + Send>,
}

/// All that have begun. Dropped after the word that ends them was said, it waits for their end.
#[derive(Debug)]
pub(crate) struct Lives {
    begun: Begun,
    /// Queue of the lives that have no thread.
    late: Option<Sender<Work>>,
    beginner: Option<JoinHandle<()>>,
}

#[derive(Debug, Clone)]
struct Begun {
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
    hooks: Arc<dyn Hooks>,
}

impl Lives {
    pub(crate) fn start(stop: Stop, hooks: Arc<dyn Hooks>) -> io::Result<Self> {
        let begun = Begun { threads: Arc::default(), hooks };
        let (late, waiting) = channel();
        let given = (begun.clone(), waiting, stop);
        let beginner = threads::begin("late-lives", given, |(begun, waiting, stop)| {
            begin_late(&begun, &waiting, &stop);
        });
        let beginner = Some(beginner.map_err(|(_, error)| error)?);
        Ok(Self { begun, late: Some(late), beginner })
    }

    /// Begins a life now, or as soon as there is a thread for it; in their order if there are several.
    pub(crate) fn begin(&self, work: Work) {
        if let Err((work, error)) = self.begun.begin(work) {
            tracing::error!(snapshot = %work.snapshot, %error, "no thread to save a snapshot on: it is saved when there is one");
            let late = self.late.as_ref().expect("only drop takes it");
            late.send(work).expect("the thread that receives ends after all that is sent");
        }
    }
}

impl Begun {
    fn begin(&self, work: Work) -> Result<(), (Work, io::Error)> {
        if let Err(error) = self.hooks.before_thread(work.snapshot) {
            return Err((work, error));
        }
        let thread = threads::begin("snapshot-life", work, |work| (work.live)())?;
        let mut threads = lock(&self.threads);
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(())
    }
}

/// Begins what comes, until nothing more can. A life that has not begun when the engine ends is found unsaved at its
/// next start, as if it had begun and been cut short.
fn begin_late(begun: &Begun, waiting: &Receiver<Work>, stop: &Stop) {
    for mut work in waiting {
        loop {
            if stop.wait(limits::THREAD_RETRY).is_err() {
                break;
            }
            match begun.begin(work) {
                Ok(()) => break,
                Err((back, _)) => work = back,
            }
        }
    }
}

impl Drop for Lives {
    fn drop(&mut self) {
        drop(self.late.take());
        if let Some(beginner) = self.beginner.take() {
            beginner.join().expect("beginning threads does not panic");
        }
        for thread in std::mem::take(&mut *lock(&self.begun.threads)) {
            thread.join().expect("background work does not panic");
        }
    }
}
