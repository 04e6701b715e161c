//! The thread that closes descriptors: the last one of a large memory file takes a tenth of a second a GiB.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Sender, channel};
use std::thread;

/// Closes what it is given, on a thread of its own. The thread ends with the process or once this is dropped.
#[derive(Debug)]
pub(super) struct Closer {
    sender: Option<Sender<Vec<OwnedFd>>>,
}

impl Closer {
    /// Closes here and now where no thread can be started.
    pub(super) fn start() -> Self {
        let (sender, receiver) = channel::<Vec<OwnedFd>>();
        let close = move || receiver.iter().for_each(drop);
        let started = thread::Builder::new().name("closer".to_owned()).stack_size(64 << 10).spawn(close);
        Self { sender: started.is_ok().then_some(sender) }
    }

    pub(super) fn close(&self, fds: Vec<OwnedFd>) {
        if let Some(sender) = self.sender.as_ref().filter(|_| !fds.is_empty()) {
            // A thread that is gone gives them back, and they are closed here.
            drop(sender.send(fds));
        }
    }
}
