//! Asks a handler thread to record the pages that its guest touches in the first seconds after a resume.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::oneshot;

use super::mailbox::{Mail, Mailbox};
use super::recording::Recording;
use crate::page_set::PageSet;
use crate::working_set::{Touch, WorkingSet};

/// The other end of a recording.
#[derive(Debug)]
pub(crate) struct Recorded {
    from: oneshot::Receiver<Vec<Touch>>,
    /// The mailbox of the server, which may have ended.
    mailbox: Weak<Mailbox>,
}

impl Recorded {
    /// Tells the server of `mailbox` to begin.
    pub(super) fn begin(mailbox: &Arc<Mailbox>) -> Self {
        let (recording, from) = Recording::begin();
        mailbox.send(Mail::Record(recording));
        Self { from, mailbox: Arc::downgrade(mailbox) }
    }

    /// Tells the server to install a working set ahead of its guest.
    pub(crate) fn install_ahead(&self, set: &Arc<WorkingSet>) {
        if let Some(mailbox) = self.mailbox.upgrade() {
            mailbox.send(Mail::Ahead(Arc::clone(set)));
        }
    }

    /// Tells the server to install all of its guest's `pages`, behind those it was told of before.
    pub(crate) fn install_all(&self, pages: u32) {
        if let Some(mailbox) = self.mailbox.upgrade() {
            mailbox.send(Mail::Prefetch(PageSet::full(pages)));
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
