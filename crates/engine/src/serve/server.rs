//! The handler thread of one guest: it reads every event and does every install, so the two can never race.
//!
//! The order makes removes safe. The kernel lets a remove go on only once its event has been read, and fails every
//! install until then; the removes of a batch are noted before any of its faults is answered.

use std::io;
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rekindle_kernel::wakeup::WaitSet;
use rekindle_kernel::{Event, EventBuffer, FaultKind, GuestRange};
use tracing::field;

use super::Served;
use super::epoch::{Epoch, Guest};
use super::fault::{Access, Fault};
use super::installer::Installer;
use super::latency::Stopwatch;
use super::mailbox::{Mail, Mailbox};
use super::neighbours::Walks;
use super::pending::Pending;
use super::placement::Placer;
use super::prefetch::Prefetch;
use super::presence::Presence;
use super::recording::Recording;
use super::retry::{RetriedFault, Retries};
use super::stall::Stalls;
use super::stats::{Counters, ServeStats};
use super::status::{EndReason, ServeStatus, StatusBoard};
use super::unit::Gatherer;
use crate::fetch::{Fetcher, FrameKey};
use crate::geometry::GuestPages;
use crate::limits;
use crate::view::LiveView;

/// Parts that the thread shares with its watchers.
pub(super) type ServerSide = (Arc<Mailbox>, Arc<Counters>, Arc<StatusBoard>);

/// Descriptors that the thread waits on: faults, mail, the VMM's stream.
pub(super) type Waits = WaitSet<3>;

/// Everything the thread owns.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) view: Arc<LiveView>,
    pub(super) fetcher: Fetcher,
    pub(super) installer: Installer,
    pub(super) gatherer: Gatherer,
    pub(super) walks: Walks,
    pub(super) placer: Placer,
    pub(super) pending: Pending,
    pub(super) retries: Retries,
    pub(super) prefetch: Prefetch,
    /// Present while the guest's touches are recorded.
    pub(super) recording: Option<Recording>,
    pub(super) stalls: Stalls,
    pub(super) presence: Presence,
    pub(super) stopwatch: Stopwatch,
    pub(super) guest: Guest,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) counters: Arc<Counters>,
    pub(super) board: Arc<StatusBoard>,
}

impl Server {
    pub(super) fn new(served: Served, mut installer: Installer, guest: Guest, side: ServerSide) -> Self {
        let Served { view, fetcher, options } = served;
        if installer.image.as_ref().is_some_and(|image| !image.is_of(&view)) {
            installer.image = None;
        }
        let (mailbox, counters, board) = side;
        Self {
            walks: Walks::new(options.neighbours),
            placer: Placer::start(options.placement, guest.pid),
            prefetch: Prefetch::new(view.pages()),
            recording: None,
            gatherer: Gatherer::default(),
            pending: Pending::default(),
            retries: Retries::default(),
            stalls: Stalls::default(),
            presence: Presence::default(),
            stopwatch: Stopwatch::default(),
            view,
            fetcher,
            installer,
            guest,
            mailbox,
            counters,
            board,
        }
    }

    /// Serves `epoch` on this thread until it is ended.
    pub(super) fn run(served: Served, epoch: Epoch, waits: &Waits, side: ServerSide) -> Epoch {
        let Epoch { installer, guest, mut events } = epoch;
        let span =
            tracing::info_span!("serve", pid = guest.pid, faults = field::Empty, misses = field::Empty);
        let _entered = span.clone().entered();
        let mut server = Self::new(served, installer, guest, side);
        // Faults that an earlier handler read are not reported again: waking all their threads makes them fault anew.
        server.installer.wake_all();
        if let Err(error) = server.serve(&mut events, waits) {
            tracing::error!(%error, "a fault handler cannot go on");
            server.board.set(ServeStatus::Ended { why: EndReason::Failed { reason: error.to_string() } });
        }
        server.end_recording();
        let ServeStats { faults, misses, .. } = server.counters.snapshot();
        span.record("faults", faults).record("misses", misses);
        Epoch { installer: server.installer, guest: server.guest, events }
    }

    /// One turn after the other until the epoch is ended.
    fn serve(&mut self, events: &mut EventBuffer, waits: &Waits) -> io::Result<()> {
        loop {
            let [faults, mail, stream] = waits.wait(self.patience())?;
            let retries = self.retries.soon_count().min(limits::RETRIES_PER_TURN);
            // Mail first, so that a request made before the guest began to run applies to its first fault.
            if mail.readable && self.read_mail() {
                return self.read_last_removes(events);
            }
            if faults.readable {
                self.read_events(events)?;
            }
            if stream.readable && self.stream_ended() {
                waits.leave_out(self.guest.stream.as_fd())?;
            }
            self.retry(retries);
            self.prefetch_slice();
        }
    }

    /// Longest wait of a turn: none while there is work, unlimited without any.
    fn patience(&self) -> Option<Duration> {
        if !self.prefetch.is_idle() || self.retries.soon_count() > 0 {
            return Some(Duration::ZERO);
        }
        if self.retries.is_empty() {
            return None;
        }
        self.retries.next_in(Instant::now())
    }

    /// Reads one batch: removes first, then faults. The removes are in the journal before the next batch is read over
    /// them.
    fn read_events(&mut self, events: &mut EventBuffer) -> io::Result<usize> {
        let count = self.installer.userfaultfd.read_events(events)?;
        let mut freed = Vec::new();
        for event in events.events(count) {
            match event {
                Event::Remove(range) | Event::Unmap(range) => self.remove(range, &mut freed),
                Event::Fault { .. } | Event::Other(_) => {}
            }
        }
        for event in events.events(count) {
            match event {
                Event::Fault { address, kind, thread } => self.fault(address, kind, thread),
                Event::Remove(_) | Event::Unmap(_) => {}
                Event::Other(number) => tracing::debug!(number, "a userfaultfd event nobody asked for"),
            }
        }
        freed.into_iter().for_each(|fault| self.answer(RetriedFault::fresh(fault)));
        Ok(count)
    }

    /// Notes that pages were given back. Faults that waited for their content no longer need it.
    fn remove(&mut self, range: GuestRange, freed: &mut Vec<Fault>) {
        for run in self.installer.regions.pages_in(range) {
            self.installer.pages.remove(run);
            self.counters.pages_removed.add(run.count());
            freed.extend(self.pending.take_pages(run));
        }
    }

    fn fault(&mut self, address: u64, kind: FaultKind, thread: Option<u32>) {
        let Some(page) = self.installer.regions.page_at(address) else {
            tracing::error!(address, "a fault outside the regions that were handed over cannot be answered");
            return;
        };
        self.placer.fault(thread);
        let access = match kind {
            FaultKind::Read => Access::Read,
            FaultKind::Write => Access::Write,
            FaultKind::WriteProtect => Access::WriteProtected,
            FaultKind::Minor => Access::Unmapped,
        };
        self.counters.faults.add(1);
        self.answer(RetriedFault::fresh(Fault {
            page: self.installer.regions.unit_of(page).start(),
            access,
        }));
    }

    /// Reads the mail; true if the epoch must end.
    fn read_mail(&mut self) -> bool {
        let mut ends = false;
        for mail in self.mailbox.take() {
            match mail {
                Mail::FrameReady(frame) => self.frame_ready(frame),
                Mail::FrameFailing(frame, reason) => {
                    if self.pending.fail(frame, &reason) {
                        self.tell();
                    }
                }
                Mail::Prefetch(pages) => self.prefetch.want(&pages),
                Mail::Ahead(set) => self.prefetch.want_in_order(set.runs_within(self.view.pages())),
                Mail::Record(recording) => {
                    if let Some(before) = self.recording.replace(recording) {
                        before.end();
                    }
                }
                Mail::EndRecording => self.end_recording(),
                Mail::EndEpoch => ends = true,
            }
        }
        ends
    }

    fn end_recording(&mut self) {
        if let Some(recording) = self.recording.take() {
            recording.end();
        }
    }

    /// Answers again, from the live view, every fault that waited for `frame`.
    fn frame_ready(&mut self, frame: FrameKey) {
        for fault in self.pending.take_frame(frame) {
            self.answer(RetriedFault::fresh(fault));
        }
        self.prefetch.frame_ready(frame);
        self.tell();
    }

    /// Tries `count` interrupted faults and every failed one that is due.
    fn retry(&mut self, count: usize) {
        let before = self.retries.soon_count();
        for _ in 0..count {
            let Some(retried) = self.retries.next_soon() else { break };
            self.counters.retries.add(1);
            self.answer(retried);
        }
        if count > 0 && self.retries.soon_count() >= before {
            // Yields to the thread that changes the address space, which has to run to finish.
            std::thread::yield_now();
        }
        if self.retries.has_failed() {
            let now = Instant::now();
            while let Some(retried) = self.retries.next_due(now) {
                self.counters.retries.add(1);
                self.answer(retried);
            }
        }
    }

    /// True if the VMM's stream has ended, which carries nothing after its one message. Faults are still answered: a
    /// thread of the VMM may still be ending.
    fn stream_ended(&mut self) -> bool {
        match self.guest.stream.read(&mut [0; 256]) {
            Ok(0) => {}
            Ok(_) => return false,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) => tracing::debug!(%error, "a hand-over stream broke"),
        }
        self.guest.connected = false;
        self.board.set(ServeStatus::Ended { why: EndReason::HungUp });
        true
    }

    /// Once the guest is frozen, notes the removes that are still unread. Its faults come again when it is served
    /// again.
    ///
    /// A thread that gives pages back waits in the kernel until its event is read, so a frozen guest has none; only a
    /// thread that was killed in that wait leaves one behind. No test can tell this from reading nothing.
    fn read_last_removes(&mut self, events: &mut EventBuffer) -> io::Result<()> {
        self.board.set(ServeStatus::Ended { why: EndReason::EpochEnded });
        loop {
            let count = self.installer.userfaultfd.read_events(events)?;
            if count == 0 {
                return Ok(());
            }
            for event in events.events(count) {
                if let Event::Remove(range) | Event::Unmap(range) = event {
                    self.remove(range, &mut Vec::new());
                }
            }
        }
    }

    /// Updates the status.
    pub(super) fn tell(&self) {
        self.board.set(match self.pending.failing().or_else(|| self.stalls.first()) {
            Some(failing) => ServeStatus::Stalled { page: failing.page, reason: failing.reason },
            None => ServeStatus::Running,
        });
    }

    /// The part of a run in its first region.
    pub(super) fn in_one_region(&self, run: GuestPages) -> GuestPages {
        self.installer.regions.clip(run, run.start())
    }
}
