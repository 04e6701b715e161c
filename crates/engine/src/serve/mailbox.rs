//! Messages to a handler thread: other threads leave them here and wake the thread, without waiting.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use rekindle_kernel::wakeup::Wakeup;

use super::recording::Recording;
use crate::fetch::{FetchError, FrameKey};
use crate::page_set::PageSet;
use crate::remote_pages::FramesOf;
use crate::single_flight::Waiter;
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

impl Waiter<FrameKey, FetchError> for Mailbox {
    fn ready(&self, key: FrameKey) {
        self.send(Mail::FrameReady(key));
    }

    fn failing(&self, key: FrameKey, error: &Arc<FetchError>) {
        self.send(Mail::FrameFailing(key, error.to_string()));
    }

    fn silent(&self, key: FrameKey, waited: Duration) {
        let seconds = waited.as_secs();
        let reason = match key.0 {
            FramesOf::Layer(_) => {
                format!("neither this disk nor the store has answered for {seconds} s; it is waited for")
            }
            FramesOf::Remote(of) => {
                format!("the node that has {of} has not answered for {seconds} s; it is waited for")
            }
        };
        self.send(Mail::FrameFailing(key, reason));
    }
}

#[cfg(test)]
mod tests {
    use rekindle_kernel::wakeup::wait_readable;

    use super::*;
    use crate::frame::FrameNumber;
    use crate::identity::LayerId;

    #[test]
    fn mail_wakes_once_and_is_taken_in_order() {
        let mailbox = Mailbox::new().unwrap();
        let layer = LayerId::from_bytes([1; 32]);
        let key = (FramesOf::Layer(layer), FrameNumber::new(3));
        mailbox.silent(key, Duration::from_secs(2));
        mailbox.failing(key, &Arc::new(FetchError::CutShort { of: layer.into() }));
        mailbox.ready(key);
        assert!(wait_readable([Some(mailbox.as_fd())], None).unwrap()[0].readable);
        let mail = mailbox.take();
        assert!(
            matches!(&mail[0], Mail::FrameFailing(failing, reason) if *failing == key && reason.contains("for 2 s"))
        );
        assert!(
            matches!(&mail[1], Mail::FrameFailing(failing, reason) if *failing == key && reason.contains("cut short"))
        );
        assert!(matches!(&mail[2], Mail::FrameReady(ready) if *ready == key));
        let idle = wait_readable([Some(mailbox.as_fd())], Some(std::time::Duration::ZERO)).unwrap();
        assert!(!idle[0].readable);
        assert!(mailbox.take().is_empty());
    }
}
