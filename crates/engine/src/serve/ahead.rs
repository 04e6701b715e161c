//! Installs pages that the guest has not asked for: neighbours of a fault, and pages to prefetch.

use super::installer::{End, InstallOutcome};
use super::server::Server;
use super::unit::UnitInstall;
use crate::geometry::GuestPages;
use crate::limits;
use crate::sources::Class;
use crate::view::{Piece, PieceSource};

/// Result of an install ahead of the guest.
#[derive(Debug)]
enum Ahead {
    /// So many pages, at least one, are done.
    Dealt(u32),
    /// The address space is changing: not now.
    Interrupted,
}

impl Server {
    /// Installs the pages of `run` that are in memory, source by source, up to the first that is not in memory or
    /// fails.
    pub(super) fn install_neighbours(&mut self, mut run: GuestPages) {
        while !run.is_empty() {
            let (pages, end) = match self.map_from_image(run) {
                Some(InstallOutcome { pages, end }) => (pages, end),
                None => {
                    let piece = self.view.piece_at(run.start(), run.count());
                    let ready = piece.readable_now();
                    if ready == 0 {
                        return;
                    }
                    self.install_piece(&piece, ready)
                }
            };
            self.counters.pages_neighbour.add(pages);
            self.note_beside(run.first_pages(pages));
            if !matches!(end, End::Complete) {
                return;
            }
            run = run.after(pages);
        }
    }

    /// Installs pages to prefetch, for a bounded time.
    pub(super) fn prefetch_slice(&mut self) {
        let mut left = limits::PREFETCH_SLICE_PAGES;
        let at_once = if self.installer.image.is_some() { limits::SHARED_PAGES_A_COPY } else { 1 };
        while left > 0
            && let Some(run) = self.prefetch.next_run(left * at_once)
        {
            let (run, rest, copies) = match self.installer.shared_of(run) {
                0 => (run.first_pages(left), run.after(left), run.count().min(left)),
                shared => (run.first_pages(shared), run.after(shared), shared.div_ceil(at_once)),
            };
            if !rest.is_empty() {
                self.prefetch.put_back(rest);
            }
            left -= copies;
            if let Some(rest) = self.prefetch_run(run) {
                self.prefetch.put_back(rest);
                std::thread::yield_now();
                return;
            }
        }
    }

    /// Installs or requests `run`; returns the rest if the address space is changing.
    fn prefetch_run(&mut self, run: GuestPages) -> Option<GuestPages> {
        let mut rest = run;
        while !rest.is_empty() {
            // The limit of requested frames is reached: the rest follows after one of them.
            if self.prefetch.is_full() {
                self.prefetch.put_back(rest);
                return None;
            }
            match self.prefetch_some(self.in_one_region(rest)) {
                Ahead::Dealt(pages) => rest = rest.after(pages),
                Ahead::Interrupted => return Some(rest),
            }
        }
        None
    }

    /// Installs or requests the first pages of `run`, which is in one region.
    fn prefetch_some(&mut self, run: GuestPages) -> Ahead {
        let page = run.start();
        // Removed pages must be skipped; installed ones the kernel would refuse anyway, one call later.
        if self.installer.pages.installed().contains(page) || self.installer.pages.is_removed(page) {
            return Ahead::Dealt(1);
        }
        let unit = self.installer.regions.unit_of(page);
        if unit.count() > 1 {
            return self.prefetch_unit(run, unit);
        }
        let free = self.installer.pages.untouched(run, page);
        if let Some(InstallOutcome { pages, end }) = self.map_from_image(free) {
            self.counters.pages_prefetched.add(pages);
            return ahead(pages, &end);
        }
        let piece = self.view.piece_at(page, free.count());
        let ready = piece.readable_now();
        if ready > 0 {
            let (pages, end) = self.install_piece(&piece, ready);
            self.counters.pages_prefetched.add(pages);
            return ahead(pages, &end);
        }
        let Some(missing) = piece.missing_frame() else {
            return match &piece.source {
                PieceSource::Lost(_) => Ahead::Dealt(piece.pages.count()),
                PieceSource::Zero
                | PieceSource::Capture(_)
                | PieceSource::Layer(..)
                | PieceSource::Remote(_) => Ahead::Interrupted,
            };
        };
        let waiting = piece.pages.first_pages(piece.rest_of_frame(0));
        if self.prefetch.wait(waiting, missing.key()) {
            self.request(Class::Ahead, &missing);
        }
        self.look_again(&piece, &missing);
        Ahead::Dealt(waiting.count())
    }

    fn prefetch_unit(&mut self, run: GuestPages, unit: GuestPages) -> Ahead {
        let protect = self.installer.unwritten();
        let of_unit = unit.intersect(run).count();
        match self.gatherer.install(&self.view, &mut self.installer, unit, protect) {
            UnitInstall::Landed(installed) => {
                self.counters.pages_prefetched.add(installed.pages);
                self.count(&self.view.piece_at(unit.start(), 1), installed.pages);
                match ahead(installed.pages, &installed.end) {
                    Ahead::Dealt(_) => Ahead::Dealt(of_unit),
                    Ahead::Interrupted => Ahead::Interrupted,
                }
            }
            UnitInstall::Missing(frames) => {
                self.prefetch.wait(unit.intersect(run), frames[0].key());
                frames.iter().for_each(|missing| self.request(Class::Ahead, missing));
                Ahead::Dealt(of_unit)
            }
            UnitInstall::Lost => Ahead::Dealt(of_unit),
        }
    }

    /// Installs the first `ready` pages of a piece, as unwritten pages.
    fn install_piece(&mut self, piece: &Piece, ready: u32) -> (u32, End) {
        let InstallOutcome { pages, end } = self.install_ready(piece, ready, self.installer.unwritten());
        (pages, end)
    }
}

/// A page that is present, gone or bad counts as done: the guest will fault if it needs the page.
fn ahead(pages: u32, end: &End) -> Ahead {
    match end {
        End::Interrupted if pages == 0 => Ahead::Interrupted,
        End::Complete | End::Interrupted => Ahead::Dealt(pages.max(1)),
        End::Present | End::SourceLost | End::Gone | End::Unmapped | End::Failed(_) => {
            Ahead::Dealt(pages + 1)
        }
    }
}
