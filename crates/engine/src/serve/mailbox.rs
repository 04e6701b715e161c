//! Messages to a handler thread: other threads leave them here and wake the thread, without waiting.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rekindle_kernel::wakeup::Wakeup;

use super::pending::FrameKey;
use super::touches::Recording;
use crate::fetch::FrameWaiter;
use crate::frame::FrameNumber;
use crate::identity::LayerId;
use crate::page_set::PageSet;
use crate::sync::{Mutex, lock};
use crate::working_set::WorkingSet;

/// One message.
#[derive(Debug)]
pub(super) enum Mail {
    /// A frame can be read now.
    FrameReady(FrameKey),
    /// A try to fetch a frame failed; there will be another.
    FrameFailing(FrameKey, String),
    /// Pages to install ahead.
    Prefetch(PageSet),
    /// Runs to install ahead, in their order.
    Ahead(Arc<WorkingSet>),
    /// Record the guest's touches from now on.
    Record(Recording),
    /// End the recording, and hand it over.
    EndRecording,
    /// Read the events that are left, and end the epoch.
    EndEpoch,
}

/// The mailbox of one handler thread.
#[derive(Debug)]
pub(super) struct Mailbox {
    mail: Mutex<Vec<Mail>>,
    wakeup: Wakeup,
}

impl Mailbox {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { mail: Mutex::new(Vec::new()), wakeup: Wakeup::new()? })
    }

    /// Leaves `mail` and wakes the thread. The wake comes after the mail, so none is missed.
    pub(super) fn send(&self, mail: Mail) {
        lock(&self.mail).push(mail);
        self.wakeup.wake();
    }

    /// Takes all mail. The wake is cleared first, so that mail that arrives meanwhile wakes the thread again.
    pub(super) fn take(&self) -> Vec<Mail> {
        self.wakeup.clear();
        std::mem::take(&mut lock(&self.mail))
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wakeup.as_fd()
    }
}

impl FrameWaiter for Mailbox {
    fn frame_ready(&self, layer: LayerId, frame: FrameNumber) {
        self.send(Mail::FrameReady((layer, frame)));
    }

    fn frame_failing(&self, layer: LayerId, frame: FrameNumber, reason: &str) {
        self.send(Mail::FrameFailing((layer, frame), reason.to_owned()));
    }

    fn frame_silent(&self, layer: LayerId, frame: FrameNumber, reason: &str) {
        self.frame_failing(layer, frame, reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rekindle_kernel::wakeup::wait_readable;

    #[test]
    fn mail_wakes_once_and_is_taken_in_order() {
        let mailbox = Mailbox::new().unwrap();
        let key = (LayerId::from_bytes([1; 32]), FrameNumber::new(3));
        mailbox.frame_failing(key.0, key.1, "away");
        mailbox.frame_ready(key.0, key.1);
        assert!(wait_readable([Some(mailbox.as_fd())], None).unwrap()[0].readable);
        let mail = mailbox.take();
        assert!(
            matches!(&mail[0], Mail::FrameFailing(failing, reason) if *failing == key && reason == "away")
        );
        assert!(matches!(&mail[1], Mail::FrameReady(ready) if *ready == key));
        let idle = wait_readable([Some(mailbox.as_fd())], Some(std::time::Duration::ZERO)).unwrap();
        assert!(!idle[0].readable);
        assert!(mailbox.take().is_empty());
    }
}
