//! A volume in live handles: the form that is read. Views are immutable; a [`LiveView`] is the one cell that is
//! replaced.
//!
//! A view has no encoding, and nothing in it can become a name:
//!
//! ```compile_fail
//! fn stored(view: &rekindle_engine::view::View) -> String { serde_json::to_string(view).expect("it has no encoding") }
//! ```

mod piece;

use std::fmt;
use std::sync::{Arc, Weak};

use crate::capture::Capture;
use crate::geometry::{GuestPage, GuestPages};
use crate::layer::Layer;
use crate::page_map::{PageMap, Place};
use crate::page_set::PageSet;
use crate::remote_pages::RemotePages;
use crate::sync::{Current, Mutex, lock};

pub use piece::{MissingFrame, Piece, PieceBytes, PieceSource};

/// One volume's content at one moment, as handles.
#[derive(Debug)]
pub struct View {
    pages: u32,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Captured { top: Arc<Capture>, base: Base },
    Packed { top: PackedPages, base: Base },
    Remote(Arc<RemotePages>),
    Flat { map: PageMap, layers: Arc<[Arc<Layer>]> },
    Lost(Arc<LostPages>),
}

/// Pages that are nowhere, or cannot be had now: no read of them succeeds. If they are found later, those who wait for
/// them are told.
#[derive(Default)]
pub struct LostPages(Mutex<Search>);

#[derive(Default)]
struct Search {
    is_over: bool,
    waiting: Vec<Weak<dyn FoundWaiter>>,
}

/// A waiter for lost pages. Called from a foreign thread, or from the asking one if they are found already; it must not
/// block.
pub trait FoundWaiter: Send + Sync {
    /// The pages have a source in the view by now.
    fn pages_found(&self);
}

/// Base under the pages of a pause: the parent's present view, or nothing but zeroes.
pub type Base = Option<Arc<LiveView>>;

/// The pages of a pause once they are packed.
#[derive(Debug, Clone)]
pub struct PackedPages {
    /// The layer; none when no page was kept.
    pub layer: Option<Arc<Layer>>,
    /// Pages that are zero.
    pub zero: PageSet,
}

/// Stage that a view's sources have reached; a cell only moves forward through these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ViewPhase {
    /// The captured pages over the parent.
    Captured,
    /// The packed layer over the parent.
    Packed,
    /// The pages that another node has.
    Remote,
    /// A map of its own over layers.
    Flat,
}

impl View {
    /// Captured pages over the parent.
    pub fn captured(top: Arc<Capture>, base: Base) -> Self {
        Self { pages: top.pages(), body: Body::Captured { top, base } }
    }

    /// A packed layer over the parent.
    pub fn packed(top: PackedPages, base: Base) -> Self {
        Self { pages: top.zero.pages(), body: Body::Packed { top, base } }
    }

    /// Pages that another node has, and that have no names yet.
    pub fn remote(pages: Arc<RemotePages>) -> Self {
        Self { pages: pages.pages(), body: Body::Remote(pages) }
    }

    /// Layers only: `layers` stand in the order of the manifest that `map` is of.
    pub fn flat(map: PageMap, layers: Arc<[Arc<Layer>]>) -> Self {
        Self { pages: map.pages(), body: Body::Flat { map, layers } }
    }

    /// `pages` pages that cannot be had.
    pub fn lost(pages: u32) -> Self {
        Self { pages, body: Body::Lost(Arc::default()) }
    }

    /// Stage of this view. Of lost pages nothing is packed.
    pub fn phase(&self) -> ViewPhase {
        match self.body {
            Body::Captured { .. } | Body::Lost(_) => ViewPhase::Captured,
            Body::Packed { .. } => ViewPhase::Packed,
            Body::Remote(_) => ViewPhase::Remote,
            Body::Flat { .. } => ViewPhase::Flat,
        }
    }

    /// The layers this view reads by itself, in its map's order; empty unless it is flat.
    pub fn layers(&self) -> &[Arc<Layer>] {
        match &self.body {
            Body::Flat { layers, .. } => layers,
            Body::Captured { .. } | Body::Packed { .. } | Body::Remote(_) | Body::Lost(_) => &[],
        }
    }

    /// The run of one source that starts at `page`, at most `limit` pages long.
    fn piece_at(&self, page: GuestPage, limit: u32) -> Piece {
        let phase = self.phase();
        match &self.body {
            Body::Captured { top, base } => {
                let (kept, run) = top.kept().run_at(page, limit);
                if kept {
                    return Piece::new(page, run, phase, PieceSource::Capture(Arc::clone(top)));
                }
                under_zero(top.zero(), base, phase, page, run)
            }
            Body::Packed { top, base } => {
                let mut run = limit;
                if let Some(layer) = &top.layer {
                    let (rank, length) = layer.facts().packed_pages().run_at(page, limit);
                    if let Some(first) = rank {
                        return Piece::new(page, length, phase, PieceSource::Layer(layer.local(), first));
                    }
                    run = length;
                }
                under_zero(&top.zero, base, phase, page, run)
            }
            Body::Flat { map, layers } => {
                let (place, run) = map.run_at(page, limit);
                let source = match place {
                    Place::Zero => PieceSource::Zero,
                    Place::Layer { slot, page } => PieceSource::Layer(layers[slot.index()].local(), page),
                };
                Piece::new(page, run, phase, source)
            }
            Body::Remote(pages) => Piece::new(page, limit, phase, PieceSource::Remote(Arc::clone(pages))),
            Body::Lost(lost) => Piece::new(page, limit, phase, PieceSource::Lost(Arc::clone(lost))),
        }
    }

    /// The lost pages, if these are some.
    fn lost_pages(&self) -> Option<&LostPages> {
        match &self.body {
            Body::Lost(lost) => Some(lost),
            Body::Captured { .. } | Body::Packed { .. } | Body::Remote(_) | Body::Flat { .. } => None,
        }
    }

    /// The pages of another node, if these are such.
    pub fn remote_pages(&self) -> Option<&Arc<RemotePages>> {
        match &self.body {
            Body::Remote(pages) => Some(pages),
            Body::Captured { .. } | Body::Packed { .. } | Body::Flat { .. } | Body::Lost(_) => None,
        }
    }

    /// True if this may stand in the place of `other`: it is further on, or what was lost is found. Pages of another node
    /// that are found wrong are lost.
    fn improves(&self, other: &Self) -> bool {
        match (self.lost_pages(), other.lost_pages()) {
            (None, Some(_)) => true,
            (Some(_), None) => other.remote_pages().is_some(),
            (Some(_), Some(_)) => false,
            (None, None) => self.phase() > other.phase(),
        }
    }
}

impl LostPages {
    /// Tells `waiter` when the pages are found.
    pub fn wait(&self, waiter: Weak<dyn FoundWaiter>) {
        let mut search = lock(&self.0);
        if search.is_over {
            drop(search);
            waiter.upgrade().inspect(|waiter| waiter.pages_found());
            return;
        }
        search.waiting.retain(|other| other.strong_count() > 0 && !Weak::ptr_eq(other, &waiter));
        search.waiting.push(waiter);
    }

    fn found(&self) {
        let mut search = lock(&self.0);
        search.is_over = true;
        let waiting = std::mem::take(&mut search.waiting);
        drop(search);
        waiting.iter().filter_map(Weak::upgrade).for_each(|waiter| waiter.pages_found());
    }
}

impl fmt::Debug for LostPages {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("LostPages")
    }
}

fn under_zero(zero: &PageSet, base: &Base, phase: ViewPhase, page: GuestPage, limit: u32) -> Piece {
    let (is_zero, run) = zero.run_at(page, limit);
    match base {
        Some(base) if !is_zero => Piece { phase, ..base.piece_at(page, run) },
        Some(_) | None => Piece::new(page, run, phase, PieceSource::Zero),
    }
}

/// The one mutable cell of a snapshot's volume. Readers plan from it; its snapshot's seal improves it. All views it
/// ever holds have equal content, so plans made from an older one stay right.
#[derive(Debug)]
pub struct LiveView {
    pages: u32,
    current: Current<View>,
}

impl LiveView {
    /// A cell that holds `view`.
    pub fn new(view: View) -> Self {
        Self { pages: view.pages, current: Current::new(Arc::new(view)) }
    }

    /// Pages of the volume.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// The view as it is now.
    pub fn load(&self) -> Arc<View> {
        self.current.load()
    }

    /// Stage of the view.
    pub fn phase(&self) -> ViewPhase {
        self.current.with(View::phase)
    }

    /// The run of one source that starts at `page`, at most `limit` pages long and at least one.
    pub fn piece_at(&self, page: GuestPage, limit: u32) -> Piece {
        assert!(page.number() < self.pages && limit > 0, "a piece lies within its volume");
        let limit = limit.min(self.pages - page.number());
        self.current.with(|view| view.piece_at(page, limit))
    }

    /// Gives the pieces of `pages` to `each` in order, all of the same view.
    pub fn pieces_of(&self, pages: GuestPages, mut each: impl FnMut(Piece)) {
        assert!(pages.end().number() <= self.pages, "pieces lie within their volume");
        self.current.with(|view| {
            let mut left = pages;
            while !left.is_empty() {
                let piece = view.piece_at(left.start(), left.count());
                left = left.after(piece.pages.count());
                each(piece);
            }
        });
    }

    /// Puts `next` in the place of `expected` if it is further on; false if it is not, or if `expected` is not what
    /// the cell holds. A late or repeated replacement thus changes nothing.
    pub fn improve(&self, expected: &Arc<View>, next: impl Into<Arc<View>>) -> bool {
        let next = next.into();
        assert_eq!(next.pages, self.pages, "all views of a volume have its size");
        let improved = next.improves(expected) && self.current.replace(expected, next);
        if improved && let Some(lost) = expected.lost_pages() {
            lost.found();
        }
        improved
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::time::Duration;

    use rekindle_kernel::{Memfd, PageKind};

    use super::*;
    use crate::budget::Budget;
    use crate::capture::CapturedPages;
    use crate::geometry::bytes_of_pages;
    use crate::reaper::Reaper;

    const PAGES: u32 = 8;

    fn captured(reaper: &Reaper, kept: PageSet, zero: PageSet) -> Arc<Capture> {
        let bytes = bytes_of_pages(PAGES);
        let memfd = Memfd::create("guest", bytes, PageKind::Small).expect("memory");
        let lease = Budget::new(bytes).lease(bytes, Duration::ZERO).expect("there is room");
        let adopted = Capture::adopt(memfd, CapturedPages { kept, zero }, lease, reaper.handle());
        Arc::new(adopted.expect("memory of its size"))
    }

    #[test]
    fn pages_that_a_pause_knows_to_be_zero_are_zero_whatever_its_parent_has() {
        let reaper = Reaper::start().unwrap();
        let none = PageSet::new(PAGES);
        let mut zero = none.clone();
        zero.insert(GuestPage::new(2));
        let parent = captured(&reaper, PageSet::full(PAGES), none.clone());
        let parent = Arc::new(LiveView::new(View::captured(parent, None)));
        let over = || Some(Arc::clone(&parent));
        let unsealed = View::captured(captured(&reaper, none, zero.clone()), over());
        let packed = View::packed(PackedPages { layer: None, zero }, over());
        for view in [unsealed, packed] {
            let at = |page| view.piece_at(GuestPage::new(page), 1).source;
            assert!(matches!(at(2), PieceSource::Zero), "{view:?}");
            assert!(matches!(at(1), PieceSource::Capture(_)) && matches!(at(3), PieceSource::Capture(_)));
        }
    }
}
