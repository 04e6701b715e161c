//! The notes of a handler thread on the pages that its guest touches.

use tokio::sync::oneshot;

use crate::geometry::{GuestPage, GuestPages};
use crate::limits;
use crate::working_set::Touch;

/// The notes of a handler thread, until they are handed over or its epoch ends.
#[derive(Debug)]
pub(super) struct Recording {
    touches: Vec<Touch>,
    /// Number of noted pages; a page noted twice counts twice.
    pages: u32,
    to: oneshot::Sender<Vec<Touch>>,
}

impl Recording {
    /// A recording without notes, and the channel that its notes come by.
    pub(super) fn begin() -> (Self, oneshot::Receiver<Vec<Touch>>) {
        let (to, from) = oneshot::channel();
        (Self { touches: Vec::new(), pages: 0, to }, from)
    }

    #[inline]
    pub(super) fn fault(&mut self, page: GuestPage) {
        self.note(Touch::Fault(page), 1);
    }

    #[inline]
    pub(super) fn beside(&mut self, run: GuestPages) {
        if !run.is_empty() {
            self.note(Touch::Beside(run), run.count());
        }
    }

    /// Hands the notes over, or drops them if the receiver is gone.
    pub(super) fn end(self) {
        self.to.send(self.touches).ok();
    }

    #[inline]
    fn note(&mut self, touch: Touch, pages: u32) {
        if self.pages < limits::WORKING_SET_PAGES_MAX {
            self.pages = self.pages.saturating_add(pages);
            self.touches.push(touch);
        }
    }
}
