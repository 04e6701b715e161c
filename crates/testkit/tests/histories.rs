//! Random histories over the real engine, judged page by page. `REKINDLE_SEED` replays one, `REKINDLE_HISTORIES` says
//! how many are run otherwise.

use rekindle_testkit::history;

const OPERATIONS: u32 = 160;

#[test]
fn random_histories_give_every_guest_the_pages_of_the_model() {
    if let Some(seed) = number("REKINDLE_SEED") {
        run(seed);
        return;
    }
    let histories = number("REKINDLE_HISTORIES").unwrap_or(40);
    (0..histories).for_each(run);
}

fn run(seed: u64) {
    let outcome = history::run(seed, OPERATIONS);
    assert!(outcome.is_ok(), "{}", outcome.err().map_or_else(String::new, |failure| failure.to_string()));
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().expect("a number"))
}
