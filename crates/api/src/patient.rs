//! A connection that is closed if its peer takes no data for too long.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// A connection whose writes fail after the peer has taken no byte for a while.
///
/// Without it a peer that asks and never reads would hold its place for good: nothing else bounds how long an answer
/// may take to be taken.
#[derive(Debug)]
pub(super) struct Patient<C> {
    connection: C,
    within: Duration,
    /// Runs out when the peer has taken too long; meaningful while `waits`.
    limit: Pin<Box<Sleep>>,
    waits: bool,
}

impl<C> Patient<C> {
    pub(super) fn new(connection: C, within: Duration) -> Self {
        Self { connection, within, limit: Box::pin(sleep(within)), waits: false }
    }

    /// Passes on what a write came to, or fails it when it has waited too long.
    fn judge<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waits = false;
            return written;
        }
        if !self.waits {
            self.waits = true;
            self.limit.as_mut().reset(Instant::now() + self.within);
        }
        self.limit.as_mut().poll(context).map(|()| {
            Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes nothing of what is written to it"))
        })
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Patient<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_read(context, into)
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Patient<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.connection).poll_write(context, bytes);
        self.judge(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.connection).poll_flush(context);
        self.judge(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.connection).poll_shutdown(context);
        self.judge(context, shut)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(test);
    }

    #[test]
    fn a_peer_that_takes_nothing_is_given_up() {
        run(async {
            let (ours, _theirs) = duplex(4);
            let mut patient = Patient::new(ours, Duration::from_millis(1));
            let error = patient.write_all(b"more than fits").await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        });
    }

    #[test]
    fn a_peer_that_takes_something_is_waited_for() {
        run(async {
            let (ours, mut theirs) = duplex(1);
            let mut patient = Patient::new(ours, Duration::from_secs(3600));
            let writing = async {
                patient.write_all(b"letter by letter").await.unwrap();
                patient.shutdown().await.unwrap();
            };
            let mut taken = Vec::new();
            let (_, read) = tokio::join!(writing, theirs.read_to_end(&mut taken));
            assert_eq!((read.unwrap(), taken.as_slice()), (16, b"letter by letter".as_slice()));
        });
    }
}
