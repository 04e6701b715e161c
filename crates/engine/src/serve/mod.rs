//! Answers a running guest's page faults from its snapshot's live view.
//!
//! For each guest one thread reads the events and does all installs. It never waits for a disk, a peer or the store: it
//! requests a page that is not in memory, and installs it when it is there. A fault is never answered with wrong bytes:
//! a guest that needs an unavailable page is stalled, with the reason in the server's status.

mod ahead;
mod answer;
mod counter;
mod epoch;
mod epoch_facts;
mod epoch_pages;
mod fault;
mod installer;
mod journal;
mod kept;
mod latency;
mod mailbox;
mod neighbours;
mod pending;
mod placement;
mod prefetch;
mod presence;
mod recording;
mod retry;
mod server;
mod stall;
mod stats;
mod status;
mod touches;
mod unit;

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::fetch::Fetcher;
use crate::handover::Handover;
use crate::page_set::PageSet;
use crate::threads;
use crate::tracking::Tracking;
use crate::view::LiveView;
use crate::working_set::WorkingSet;

pub use epoch::Epoch;
pub use epoch_facts::EpochFacts;
pub use kept::{JournalError, KeptEpoch, RecoverError};
pub use latency::{LATENCY_CLASSES, Latencies};
pub use neighbours::Neighbours;
pub use placement::Placement;
pub use stats::{PagesByPhase, ServeStats};
pub use status::{EndReason, ServeStatus};
pub(crate) use touches::Recorded;

use mailbox::{Mail, Mailbox};
use server::{Server, Waits};
use stats::Counters;
use status::StatusBoard;

/// Options of serving a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServeOptions {
    /// The way in which writes are tracked for the next pause; another one if the userfaultfd cannot do it.
    pub tracking: Tracking,
    /// Processor of the handler thread.
    pub placement: Placement,
    /// Decides if pages are installed beside faulting ones.
    pub neighbours: Neighbours,
}

/// The fault server of one guest. Dropping it ends it and closes the guest's userfaultfd: end the guest first.
#[derive(Debug)]
pub struct FaultServer {
    mailbox: Arc<Mailbox>,
    counters: Arc<Counters>,
    board: Arc<StatusBoard>,
    tracking: Tracking,
    pages: u32,
    /// Also keeps missing pages from reading as zeroes if the handler panics: its guest has to wait instead.
    kept: KeptEpoch,
    thread: Option<JoinHandle<Epoch>>,
}

/// A guest that could not be served.
#[derive(Debug, thiserror::Error)]
#[error("the guest cannot be served: {error}")]
pub struct NotServed {
    /// Its unchanged epoch. While it lives, the guest's missing pages do not read as zeroes.
    pub epoch: Box<Epoch>,
    /// The reason.
    pub error: io::Error,
}

/// A read-only handle to a fault server's status and counts.
#[derive(Clone, Debug)]
pub struct ServerWatch {
    counters: Arc<Counters>,
    board: Arc<StatusBoard>,
}

impl FaultServer {
    /// Serves a guest that was just handed over, from `view`.
    pub fn start(
        view: Arc<LiveView>,
        handover: Handover,
        fetcher: Fetcher,
        options: ServeOptions,
    ) -> io::Result<Self> {
        let epoch = Epoch::begin(handover, options.tracking)?;
        Self::resume(view, epoch, fetcher, options).map_err(|not_served| not_served.error)
    }

    /// Serves a guest whose epoch was begun or recovered, or ended for a pause that failed. The epoch's tracking stays.
    /// On an error the epoch is returned, and until it is dropped the guest waits.
    pub fn resume(
        view: Arc<LiveView>,
        epoch: Epoch,
        fetcher: Fetcher,
        options: ServeOptions,
    ) -> Result<Self, NotServed> {
        let not_served = |epoch, error| NotServed { epoch: Box::new(epoch), error };
        let Prepared { mailbox, kept, waits } = match prepare(&view, &epoch) {
            Ok(prepared) => prepared,
            Err(error) => return Err(not_served(epoch, error)),
        };
        let counters = Arc::<Counters>::default();
        let board = Arc::new(StatusBoard::new());
        let (tracking, pages) = (epoch.tracking(), view.pages());
        let served = Served { view, fetcher, options };
        let side = (Arc::clone(&mailbox), Arc::clone(&counters), Arc::clone(&board));
        let begun = threads::begin("faults", epoch, move |epoch| {
            let ended = BoardGuard(Arc::clone(&side.2));
            let epoch = Server::run(served, epoch, &waits, side);
            drop(ended);
            epoch
        });
        match begun {
            Ok(thread) => Ok(Self { mailbox, counters, board, tracking, pages, kept, thread: Some(thread) }),
            Err((epoch, error)) => Err(not_served(epoch, error)),
        }
    }

    /// A read-only handle to its status and counts.
    pub fn watch(&self) -> ServerWatch {
        ServerWatch { counters: Arc::clone(&self.counters), board: Arc::clone(&self.board) }
    }

    /// Everything that another process needs to serve the guest after this one.
    pub fn kept(&self) -> &KeptEpoch {
        &self.kept
    }

    /// State of serving the guest.
    pub fn status(&self) -> ServeStatus {
        self.board.get()
    }

    /// True if it ended although its guest still needs it: its epoch can be served again.
    pub fn has_failed(&self) -> bool {
        matches!(self.status(), ServeStatus::Ended { why: EndReason::Failed { .. } })
    }

    /// Waits until `wanted` accepts the status, at most `limit`; returns the status then.
    pub fn wait_status(&self, limit: Duration, wanted: impl Fn(&ServeStatus) -> bool) -> ServeStatus {
        self.board.wait(limit, &wanted)
    }

    /// Counts so far.
    pub fn stats(&self) -> ServeStats {
        self.counters.snapshot()
    }

    /// The way in which writes are tracked: the requested one, or the one that the guest's userfaultfd can do.
    pub fn tracking(&self) -> Tracking {
        self.tracking
    }

    /// False only where its guest has written nothing and given nothing back in this epoch; it runs meanwhile. Walks its
    /// page tables, and reads none of its memory.
    pub fn may_have_changed(&self) -> io::Result<bool> {
        self.kept.may_have_changed(self.pages)
    }

    /// Installs `pages` ahead of the guest, between its faults. Pages that are there or were given back are left alone.
    pub fn prefetch(&self, pages: PageSet) {
        assert_eq!(pages.pages(), self.pages, "what is prefetched is of the guest's size");
        self.mailbox.send(Mail::Prefetch(pages));
    }

    /// Installs the pages of a working set ahead of the guest, in their order, between its faults. It is advice: pages
    /// that are there, were given back or are not the guest's are left alone.
    pub fn install_ahead(&self, set: &Arc<WorkingSet>) {
        self.mailbox.send(Mail::Ahead(Arc::clone(set)));
    }

    /// Begins to record the guest's touches; an earlier recording is ended and handed over.
    pub(crate) fn record(&self) -> Recorded {
        Recorded::begin(&self.mailbox)
    }

    /// Ends the epoch of a guest that is frozen: no thread of it runs, and none waits for a remove to be read.
    pub fn end_epoch(mut self) -> Epoch {
        self.mailbox.send(Mail::EndEpoch);
        let thread = self.thread.take().expect("only this and drop take the thread, and both end the server");
        thread.join().expect("a handler thread does not panic")
    }
}

/// The parts of a server that the system may refuse.
struct Prepared {
    mailbox: Arc<Mailbox>,
    kept: KeptEpoch,
    waits: Waits,
}

/// Makes everything that can fail before the thread is started.
fn prepare(view: &LiveView, epoch: &Epoch) -> io::Result<Prepared> {
    let (pages, guest) = (view.pages(), epoch.regions().pages());
    if pages != guest {
        let why = format!("a guest of {guest} pages cannot be served from a volume of {pages}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let (mailbox, stream) = (Arc::new(Mailbox::new()?), epoch.guest.stream.as_fd());
    let waits = Waits::new([epoch.installer.userfaultfd.as_fd(), mailbox.as_fd(), stream])?;
    if !epoch.guest.connected {
        waits.leave_out(stream)?;
    }
    Ok(Prepared { mailbox, kept: epoch.kept()?, waits })
}

impl ServerWatch {
    /// State of serving the guest.
    pub fn status(&self) -> ServeStatus {
        self.board.get()
    }

    /// True if the server and all other watches of it are gone: its counts are final.
    pub fn is_last(&self) -> bool {
        Arc::strong_count(&self.counters) == 1
    }

    /// Counts so far.
    pub fn stats(&self) -> ServeStats {
        self.counters.snapshot()
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.mailbox.send(Mail::EndEpoch);
            // A handler that panicked has set its status, and this thread can tell nobody.
            drop(thread.join());
        }
    }
}

/// Sources that a guest is served from.
#[derive(Debug)]
struct Served {
    view: Arc<LiveView>,
    fetcher: Fetcher,
    options: ServeOptions,
}

/// Sets the status if the thread ends otherwise than by the end of its epoch.
struct BoardGuard(Arc<StatusBoard>);

impl Drop for BoardGuard {
    fn drop(&mut self) {
        let reason = "its thread panicked".to_owned();
        self.0.set(ServeStatus::Ended { why: EndReason::Failed { reason } });
    }
}
