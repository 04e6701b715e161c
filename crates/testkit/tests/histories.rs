//! Random histories over the real engine, judged page by page, other ones each time. `REKINDLE_SEED` replays one;
//! `REKINDLE_HISTORIES` says how many are run, however long that takes. With both, they begin with that seed, so that a
//! long run can be made in parts.

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rekindle_testkit::history::{self, Tally};

const OPERATIONS: u32 = 160;

/// Default number of histories, and the time in which new ones are begun.
const HISTORIES: u64 = 120;
const BEGUN_WITHIN: Duration = Duration::from_secs(60);

/// A long run says so often how far it is.
const TOLD_EVERY: u64 = 1000;

/// Histories at once: they mostly wait.
const WORKERS: usize = 8;

#[test]
fn random_histories_give_every_guest_the_pages_of_the_model() {
    let (seed, asked) = (number("REKINDLE_SEED"), number("REKINDLE_HISTORIES"));
    let asked = asked.or(seed.map(|_| 1));
    let first = seed.unwrap_or_else(fresh_seed);
    let (begun, next, done) = (Instant::now(), AtomicU64::new(0), AtomicU64::new(0));
    let sum = Mutex::new(Tally::default());
    let work = || loop {
        let next = next.fetch_add(1, Ordering::Relaxed);
        let over = asked.is_none() && begun.elapsed() > BEGUN_WITHIN;
        if over || next >= asked.unwrap_or(HISTORIES) {
            return;
        }
        let tally = run(first.wrapping_add(next));
        let mut sum = sum.lock().expect("whoever panics ends the test");
        sum.add(tally);
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if done.is_multiple_of(TOLD_EVERY) {
            say(&format!("{done} histories: {sum:?}"));
        }
    };
    say(&format!("histories from seed {first} on; replay one with REKINDLE_SEED"));
    std::thread::scope(|scope| (0..WORKERS).for_each(|_| drop(scope.spawn(work))));
    let sum = sum.into_inner().expect("whoever panics ends the test");
    say(&format!("{sum:?}"));
    say(&sum.rates());
}

fn run(seed: u64) -> Tally {
    let outcome = history::run(seed, OPERATIONS);
    if let Err(failure) = &outcome {
        say(&failure.to_string());
    }
    outcome.expect("every page is the model's")
}

/// Prints even where output is captured, so that the seed of a history that hangs is known.
fn say(what: &str) {
    writeln!(std::io::stderr(), "{what}").ok();
}

fn fresh_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Far apart, so that two runs have different histories.
    since.as_secs() << 32 | u64::from(since.subsec_nanos())
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().expect("a number"))
}
