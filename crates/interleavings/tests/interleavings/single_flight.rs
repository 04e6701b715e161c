//! Fetching a frame once for all its waiters.

use std::future;
use std::sync::{Arc, Weak};

use engine_under_shuttle::fetch::FrameKey;
use engine_under_shuttle::frame::FrameNumber;
use engine_under_shuttle::identity::LayerId;
use engine_under_shuttle::single_flight::{Answer, SingleFlight, Waiter};
use shuttle::sync::Mutex;
use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use shuttle::sync::mpsc::{Sender, channel};
use shuttle::thread;

use crate::schedule::{every, random};

fn key() -> FrameKey {
    (LayerId::from_bytes([5; 32]).into(), FrameNumber::new(0))
}

/// A source that fails a few times, counts its readers, and remembers whether the frame is here.
#[derive(Default)]
struct Source {
    flight: SingleFlight<FrameKey, &'static str>,
    failures_left: AtomicU64,
    at_once: AtomicU64,
    here: AtomicBool,
    fetched: AtomicU64,
}

impl Source {
    fn failing(times: u64) -> Arc<Self> {
        Arc::new(Self { failures_left: AtomicU64::new(times), ..Self::default() })
    }

    /// A fetcher's work for a request, on a thread instead of in a task.
    fn request(self: &Arc<Self>, waiter: Weak<dyn Waiter<FrameKey, &'static str>>) {
        if self.flight.join(key(), waiter) {
            let source = Arc::clone(self);
            drop(thread::spawn(move || {
                let attempt = || future::ready(source.attempt());
                let pause = |_| {
                    thread::yield_now();
                    future::ready(())
                };
                shuttle::future::block_on(source.flight.fetch(key(), attempt, pause));
            }));
        }
    }

    /// One try. A frame that is here already costs nothing, like a verified one.
    fn attempt(&self) -> Result<(), &'static str> {
        assert_eq!(self.at_once.fetch_add(1, Ordering::SeqCst), 0, "one frame is fetched twice at once");
        thread::yield_now();
        let left = self.failures_left.load(Ordering::SeqCst);
        let outcome = if left > 0 {
            self.failures_left.store(left - 1, Ordering::SeqCst);
            Err("away")
        } else {
            if !self.here.swap(true, Ordering::SeqCst) {
                self.fetched.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        };
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        outcome
    }
}

/// A waiter that stays until its frame is there, like a guest.
struct Patient {
    failures: AtomicU64,
    ready: Mutex<Sender<()>>,
}

impl Waiter<FrameKey, &'static str> for Patient {
    fn ready(&self, _: FrameKey) {
        let ready = self.ready.lock().expect("no thread panics while it holds a lock");
        ready.send(()).expect("it is told once, and waits for it");
    }

    fn failing(&self, _: FrameKey, error: &Arc<&'static str>) {
        assert_eq!(**error, "away");
        self.failures.fetch_add(1, Ordering::SeqCst);
    }
}

fn wait_patiently(source: &Arc<Source>) {
    let (ready, told) = channel();
    let waiter = Arc::new(Patient { failures: AtomicU64::new(0), ready: Mutex::new(ready) });
    let weak: Weak<Patient> = Arc::downgrade(&waiter);
    source.request(weak);
    told.recv().expect("the waiter lives");
    assert!(source.here.load(Ordering::SeqCst), "told before the frame was there");
}

fn on_threads(count: usize, source: &Arc<Source>, act: fn(&Arc<Source>)) {
    let threads: Vec<_> = (0..count)
        .map(|_| {
            let source = Arc::clone(source);
            thread::spawn(move || act(&source))
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("it was answered"));
}

/// Case 24.
#[test]
fn a_frame_is_fetched_once_and_everybody_is_told() {
    random(5000, || {
        let source = Source::failing(0);
        on_threads(4, &source, wait_patiently);
        assert_eq!((source.fetched.load(Ordering::SeqCst), source.flight.under_way()), (1, 0));
    });
}

/// A waiter that only remembers its answer.
#[derive(Default)]
struct Told(AtomicBool);

impl Waiter<FrameKey, &'static str> for Told {
    fn ready(&self, _: FrameKey) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn failing(&self, _: FrameKey, _: &Arc<&'static str>) {}
}

/// Case 24, in every order: one who joins while a fetch ends is told by it, or is to fetch anew.
#[test]
fn who_joins_while_a_fetch_ends_is_never_forgotten() {
    every(100_000, || {
        let flight = Arc::new(SingleFlight::<FrameKey, &'static str>::default());
        let [early, late] = [Arc::new(Told::default()), Arc::new(Told::default())];
        let weak: Weak<Told> = Arc::downgrade(&early);
        assert!(flight.join(key(), weak), "nobody fetches it yet");
        let ending = {
            let flight = Arc::clone(&flight);
            thread::spawn(move || flight.succeeded(key()))
        };
        let weak: Weak<Told> = Arc::downgrade(&late);
        let is_to_fetch = flight.join(key(), weak);
        ending.join().expect("the fetch ended");
        assert!(early.0.load(Ordering::SeqCst), "the first was not told");
        assert_ne!(late.0.load(Ordering::SeqCst), is_to_fetch, "told, or to fetch: one of both");
    });
}

/// Case 24, in every order: a frame that was to be fetched beside another, and was not, is fetched by just one.
#[test]
fn who_joins_while_a_claim_is_given_back_is_never_forgotten() {
    every(100_000, || {
        let flight = Arc::new(SingleFlight::<FrameKey, &'static str>::default());
        assert!(flight.claim(key()), "nobody fetches it yet");
        let giving_back = {
            let flight = Arc::clone(&flight);
            thread::spawn(move || flight.give_back(key()))
        };
        let waiter = Arc::new(Told::default());
        let weak: Weak<Told> = Arc::downgrade(&waiter);
        let is_to_fetch = flight.join(key(), weak);
        let claimer_is_to_fetch = giving_back.join().expect("it was given back");
        assert_ne!(is_to_fetch, claimer_is_to_fetch, "one of both");
    });
}

/// Case 28.
#[test]
fn a_failure_forgets_nobody_who_still_waits() {
    random(5000, || {
        let source = Source::failing(3);
        on_threads(3, &source, wait_patiently);
        assert_eq!((source.fetched.load(Ordering::SeqCst), source.flight.under_way()), (1, 0));
    });
}

#[test]
fn a_blocking_caller_hears_of_the_first_failure_and_may_ask_again() {
    random(5000, || {
        let source = Source::failing(2);
        on_threads(3, &source, |source| {
            loop {
                let answer = Arc::new(Answer::default());
                let weak: Weak<Answer<&'static str>> = Arc::downgrade(&answer);
                source.request(weak);
                match shuttle::future::block_on(answer.said()) {
                    Ok(()) => return,
                    Err(error) => assert_eq!(*error, "away"),
                }
            }
        });
        assert_eq!(source.fetched.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn a_frame_that_nobody_waits_for_any_more_is_given_up_and_can_be_asked_for_again() {
    random(5000, || {
        let source = Source::failing(2);
        on_threads(2, &source, |source| {
            let waiter: Arc<Answer<&'static str>> = Arc::default();
            let weak: Weak<Answer<&'static str>> = Arc::downgrade(&waiter);
            source.request(weak);
            thread::yield_now();
            drop(waiter);
        });
        wait_patiently(&source);
        assert_eq!(source.fetched.load(Ordering::SeqCst), 1);
    });
}
