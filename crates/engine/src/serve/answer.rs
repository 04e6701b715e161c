//! Answers one fault: with zeroes, from a source in memory, or later.

use std::sync::{Arc, Weak};
use std::time::Instant;

use rekindle_kernel::Protect;

use super::fault::{Access, Fault};
use super::installer::{End, InstallOutcome};
use super::mailbox::Mailbox;
use super::retry::{RetriedFault, RetryCause, RetryEffect};
use super::server::Server;
use super::status::{EndReason, ServeStatus};
use super::unit::UnitInstall;
use crate::fetch::FrameWaiter;
use crate::geometry::{GuestPage, GuestPages};
use crate::single_flight::Waiter as _;
use crate::sources::Class;
use crate::tracking::Tracking;
use crate::view::{MissingFrame, Piece, PieceSource};

/// Reason of a stall if bytes that seemed good are bad.
const SOURCE_LOST: &str = "its bytes could not be read from memory or from this disk";

/// Reason of a stall if the page's snapshot has no bytes.
const LOST: &str = "its snapshot is lost, or cannot be read now: `rekindle show` of the snapshot says why";

/// Reason of a stall if the kernel calls a missing huge page present.
const NO_HUGE_PAGE: &str =
    "no huge page of 2 MiB is free for it: reserve more (sysctl vm.nr_hugepages), or end what takes them";

/// Result of answering a fault.
#[derive(Debug)]
enum Outcome {
    /// Its page is there.
    Answered,
    /// It waits for a frame.
    Waiting,
    /// It must be tried again.
    Again(RetryCause),
    /// The process is gone, and its memory.
    Gone,
}

impl Server {
    /// Tries to answer a fault, and queues it if that fails.
    pub(super) fn answer(&mut self, retried: RetriedFault) {
        let fault = retried.fault;
        let first_try = retried.is_first_try();
        let taken_up = if first_try { self.stopwatch.take_up() } else { None };
        match self.attempt(fault, first_try) {
            Outcome::Answered => {
                self.note_latency(fault.page, taken_up);
                if self.stalls.end(fault.page) {
                    self.tell();
                }
                self.counters.first_fault_at.get_or_init(Instant::now);
            }
            Outcome::Waiting => {
                self.stopwatch.wait(fault.page);
                if self.stalls.end(fault.page) {
                    self.tell();
                }
            }
            Outcome::Again(cause) => {
                if self.retries.put(retried, &cause, Instant::now()) == RetryEffect::Stalled {
                    self.stalls.put(fault.page, cause.words());
                    self.tell();
                }
            }
            Outcome::Gone => self.board.set(ServeStatus::Ended { why: EndReason::MemoryGone }),
        }
    }

    /// Notes the latency of a page: since it began to wait for a frame, or else since `taken_up`.
    fn note_latency(&mut self, page: GuestPage, taken_up: Option<Instant>) {
        if let Some(waited) = self.stopwatch.end_wait(page) {
            self.counters.after_fetch.note(waited);
        } else if let Some(taken_up) = taken_up {
            self.counters.at_once.note(taken_up.elapsed());
        }
    }

    /// One try, from the live view. Neighbours are installed only by the first try: after an interruption the page is
    /// tried alone.
    fn attempt(&mut self, fault: Fault, first_try: bool) -> Outcome {
        let Fault { page, access } = fault;
        let unit = self.installer.regions.unit_of(page);
        let protect = match access {
            Access::Write => Protect::Writable,
            Access::Read => self.installer.unwritten(),
            Access::WriteProtected => return self.unprotect(unit),
            // In the image and not mapped, for whatever access.
            Access::Unmapped if self.installer.tracking() == Tracking::Diverged => self.installer.unwritten(),
            Access::Unmapped => {
                let installed = self.installer.map_present(unit);
                return self.landed(unit, &installed);
            }
        };
        if self.installer.pages.is_all_removed(unit) {
            return self.zero(unit);
        }
        if first_try && let Some(recording) = &mut self.recording {
            recording.fault(page);
        }
        if unit.count() > 1 {
            return self.install_unit(fault, unit, protect);
        }
        let window = if first_try { self.window(page) } else { unit };
        self.install_small(fault, window, protect)
    }

    /// The pages to install with `page`: on the guest's walk, in the same region, not touched yet.
    fn window(&mut self, page: GuestPage) -> GuestPages {
        let window = self.walks.window(page);
        if window.count() == 1 {
            return window;
        }
        let window = self.installer.regions.clip(window, page);
        self.installer.pages.untouched(window, page)
    }

    /// Installs the faulting page first, in one call with the pages that follow it in its source, unless only it must
    /// be writable.
    fn install_small(&mut self, fault: Fault, window: GuestPages, protect: Protect) -> Outcome {
        let alone = protect != self.installer.unwritten();
        let upwards = window.start() == fault.page;
        let limit = if upwards && !alone { window.count() } else { 1 };
        let wanted = GuestPages::new(fault.page, limit);
        if !alone && let Some(installed) = self.map_from_image(wanted) {
            return self.installed_first(window, wanted, &installed);
        }
        let piece = self.view.piece_at(fault.page, limit);
        let ready = piece.readable_now();
        if ready == 0 {
            return match &piece.source {
                PieceSource::Layer(..) | PieceSource::Remote(_) => {
                    let missing = piece.missing_frame().expect("such pieces have frames");
                    let waiting = self.wait_for(fault, &missing);
                    self.look_again(&piece, &missing);
                    waiting
                }
                PieceSource::Lost(_) => Outcome::Again(RetryCause::Failed(LOST.into())),
                PieceSource::Zero | PieceSource::Capture(_) => Outcome::Again(RetryCause::Interrupted),
            };
        }
        let installed = self.install_ready(&piece, ready, protect);
        self.installed_first(window, piece.pages, &installed)
    }

    /// Maps the first pages of `run`, which are in one region, as far as the image has them; none if it lacks the first.
    pub(super) fn map_from_image(&mut self, run: GuestPages) -> Option<InstallOutcome> {
        let installed = self.installer.map_shared(run)?;
        self.counters.pages_shared.add(installed.pages);
        Some(installed)
    }

    /// Goes on with the rest of `window` once the faulting page, the first of `run`, was tried with those after it.
    fn installed_first(
        &mut self,
        window: GuestPages,
        run: GuestPages,
        installed: &InstallOutcome,
    ) -> Outcome {
        let upwards = window.start() == run.start();
        self.counters.pages_neighbour.add(installed.pages.saturating_sub(1));
        self.note_beside(run.first_pages(installed.pages).after(1));
        let goes_on = matches!(installed.end, End::Complete) && window.count() > installed.pages;
        let rest =
            if upwards { window.after(installed.pages) } else { window.first_pages(window.count() - 1) };
        let outcome = self.landed(run, installed);
        if goes_on {
            self.install_neighbours(rest);
        }
        outcome
    }

    fn install_unit(&mut self, fault: Fault, unit: GuestPages, protect: Protect) -> Outcome {
        match self.gatherer.install(&self.view, &mut self.installer, unit, protect) {
            UnitInstall::Landed(installed) => {
                self.count(&self.view.piece_at(unit.start(), 1), installed.pages);
                self.note_beside(unit.first_pages(installed.pages).after(1));
                self.landed(unit, &installed)
            }
            UnitInstall::Missing(frames) => {
                // All frames are requested now; the page waits for one after the other.
                frames[1..].iter().for_each(|missing| self.request(Class::Fault, missing));
                self.wait_for(fault, &frames[0])
            }
            UnitInstall::Lost => Outcome::Again(RetryCause::Failed(LOST.into())),
        }
    }

    /// Records pages that were installed with a faulting one: on its walk the guest would have waited for them.
    #[inline]
    pub(super) fn note_beside(&mut self, run: GuestPages) {
        if let Some(recording) = &mut self.recording {
            recording.beside(run);
        }
    }

    /// Answers a fault on a page that the guest gave back with zeroes. The next pause captures such a page anyway, so
    /// it need not be protected.
    fn zero(&mut self, unit: GuestPages) -> Outcome {
        let installed = self.installer.zero(unit, Protect::Writable);
        self.counters.zero.add(self.view.phase(), installed.pages);
        self.landed(unit, &installed)
    }

    fn unprotect(&mut self, unit: GuestPages) -> Outcome {
        self.counters.write_protect_faults.add(1);
        match self.installer.unprotect(unit) {
            End::Complete | End::Present => Outcome::Answered,
            End::Interrupted => Outcome::Again(RetryCause::Interrupted),
            End::SourceLost => Outcome::Again(RetryCause::Failed(SOURCE_LOST.into())),
            End::Failed(reason) => Outcome::Again(RetryCause::Failed(reason)),
            End::Gone => Outcome::Gone,
            End::Unmapped => self.let_fault_again(unit),
        }
    }

    /// Outcome of the fault on the first page of `run` after an install.
    fn landed(&mut self, run: GuestPages, installed: &InstallOutcome) -> Outcome {
        let unit = self.installer.regions.unit_of(run.start());
        if installed.pages > 0 {
            self.presence.installed(unit.start());
            return Outcome::Answered;
        }
        match &installed.end {
            End::Present if unit.count() > 1 && !self.presence.is_credible(unit.start()) => {
                Outcome::Again(RetryCause::Failed(NO_HUGE_PAGE.into()))
            }
            End::Present | End::Complete => {
                self.installer.pages.install(run.first_pages(1));
                self.installer.wake(unit);
                Outcome::Answered
            }
            End::Interrupted => Outcome::Again(RetryCause::Interrupted),
            End::SourceLost => Outcome::Again(RetryCause::Failed(SOURCE_LOST.into())),
            End::Failed(reason) => Outcome::Again(RetryCause::Failed(reason.clone())),
            End::Gone => Outcome::Gone,
            // Perhaps only a neighbour was unmapped: the page is tried alone.
            End::Unmapped if run.count() > unit.count() => Outcome::Again(RetryCause::Interrupted),
            End::Unmapped => self.let_fault_again(run),
        }
    }

    /// The page's mapping has changed: its waiter is woken to fault again, and the kernel then reports the present
    /// state.
    fn let_fault_again(&mut self, run: GuestPages) -> Outcome {
        self.installer.wake(run);
        Outcome::Answered
    }

    /// Installs the first `ready` pages of a piece, which are in memory.
    pub(super) fn install_ready(&mut self, piece: &Piece, ready: u32, protect: Protect) -> InstallOutcome {
        let run = piece.pages.first_pages(ready);
        let installed = match piece.source {
            PieceSource::Zero => self.installer.zero(run, protect),
            PieceSource::Capture(_)
            | PieceSource::Layer(..)
            | PieceSource::Remote(_)
            | PieceSource::Lost(_) => self.installer.install(run, piece.bytes(0, ready), protect),
        };
        installed.distrust_if_lost(piece);
        self.count(piece, installed.pages);
        installed
    }

    pub(super) fn count(&self, piece: &Piece, pages: u32) {
        let counters = match piece.source {
            PieceSource::Zero => &self.counters.zero,
            PieceSource::Capture(_) => &self.counters.capture,
            PieceSource::Layer(..) => &self.counters.layer,
            PieceSource::Remote(_) => &self.counters.remote,
            PieceSource::Lost(_) => return,
        };
        counters.add(piece.phase, pages);
    }

    fn wait_for(&mut self, fault: Fault, missing: &MissingFrame) -> Outcome {
        self.counters.misses.add(1);
        if self.pending.wait(fault, missing.key()) {
            self.request(Class::Fault, missing);
        }
        Outcome::Waiting
    }

    /// Looks again for a page whose frame was requested: it may have come alone between the first look and the request.
    pub(super) fn look_again(&self, piece: &Piece, missing: &MissingFrame) {
        if piece.readable_now() > 0 {
            self.mailbox.ready(missing.key());
        }
    }

    /// Requests a frame; a message to the mailbox says when it is there.
    pub(super) fn request(&self, class: Class, missing: &MissingFrame) {
        let waiter: Weak<FrameWaiter> = Arc::<Mailbox>::downgrade(&self.mailbox);
        missing.request(&self.fetcher.of_class(class), waiter);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::net::UnixStream;

    use rekindle_kernel::{Install, PageKind};

    use super::*;
    use crate::cache::Cache;
    use crate::fetch::Fetcher;
    use crate::frame::FrameNumber;
    use crate::key_ring::KeyRing;
    use crate::layer::Layer;
    use crate::limits;
    use crate::pack::pack_pages;
    use crate::page_map::{LayerSlot, PageMap};
    use crate::page_set::PageSet;
    use crate::regions::{Region, Regions};
    use crate::serve::epoch::Guest;
    use crate::serve::installer::Installer;
    use crate::serve::stats::Counters;
    use crate::serve::status::StatusBoard;
    use crate::serve::{Neighbours, Placement, ServeOptions, Served};
    use crate::sources::Sources;
    use crate::stop::Stop;
    use crate::store::Store;
    use crate::tracking::Tracking;
    use crate::view::{LiveView, View};

    const PAGES: u32 = 8;

    /// A view of one layer, of the layer's size.
    fn view_of(layer: &Arc<Layer>) -> View {
        let (all, none) = (PageSet::full(PAGES), PageSet::new(PAGES));
        let map = PageMap::zero(PAGES).overlay(&all, LayerSlot::new(0), &none);
        View::flat(map, Arc::from([Arc::clone(layer)]))
    }

    /// The server of a guest that runs from a view.
    fn server(installer: Installer, view: View, fetcher: Fetcher) -> Server {
        let view = Arc::new(LiveView::new(view));
        let options = ServeOptions {
            tracking: Tracking::Resident,
            placement: Placement::Anywhere,
            neighbours: Neighbours::None,
        };
        let (stream, _) = UnixStream::pair().unwrap();
        let guest = Guest { memfd: None, pid: std::process::id(), stream, connected: true };
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let side = (mailbox, Arc::<Counters>::default(), Arc::new(StatusBoard::new()));
        Server::new(Served { view, fetcher, options }, installer, guest, side)
    }

    #[test]
    fn a_huge_page_that_is_called_present_and_faulted_on_again_and_again_stalls_its_guest_with_the_reason() {
        let Some((memory, mut installer)) = Installer::of_private_pages(Tracking::Resident, 512, 512) else {
            return;
        };
        let range = memory.range();
        // From here on the kernel calls it present.
        assert!(matches!(installer.userfaultfd.zero(range), Install::Installed));
        let region = Region { start: range.start, bytes: range.bytes, offset: 0, page: PageKind::Huge };
        installer.regions = Regions::new(vec![region], 512).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let store = Store::directory(directory.path()).unwrap();
        let fetcher = Fetcher::new(
            runtime.handle().clone(),
            Sources::new(store, KeyRing::of_name("shared")),
            Stop::default(),
        );
        let mut server = server(installer, View::flat(PageMap::zero(512), Arc::from([])), fetcher);
        let fault = Fault { page: GuestPage::FIRST, access: Access::Write };
        for _ in 0..limits::PRESENT_FAULTS_MAX {
            server.answer(RetriedFault::fresh(fault));
            assert_eq!(server.board.get(), ServeStatus::Running);
        }
        server.answer(RetriedFault::fresh(fault));
        let stalled = ServeStatus::Stalled { page: GuestPage::FIRST, reason: NO_HUGE_PAGE.to_owned() };
        assert_eq!(server.board.get(), stalled);
    }

    /// A cache and an empty store in a directory, and a fetcher of both.
    struct Disk {
        directory: tempfile::TempDir,
        _runtime: tokio::runtime::Runtime,
        fetcher: Fetcher,
        cache: Cache,
    }

    impl Disk {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let store = Store::directory(&directory.path().join("store")).unwrap();
            let fetcher = Fetcher::new(
                runtime.handle().clone(),
                Sources::new(store, KeyRing::of_name("shared")),
                Stop::default(),
            );
            let cache = Cache::open(&directory.path().join("layers"), KeyRing::of_name("shared")).unwrap();
            Self { directory, _runtime: runtime, fetcher, cache }
        }
    }

    /// A layer whose pages are filled with sevens.
    fn filled(cache: &Cache) -> Arc<Layer> {
        let bytes = |_, into: &mut [u8]| {
            into.fill(7);
            Ok(())
        };
        pack_pages(&PageSet::full(PAGES), cache, cache.keys().own(), bytes).unwrap().unwrap()
    }

    #[test]
    fn a_layer_whose_bytes_are_lost_at_a_fault_is_verified_anew_before_the_next_try() {
        let Some((_memory, installer)) = Installer::of_private_pages(Tracking::Resident, PAGES, PAGES) else {
            return;
        };
        let Disk { directory, _runtime, fetcher, cache } = Disk::new();
        let layer = filled(&cache);
        let mut server = server(installer, view_of(&layer), fetcher);
        let piece = server.view.piece_at(GuestPage::FIRST, PAGES);
        // The disk loses the bytes after they were seen in memory.
        let path = directory.path().join(format!("layers/{}.raw", layer.id()));
        OpenOptions::new().write(true).open(path).unwrap().set_len(0).unwrap();
        let installed = server.install_ready(&piece, PAGES, Protect::Writable);
        assert!(matches!(installed, InstallOutcome { pages: 0, end: End::SourceLost }), "{installed:?}");
        assert!(!layer.local().is_verified(FrameNumber::new(0)));
    }

    #[test]
    fn a_page_of_an_undecided_snapshot_is_installed_once_that_is_decided() {
        let Some((_memory, installer)) = Installer::of_private_pages(Tracking::Resident, PAGES, PAGES) else {
            return;
        };
        let Disk { directory: _directory, _runtime, fetcher, cache } = Disk::new();
        let mut server = server(installer, View::lost(PAGES), fetcher);
        let page = GuestPage::new(3);
        server.answer(RetriedFault::fresh(Fault { page, access: Access::Read }));
        assert_eq!(server.board.get(), ServeStatus::Stalled { page, reason: LOST.to_owned() });
        assert!(server.view.improve(&server.view.load(), view_of(&filled(&cache))));
        let retried = server.retries.next_due(Instant::now() + limits::INSTALL_RETRY_LAST).unwrap();
        server.answer(retried);
        assert_eq!(server.board.get(), ServeStatus::Running);
        assert_eq!(server.counters.snapshot().pages_from_layer, 1);
    }
}
