//! Records the pages that a guest touches in the first seconds after a resume: its handler thread notes each fault.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::oneshot;

use super::mailbox::{Mail, Mailbox};
use crate::geometry::{GuestPage, GuestPages};
use crate::limits;
use crate::working_set::{Touch, WorkingSet};

/// The notes of a handler thread, until they are handed over or its epoch ends.
#[derive(Debug)]
pub(super) struct Recording {
    touches: Vec<Touch>,
    /// Number of noted pages; a page noted twice counts twice.
    pages: u32,
    to: oneshot::Sender<Vec<Touch>>,
}

/// The other end of a recording.
#[derive(Debug)]
pub(crate) struct Recorded {
    from: oneshot::Receiver<Vec<Touch>>,
    /// The mailbox of the server, which may have ended.
    mailbox: Weak<Mailbox>,
}

impl Recording {
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

impl Recorded {
    /// Tells the server of `mailbox` to begin.
    pub(super) fn begin(mailbox: &Arc<Mailbox>) -> Self {
        let (to, from) = oneshot::channel();
        mailbox.send(Mail::Record(Recording { touches: Vec::new(), pages: 0, to }));
        Self { from, mailbox: Arc::downgrade(mailbox) }
    }

    /// Tells the server to install a working set ahead of its guest.
    pub(crate) fn install_ahead(&self, set: &Arc<WorkingSet>) {
        if let Some(mailbox) = self.mailbox.upgrade() {
            mailbox.send(Mail::Ahead(Arc::clone(set)));
        }
    }

    /// The guest's touches within `time`, or until its epoch ended; none if its server failed.
    pub(crate) async fn after(mut self, time: Duration) -> Option<Vec<Touch>> {
        if let Ok(ended) = tokio::time::timeout(time, &mut self.from).await {
            return ended.ok();
        }
        if let Some(mailbox) = self.mailbox.upgrade() {
            mailbox.send(Mail::EndRecording);
        }
        self.from.await.ok()
    }
}
