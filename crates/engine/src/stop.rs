//! The stop signal of background work, which can be awaited together with anything else.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// A signal that is given once and seen by all clones.
#[derive(Debug, Clone, Default)]
pub struct Stop(CancellationToken);

/// The stop signal was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the engine is ending")]
pub struct Stopped;

impl Stop {
    /// Gives the signal.
    pub fn say(&self) {
        self.0.cancel();
    }

    /// True once it was given.
    pub fn is_said(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Does `work` unless the signal is given before its end. That is the error, and `work` is dropped where it was:
    /// none of its steps begins after the signal.
    pub async fn unless_said<T>(&self, work: impl Future<Output = T>) -> Result<T, Stopped> {
        tokio::select! {
            biased;
            () = self.0.cancelled() => Err(Stopped),
            done = work => Ok(done),
        }
    }

    /// Waits for `pause`; an error, at once, if the signal is given.
    pub async fn wait(&self, pause: Duration) -> Result<(), Stopped> {
        self.unless_said(tokio::time::sleep(pause)).await
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::sync::block_on;

    #[test]
    fn work_is_dropped_where_it_was_when_the_word_is_said() {
        let stop = Stop::default();
        let (held, dropped) = tokio::sync::oneshot::channel::<()>();
        let heard = std::thread::scope(|scope| {
            let work = scope.spawn(|| {
                block_on(stop.unless_said(async {
                    let _held = held;
                    std::future::pending::<()>().await;
                }))
            });
            stop.say();
            work.join().expect("it heard")
        });
        assert_eq!(heard, Err(Stopped));
        assert!(block_on(dropped).is_err(), "the work holds nothing any more");
    }

    #[test]
    fn work_that_could_go_on_when_the_word_is_said_does_not() {
        let stop = Stop::default();
        let (go_on, may_go_on) = tokio::sync::oneshot::channel::<()>();
        let mut has_gone_on = false;
        let mut work = Box::pin(stop.unless_said(async {
            may_go_on.await.ok();
            has_gone_on = true;
        }));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(work.as_mut().poll(&mut context).is_pending());
        stop.say();
        go_on.send(()).expect("it waits");
        assert_eq!(block_on(work), Err(Stopped));
        assert!(!has_gone_on);
    }

    #[test]
    fn work_that_is_begun_after_the_word_is_not_done() {
        let stop = Stop::default();
        assert_eq!(block_on(stop.unless_said(async { 7 })), Ok(7));
        stop.say();
        assert_eq!(block_on(stop.unless_said(async { 7 })), Err(Stopped));
    }
}
