//! Machines that are started, paused, resumed and forked.

use rekindle_engine::lifecycle::SnapshotState;
use rekindle_testkit::hooks::Point;

use super::support::{Host, LIMIT};

#[test]
fn a_machine_goes_on_where_it_stood_while_its_pause_is_still_being_saved() {
    let Some(host) = Host::start() else { return };
    let held = host.site.hooks.hold(Point::Compare);
    let mut first = host.boot(host.tiny(64));
    first.console.ask("fill 1");
    assert_eq!((first.tick(), first.tick()), (1, 2));
    let snapshot = first.pause(&host);
    assert!(host.site.hooks.wait_standing(Point::Compare, snapshot.id(), LIMIT));
    let mut second = host.resume(&snapshot);
    assert_eq!(second.tick(), 3);
    assert!(second.verify() > 15_000);
    assert_eq!(snapshot.state(), SnapshotState::Captured, "nothing was compared yet");
    drop(held);
    snapshot.wait_manifest(LIMIT).expect("it is sealed in the end");
    assert_eq!(second.tick(), 4);
    second.verify();
}

#[test]
fn a_pause_captures_what_was_written_since_the_last_and_no_more() {
    let Some(host) = Host::start() else { return };
    let mut running = host.boot(host.tiny(64));
    running.console.ask("fill 1");
    let all = running.verify();
    let mut ticks = running.tick();
    let (mut snapshot, kept) = running.pause_counting(&host);
    assert!(u64::from(kept) >= all, "a first pause captures everything: {kept} of {all}");
    for seed in 2..6_u64 {
        let mut running = host.resume(&snapshot);
        ticks += 1;
        assert_eq!(running.tick(), ticks);
        let answer = running.console.ask(&format!("dirty {seed} 5"));
        let dirtied: u32 =
            answer.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("pages");
        assert_eq!(running.verify(), all);
        let kept;
        (snapshot, kept) = running.pause_counting(&host);
        // Beside the pages that it rewrites: its table of them, its stack, and what QEMU itself touches.
        assert!((dirtied..dirtied + 64).contains(&kept), "{dirtied} pages were written, {kept} captured");
        assert_eq!(snapshot.generation(), seed - 1);
    }
    let mut last = host.resume(&snapshot);
    assert_eq!(last.verify(), all);
}

#[test]
fn two_forks_of_one_snapshot_go_their_own_ways() {
    let Some(host) = Host::start() else { return };
    let held = host.site.hooks.hold(Point::Compare);
    let mut first = host.boot(host.tiny(32));
    first.console.ask("fill 7");
    first.tick();
    let snapshot = first.pause(&host);
    let mut forks = [host.resume(&snapshot), host.resume(&snapshot)];
    for (fork, seed) in forks.iter_mut().zip([8, 9]) {
        assert_eq!(fork.tick(), 2);
        fork.console.ask(&format!("dirty {seed} 30"));
        fork.verify();
    }
    drop(held);
    let paused = forks.map(|fork| fork.pause(&host));
    for snapshot in &paused {
        let mut fork = host.resume(snapshot);
        assert_eq!(fork.tick(), 3);
        fork.verify();
    }
    host.resume(&snapshot).verify();
}

#[test]
fn a_machine_goes_on_elsewhere_from_the_store_alone() {
    let Some(host) = Host::start() else { return };
    let mut first = host.boot(host.tiny(32));
    first.console.ask("fill 3");
    first.tick();
    let id = first.pause(&host).id();
    let published = host.engine.snapshot(id).expect("it is known");
    assert!(published.wait_state(SnapshotState::Published, LIMIT));
    let elsewhere = host.elsewhere();
    let snapshot = elsewhere.engine.open(id).expect("it is in the store");
    let mut second = elsewhere.resume(&snapshot);
    assert_eq!(second.tick(), 2);
    second.verify();
}
