//! A real virtual machine on the engine: faults of the kernel by KVM, and the processor's state in a snapshot.

use std::sync::Arc;

use rekindle_engine::engine::Engine;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::snapshot::Snapshot;
use rekindle_testkit::hooks::Point;
use rekindle_testkit::mini_guest::MiniGuest;
use rekindle_testkit::site::{PATIENCE, Site};
use rekindle_testkit::skip::skipped;

fn is_possible() -> bool {
    let possible = MiniGuest::is_possible();
    if let Err(error) = &possible {
        skipped("the KVM mini-guest", &error.to_string());
    }
    possible.is_ok()
}

fn resume(engine: &Engine, snapshot: &Arc<Snapshot>) -> MiniGuest {
    MiniGuest::resume(engine, snapshot).expect("there was a machine before")
}

fn pause(engine: &Engine, guest: MiniGuest) -> Arc<Snapshot> {
    guest.pause(engine).expect("nothing stands against it").snapshot
}

/// A guest on empty memory, and the number of pages that it checks.
fn start() -> (MiniGuest, u32) {
    let guest = MiniGuest::start().expect("there was a machine before");
    let greeting = guest.line();
    let pages = greeting.strip_prefix("rekindle tiny guest, ").and_then(|rest| rest.strip_suffix(" pages"));
    let pages = pages.and_then(|pages| pages.parse().ok()).expect("it says its pages");
    (guest, pages)
}

#[test]
fn a_machine_under_kvm_goes_on_from_its_snapshot_while_that_is_unsealed_and_from_the_store() {
    if !is_possible() {
        return;
    }
    let site = Site::new().expect("a temporary directory");
    let engine = site.engine().expect("threads for an engine");
    let (guest, pages) = start();
    assert_eq!(guest.ask("fill 7"), format!("filled {pages}"));
    assert_eq!(guest.ask("tick"), "tick 1");
    let held = site.hooks.hold(Point::Compare);
    let first = pause(&engine, guest);

    let (guest, fork) = (resume(&engine, &first), resume(&engine, &first));
    assert_eq!(guest.ask("tick"), "tick 2");
    let verified = format!("verified {pages} 0");
    assert_eq!(guest.ask("verify"), verified);
    assert!(guest.ask("dirty 9 30").starts_with("dirtied "));
    assert_eq!(guest.ask("verify"), verified);
    let second = pause(&engine, guest);
    assert_eq!(fork.ask("verify"), verified, "what the other changed is not seen here");
    assert_eq!(fork.ask("tick"), "tick 2");
    drop(fork);

    let guest = resume(&engine, &second);
    assert_eq!(guest.ask("verify"), verified);
    assert_eq!(first.manifest_now(), None, "nothing was sealed until now");
    drop(held);
    assert!(second.wait_state(SnapshotState::Published, PATIENCE), "{:?}", second.status());
    assert_eq!(guest.ask("dirty 10 20").split(' ').next(), Some("dirtied"));
    assert_eq!(guest.ask("tick"), "tick 3");
    let third = pause(&engine, guest);
    assert!(third.wait_state(SnapshotState::Published, PATIENCE), "{:?}", third.status());

    let elsewhere = site.elsewhere().expect("a temporary directory");
    let engine = elsewhere.engine().expect("threads for an engine");
    let third = engine.open(third.id()).expect("it is published");
    let guest = resume(&engine, &third);
    assert_eq!(guest.ask("tick"), "tick 4");
    let few = guest.serve_stats().expect("it is served");
    assert!(few.faults > 0, "{few:?}");
    assert_eq!(guest.ask("verify"), verified);
}

#[test]
fn a_machine_under_kvm_that_is_paused_in_the_middle_of_a_word_ends_the_word_when_it_is_resumed() {
    if !is_possible() {
        return;
    }
    let site = Site::new().expect("a temporary directory");
    let engine = site.engine().expect("threads for an engine");
    let (mut guest, _) = start();
    assert_eq!(guest.ask("count every 0"), "counting");
    let mut tick = 0;
    for _ in 0..5 {
        for _ in 0..3 {
            tick = next_tick(&guest.line(), tick);
        }
        let paused = guest.pause(&engine).expect("nothing stands against it");
        for line in paused.unread {
            tick = next_tick(&line, tick);
        }
        guest = resume(&engine, &paused.snapshot);
    }
    tick = next_tick(&guest.line(), tick);
    assert!(tick > 15);
}

/// The number of the tick in `line`, which must follow `before`.
fn next_tick(line: &str, before: u32) -> u32 {
    assert_eq!(line, format!("tick {}", before + 1));
    before + 1
}
