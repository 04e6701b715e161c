//! Does each fetch once for all who wait for it: those who wait for each key, and the order in which they are told.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use crate::limits;
use crate::sync::{Mutex, lock};
use crate::urgency::{Class, Urgency};

/// A waiter for what a key names. Called from a foreign thread, or from the asking one if it is there already; it must
/// not block.
pub trait Waiter<K, E>: Send + Sync {
    /// It is there; it was in memory a moment ago.
    fn ready(&self, key: K);

    /// A try failed, and there will be another while the waiter lives.
    fn failing(&self, key: K, error: &Arc<E>);

    /// A try has been without an answer for this time, and goes on. Of no interest to a waiter that has all the time.
    fn silent(&self, _key: K, _waited: Duration) {}
}

type Waiters<K, E> = Vec<Weak<dyn Waiter<K, E>>>;

/// A key being fetched.
struct Fetched<K, E> {
    waiters: Waiters<K, E>,
    /// The urgency of the work that fetches it, once it has begun.
    work: Option<Arc<Urgency>>,
    /// The most urgent class of those who joined.
    wanted_as: Option<Class>,
}

/// The keys being fetched, each with those who wait for it.
pub struct SingleFlight<K, E>(Mutex<HashMap<K, Fetched<K, E>>>);

impl<K, E> Default for Fetched<K, E> {
    fn default() -> Self {
        Self { waiters: Waiters::new(), work: None, wanted_as: None }
    }
}

impl<K, E> Default for SingleFlight<K, E> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<K: Copy + Eq + Hash + fmt::Debug, E> SingleFlight<K, E> {
    /// Adds one who waits. True if the key is not being fetched yet: then the caller must fetch it.
    #[must_use = "the first who waits is to fetch"]
    pub fn join(&self, key: K, waiter: Weak<dyn Waiter<K, E>>) -> bool {
        let mut awaited = lock(&self.0);
        let first = !awaited.contains_key(&key);
        awaited.entry(key).or_default().waiters.push(waiter);
        first
    }

    /// Makes the work that fetches a key as urgent as `class`, also if it has not begun.
    pub(crate) fn hurry(&self, key: K, class: Class) {
        if let Some(fetched) = lock(&self.0).get_mut(&key) {
            fetched.wanted_as = Some(fetched.wanted_as.map_or(class, |wanted| wanted.min(class)));
            fetched.work.as_ref().inspect(|work| work.raise(class));
        }
    }

    /// Notes the work that fetches keys from now on. It becomes as urgent as those who joined.
    pub(crate) fn work_on(&self, keys: impl IntoIterator<Item = K>, work: &Arc<Urgency>) {
        let mut awaited = lock(&self.0);
        for key in keys {
            if let Some(fetched) = awaited.get_mut(&key) {
                fetched.work = Some(Arc::clone(work));
                fetched.wanted_as.inspect(|class| work.raise(*class));
            }
        }
    }

    /// Takes over a key without waiters, to be fetched beside another. False if it is being fetched.
    #[must_use = "a claimed key must be fetched or given back"]
    pub fn claim(&self, key: K) -> bool {
        let mut awaited = lock(&self.0);
        let free = !awaited.contains_key(&key);
        if free {
            awaited.insert(key, Fetched::default());
        }
        free
    }

    /// Gives back a claimed key that was not fetched. True if it has waiters by now: then the caller must run
    /// [`Self::fetch`].
    #[must_use = "the caller must fetch if this is true"]
    pub fn give_back(&self, key: K) -> bool {
        self.is_awaited(key)
    }

    /// Tries until it is there or its last waiter is gone, with a longer `pause` after each failure. Waiters are told of
    /// every failure, and of the success.
    pub async fn fetch<A, P>(&self, key: K, attempt: impl Fn() -> A, pause: impl Fn(Duration) -> P)
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
                    tracing::warn!(?key, %error, "a frame could not be fetched");
                    if !self.failed(key, &Arc::new(error)) {
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

    /// Tells all who wait for a key that its source has not answered for this time.
    pub fn silent(&self, key: K, waited: Duration) {
        for waiter in self.living(key) {
            waiter.silent(key, waited);
        }
    }

    /// Tells all who wait for a key that its fetch ended without success; who asks from then on starts a new one.
    pub fn give_up(&self, key: K, error: &Arc<E>) {
        let fetched = lock(&self.0).remove(&key).unwrap_or_default();
        for waiter in fetched.waiters.iter().filter_map(Weak::upgrade) {
            waiter.failing(key, error);
        }
    }

    /// Keys being fetched now.
    pub fn under_way(&self) -> usize {
        lock(&self.0).len()
    }

    /// Forgets the key before anybody is told: who asks from then on starts a new fetch, and is not lost.
    pub fn succeeded(&self, key: K) {
        let fetched = lock(&self.0).remove(&key).unwrap_or_default();
        for waiter in fetched.waiters.iter().filter_map(Weak::upgrade) {
            waiter.ready(key);
        }
    }

    /// False if the key had no waiter left.
    fn failed(&self, key: K, error: &Arc<E>) -> bool {
        let waiters = self.living(key);
        for waiter in &waiters {
            waiter.failing(key, error);
        }
        !waiters.is_empty()
    }

    fn is_awaited(&self, key: K) -> bool {
        !self.living(key).is_empty()
    }

    /// Those who still wait; the others are forgotten, and the key with the last of them.
    fn living(&self, key: K) -> Vec<Arc<dyn Waiter<K, E>>> {
        let mut awaited = lock(&self.0);
        let Some(Fetched { waiters, .. }) = awaited.get_mut(&key) else { return Vec::new() };
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

impl<K: fmt::Debug, E> fmt::Debug for SingleFlight<K, E> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_set().entries(lock(&self.0).keys()).finish()
    }
}

/// Keys that one piece of work fetches. Those it has not done when its last part is dropped, by a panic or with the
/// runtime, are given up: only their own waiters are told.
pub(crate) struct Claimed<K: Copy + Eq + Hash + fmt::Debug, E> {
    flight: Arc<SingleFlight<K, E>>,
    keys: Mutex<HashSet<K>>,
    cut_short: fn(K) -> E,
}

impl<K: Copy + Eq + Hash + fmt::Debug, E> Claimed<K, E> {
    /// Keys that the caller joined first, or claimed; `cut_short` is the error for those that are given up.
    pub(crate) fn new(flight: &Arc<SingleFlight<K, E>>, keys: Vec<K>, cut_short: fn(K) -> E) -> Arc<Self> {
        let keys = Mutex::new(keys.into_iter().collect());
        Arc::new(Self { flight: Arc::clone(flight), keys, cut_short })
    }

    /// A key leaves this work: it is there, has no waiter left, or others fetch it. False if it is not of this work.
    pub(crate) fn let_go(&self, key: K) -> bool {
        lock(&self.keys).remove(&key)
    }

    /// True if a key has not left it.
    pub(crate) fn has(&self, key: K) -> bool {
        lock(&self.keys).contains(&key)
    }

    /// The keys that have not left it.
    pub(crate) fn rest(&self) -> Vec<K> {
        lock(&self.keys).iter().copied().collect()
    }
}

impl<K: Copy + Eq + Hash + fmt::Debug, E> Drop for Claimed<K, E> {
    fn drop(&mut self) {
        for key in std::mem::take(&mut *lock(&self.keys)) {
            self.flight.give_up(key, &Arc::new((self.cut_short)(key)));
        }
    }
}

/// The answer to one caller that waits for a key.
#[derive(Debug)]
pub struct Answer<E> {
    outcome: Mutex<Option<Result<(), Arc<E>>>>,
    answered: Notify,
}

impl<E> Default for Answer<E> {
    fn default() -> Self {
        Self { outcome: Mutex::new(None), answered: Notify::new() }
    }
}

impl<E> Answer<E> {
    /// Waits for the first thing said: success, or why the first try failed.
    pub async fn said(&self) -> Result<(), Arc<E>> {
        loop {
            if let Some(outcome) = lock(&self.outcome).take() {
                return outcome;
            }
            self.answered.notified().await;
        }
    }

    fn set(&self, outcome: Result<(), Arc<E>>) {
        *lock(&self.outcome) = Some(outcome);
        self.answered.notify_one();
    }
}

impl<K, E: Send + Sync> Waiter<K, E> for Answer<E> {
    fn ready(&self, _: K) {
        self.set(Ok(()));
    }

    fn failing(&self, _: K, error: &Arc<E>) {
        self.set(Err(Arc::clone(error)));
    }
}
