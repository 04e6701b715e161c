//! Fetches each frame once for all its waiters: the waiters of each frame, and the order in which they are told.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use crate::frame::FrameNumber;
use crate::identity::LayerId;
use crate::limits;
use crate::sync::{Mutex, lock};

/// A waiter for a frame. Called from a foreign thread, or from the asking one if the frame is there already; it must
/// not block.
pub trait FrameWaiter: Send + Sync {
    /// The frame is verified; it was in memory a moment ago.
    fn frame_ready(&self, layer: LayerId, frame: FrameNumber);

    /// A try failed, and there will be another while the waiter lives.
    fn frame_failing(&self, layer: LayerId, frame: FrameNumber, reason: &str);

    /// A try has been without an answer for a while, and goes on. Of no interest to a waiter that has all the time.
    fn frame_silent(&self, _layer: LayerId, _frame: FrameNumber, _reason: &str) {}
}

/// A frame of a layer.
pub type FrameKey = (LayerId, FrameNumber);

type Waiters = Vec<Weak<dyn FrameWaiter>>;

/// The frames being fetched, each with those who wait for it.
#[derive(Default)]
pub struct SingleFlight(Mutex<HashMap<FrameKey, Waiters>>);

impl SingleFlight {
    /// Adds one who waits. True if the frame is not being fetched yet: then the caller must run [`Self::fetch`].
    #[must_use = "the first who waits is to fetch"]
    pub fn join(&self, key: FrameKey, waiter: Weak<dyn FrameWaiter>) -> bool {
        let mut awaited = lock(&self.0);
        let first = !awaited.contains_key(&key);
        awaited.entry(key).or_default().push(waiter);
        first
    }

    /// Takes over a frame without waiters, to be fetched beside another. False if it is being fetched.
    #[must_use = "a claimed frame must be fetched or given back"]
    pub fn claim(&self, key: FrameKey) -> bool {
        let mut awaited = lock(&self.0);
        let free = !awaited.contains_key(&key);
        if free {
            awaited.insert(key, Waiters::new());
        }
        free
    }

    /// Gives back a claimed frame that was not fetched. True if it has waiters by now: then the caller must run
    /// [`Self::fetch`].
    #[must_use = "the caller must fetch if this is true"]
    pub fn give_back(&self, key: FrameKey) -> bool {
        self.is_awaited(key)
    }

    /// Tries until the frame is there or its last waiter is gone, with a longer `pause` after each failure. Waiters are
    /// told of every failure, and of the success.
    pub async fn fetch<A, P, E>(&self, key: FrameKey, attempt: impl Fn() -> A, pause: impl Fn(Duration) -> P)
    where
        A: Future<Output = Result<(), E>>,
        P: Future<Output = ()>,
        E: fmt::Display,
    {
        let mut pause_time = limits::FETCH_RETRY_FIRST;
        loop {
            match attempt().await {
                Ok(()) => return self.succeeded(key),
                Err(error) => {
                    tracing::warn!(layer = %key.0, frame = %key.1, %error, "a frame could not be fetched");
                    if !self.failed(key, &error.to_string()) {
                        return;
                    }
                }
            }
            pause(pause_time).await;
            pause_time = (pause_time * 2).min(limits::FETCH_RETRY_LAST);
            if !self.is_awaited(key) {
                return;
            }
        }
    }

    /// Tells all who wait for a frame that its source does not answer.
    pub fn silent(&self, key: FrameKey, reason: &str) {
        for waiter in self.living(key) {
            waiter.frame_silent(key.0, key.1, reason);
        }
    }

    /// Tells all who wait for a frame that its fetch ended without an answer; who asks from then on starts a new one.
    pub fn give_up(&self, key: FrameKey, reason: &str) {
        let waiters = lock(&self.0).remove(&key).unwrap_or_default();
        for waiter in waiters.iter().filter_map(Weak::upgrade) {
            waiter.frame_failing(key.0, key.1, reason);
        }
    }

    /// Frames being fetched now.
    pub fn under_way(&self) -> usize {
        lock(&self.0).len()
    }

    /// Forgets the frame before anybody is told: who asks from then on starts a new fetch, and is not lost.
    pub fn succeeded(&self, key: FrameKey) {
        let waiters = lock(&self.0).remove(&key).unwrap_or_default();
        for waiter in waiters.iter().filter_map(Weak::upgrade) {
            waiter.frame_ready(key.0, key.1);
        }
    }

    /// False if the frame had no waiter left.
    fn failed(&self, key: FrameKey, reason: &str) -> bool {
        let waiters = self.living(key);
        for waiter in &waiters {
            waiter.frame_failing(key.0, key.1, reason);
        }
        !waiters.is_empty()
    }

    fn is_awaited(&self, key: FrameKey) -> bool {
        !self.living(key).is_empty()
    }

    /// Those who still wait; the others are forgotten, and the frame with the last of them.
    fn living(&self, key: FrameKey) -> Vec<Arc<dyn FrameWaiter>> {
        let mut awaited = lock(&self.0);
        let Some(waiters) = awaited.get_mut(&key) else { return Vec::new() };
        let mut living = Vec::with_capacity(waiters.len());
        waiters.retain(|waiter| {
            let upgraded = waiter.upgrade();
            let lives = upgraded.is_some();
            living.extend(upgraded);
            lives
        });
        if living.is_empty() {
            awaited.remove(&key);
        }
        living
    }
}

impl fmt::Debug for SingleFlight {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_set().entries(lock(&self.0).keys()).finish()
    }
}

/// The answer to one caller that waits for a frame.
#[derive(Debug, Default)]
pub struct Answer {
    outcome: Mutex<Option<Result<(), String>>>,
    answered: Notify,
}

impl Answer {
    /// Waits for the first thing said: success, or why the first try failed.
    pub async fn said(&self) -> Result<(), String> {
        loop {
            if let Some(outcome) = lock(&self.outcome).take() {
                return outcome;
            }
            self.answered.notified().await;
        }
    }

    fn set(&self, outcome: Result<(), String>) {
        *lock(&self.outcome) = Some(outcome);
        self.answered.notify_one();
    }
}

impl FrameWaiter for Answer {
    fn frame_ready(&self, _: LayerId, _: FrameNumber) {
        self.set(Ok(()));
    }

    fn frame_failing(&self, _: LayerId, _: FrameNumber, reason: &str) {
        self.set(Err(reason.to_owned()));
    }
}
