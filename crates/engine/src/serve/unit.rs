//! Installs a 2 MiB page of a guest in one step, from any number of sources.

use rekindle_kernel::{HUGE_PAGE_BYTES, Protect, Source};

use super::installer::{End, InstallOutcome, Installer};
use crate::geometry::{GuestPages, PAGE_BYTES, usize_of};
use crate::view::{LiveView, MissingFrame, Piece, PieceSource};

/// Buffer in which the parts of a huge page are assembled.
#[derive(Debug, Default)]
pub(super) struct Gatherer {
    bytes: Vec<u8>,
}

/// Result of installing a huge page.
#[derive(Debug)]
pub(super) enum UnitInstall {
    /// It was tried.
    Landed(InstallOutcome),
    /// These frames must be there first; at least one.
    Missing(Vec<MissingFrame>),
    /// Some of its pages are lost.
    Lost,
}

impl Gatherer {
    /// Installs the huge page `unit`.
    pub(super) fn install(
        &mut self,
        view: &LiveView,
        installer: &mut Installer,
        unit: GuestPages,
        protect: Protect,
    ) -> UnitInstall {
        let removed: Vec<_> = installer.pages.removed().runs_in(unit).collect();
        let whole = view.piece_at(unit.start(), unit.count());
        if removed.is_empty() && whole.pages == unit && whole.readable_now() == unit.count() {
            let installed = match whole.source {
                PieceSource::Zero => installer.zero(unit, protect),
                PieceSource::Capture(_)
                | PieceSource::Layer(..)
                | PieceSource::Remote(_)
                | PieceSource::Lost(_) => installer.copy(unit, whole.bytes(0, unit.count()), protect),
            };
            installed.distrust_if_lost(&whole);
            return UnitInstall::Landed(installed);
        }
        let pieces = match plan(view, unit) {
            Ok(pieces) => pieces,
            Err(obstacle) => return obstacle,
        };
        self.bytes.resize(HUGE_PAGE_BYTES, 0);
        for piece in pieces {
            let from = usize_of(piece.pages.start().pages_since(unit.start())) * PAGE_BYTES;
            let bytes = usize_of(piece.pages.count()) * PAGE_BYTES;
            if piece.copy_to(&mut self.bytes[from..from + bytes]).is_err() {
                let lost = InstallOutcome { pages: 0, end: End::SourceLost };
                lost.distrust_if_lost(&piece);
                return UnitInstall::Landed(lost);
            }
        }
        // Parts of it that the guest gave back, since the kernel removes only whole huge pages.
        for run in removed {
            let from = usize_of(run.start().pages_since(unit.start())) * PAGE_BYTES;
            self.bytes[from..from + usize_of(run.count()) * PAGE_BYTES].fill(0);
        }
        UnitInstall::Landed(installer.copy(unit, Source::from(self.bytes.as_slice()), protect))
    }
}

/// The pieces of `unit`, which can all be read now; otherwise the reason that they cannot.
fn plan(view: &LiveView, unit: GuestPages) -> Result<Vec<Piece>, UnitInstall> {
    let (mut pieces, mut missing) = (Vec::new(), Vec::new());
    let mut rest = unit;
    while !rest.is_empty() {
        let piece = view.piece_at(rest.start(), rest.count());
        let ready = piece.readable_now();
        if ready > 0 {
            // The view may have changed since; the same piece is cut, so that exactly the bytes that were ready are
            // read.
            rest = rest.after(ready);
            pieces.push(first_pages(piece, ready));
            continue;
        }
        if let PieceSource::Lost(_) = piece.source {
            return Err(UnitInstall::Lost);
        }
        missing.extend(piece.missing_frame());
        rest = rest.after(piece.rest_of_frame(0));
    }
    if missing.is_empty() { Ok(pieces) } else { Err(UnitInstall::Missing(missing)) }
}

fn first_pages(piece: Piece, pages: u32) -> Piece {
    Piece { pages: piece.pages.first_pages(pages), ..piece }
}
