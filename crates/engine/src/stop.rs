//! The signal that ends background work; background work waits on time only through it.

use std::sync::Arc;
use std::time::Duration;

use crate::limits;
use crate::sync::{Condvar, Mutex, lock};

/// Said once, heard by everybody. Clones are the same word.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<Said>);

#[derive(Debug, Default)]
struct Said {
    said: Mutex<bool>,
    heard: Condvar,
}

/// The work was told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the engine is ending")]
pub struct Stopped;

impl Stop {
    /// Says it.
    pub fn say(&self) {
        *lock(&self.0.said) = true;
        self.0.heard.notify_all();
    }

    /// True once it was given.
    pub fn is_said(&self) -> bool {
        *lock(&self.0.said)
    }

    /// Does `work` unless the word is said before it is done, which is the error; what of it was begun is dropped.
    pub async fn unless_said<T>(&self, work: impl Future<Output = T>) -> Result<T, Stopped> {
        let mut work = std::pin::pin!(work);
        loop {
            match tokio::time::timeout(limits::STOP_HEARD_WITHIN, &mut work).await {
                Ok(done) => return Ok(done),
                Err(_) if self.is_said() => return Err(Stopped),
                Err(_) => {}
            }
        }
    }

    /// Waits for `pause`, or less if the word is said, which is the error.
    pub fn wait(&self, pause: Duration) -> Result<(), Stopped> {
        let said = lock(&self.0.said);
        let (said, _) = self
            .0
            .heard
            .wait_timeout_while(said, pause, |said| !*said)
            .expect("no thread panics while it holds a lock");
        if *said { Err(Stopped) } else { Ok(()) }
    }
}
