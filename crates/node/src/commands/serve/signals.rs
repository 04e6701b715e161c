//! The daemon's signals, and their meanings.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Meaning of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// To read settings again.
    Reload,
    /// To end, and which signal said so.
    End(&'static str),
}

/// The signals that mean something here.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    /// A file would have become larger than the limit of this process: taken, so that it is the error of one write.
    _file_size: Signal,
}

impl Signals {
    /// Takes them: from now on they end nothing by themselves. Called on a runtime.
    pub(super) fn take() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            _file_size: signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?,
        })
    }

    /// The next wish.
    pub(super) async fn next(&mut self) -> Wish {
        let Self { terminate, interrupt, hang_up, _file_size: _ } = self;
        tokio::select! {
            _ = terminate.recv() => Wish::End("SIGTERM"),
            _ = interrupt.recv() => Wish::End("SIGINT"),
            _ = hang_up.recv() => Wish::Reload,
        }
    }

    /// Lets the next SIGTERM or SIGINT end this process as it stands, which loses nothing.
    pub(super) fn end_at_once_on_the_next(&mut self) {
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            if let Ok(mut again) = signal(kind) {
                tokio::spawn(async move {
                    again.recv().await;
                    eprintln!("rekindle: ended at once, as asked twice");
                    std::process::exit(2);
                });
            }
        }
    }
}
