//! Leases: never more than the budget, and every waiter is woken.

use std::sync::Arc;
use std::time::Duration;

use engine_under_shuttle::budget::Budget;
use engine_under_shuttle::reaper::Reaper;
use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::thread;

use crate::node::{GUEST_BYTES, Node, directory};
use crate::schedule::{every, random};

/// Longer than any test: a wait without end means a lost wake, which Shuttle reports as a deadlock.
const FOR_EVER: Duration = Duration::from_secs(3600);

#[test]
fn leases_never_exceed_the_budget_and_no_wake_is_lost() {
    random(5000, || {
        let budget = Budget::new(10);
        let lent = Arc::new(AtomicU64::new(0));
        let holders: Vec<_> = [3, 4, 6, 10]
            .into_iter()
            .map(|bytes| {
                let (budget, lent) = (budget.clone(), Arc::clone(&lent));
                thread::spawn(move || {
                    let mut lease = budget.lease(bytes, FOR_EVER).expect("others give theirs back");
                    let held = lent.fetch_add(bytes, Ordering::SeqCst) + bytes;
                    assert!(held <= 10, "{held} of 10 bytes are lent");
                    let half = lease.split_off(bytes / 2);
                    lent.fetch_sub(bytes - bytes / 2, Ordering::SeqCst);
                    drop(lease);
                    lent.fetch_sub(bytes / 2, Ordering::SeqCst);
                    drop(half);
                })
            })
            .collect();
        holders.into_iter().for_each(|holder| holder.join().expect("it got its lease"));
        assert_eq!(budget.bytes_held(), 0);
    });
}

#[test]
fn two_who_want_everything_both_get_it() {
    every(200_000, || {
        let budget = Budget::new(1);
        let holders: Vec<_> = (0..2)
            .map(|_| {
                let budget = budget.clone();
                thread::spawn(move || drop(budget.lease(1, FOR_EVER).expect("the other gives it back")))
            })
            .collect();
        holders.into_iter().for_each(|holder| holder.join().expect("it got its lease"));
        assert_eq!(budget.bytes_held(), 0);
    });
}

#[test]
fn one_who_cannot_be_served_yet_takes_no_wake_from_one_who_can() {
    random(3000, || {
        let budget = Budget::new(10);
        let kept = budget.lease(4, FOR_EVER).expect("nobody holds it");
        let given_back = budget.lease(6, FOR_EVER).expect("nobody holds it");
        let [everything, a_part] = [10, 6].map(|bytes| {
            let budget = budget.clone();
            thread::spawn(move || drop(budget.lease(bytes, FOR_EVER).expect("it is given back")))
        });
        drop(given_back);
        a_part.join().expect("it got its lease");
        drop(kept);
        everything.join().expect("it got its lease");
    });
}

#[test]
fn what_was_handed_to_the_reaper_gives_its_bytes_back_to_who_waits() {
    random(3000, || {
        let reaper = Reaper::start().expect("a thread of Shuttle's starts");
        let (budget, handle) = (Budget::new(1), reaper.handle());
        let lease = budget.lease(1, FOR_EVER).expect("nobody holds it");
        let waiting = {
            let budget = budget.clone();
            thread::spawn(move || drop(budget.lease(1, FOR_EVER).expect("the reaper frees it")))
        };
        let discarding = thread::spawn(move || handle.discard(lease));
        discarding.join().expect("handing in does not wait");
        waiting.join().expect("it got its lease");
        drop(reaper);
        assert_eq!(budget.bytes_held(), 0);
    });
}

/// A pause past the limits waits before the guest is frozen, for the room or the line that a seal gives back.
#[test]
fn pauses_past_the_limits_wait_for_seals_and_all_come_through() {
    let cache = directory();
    random(1000, move || {
        let node = Arc::new(Node::with_line(cache.path(), 2 * GUEST_BYTES, 2));
        let first = node.pause(None, &[(0, 1)]);
        let second = node.pause(Some(&first), &[(1, 2)]);
        let sealing: Vec<_> = [(&second.snapshot, second.captures), (&first.snapshot, first.captures)]
            .map(|(snapshot, captures)| {
                let (node, snapshot) = (Arc::clone(&node), Arc::clone(snapshot));
                thread::spawn(move || node.steps.seal(&snapshot, captures))
            })
            .into();
        let second = crate::node::Paused { captures: Vec::new(), ..second };
        let third = node.pause(Some(&second), &[(2, 3)]);
        node.check(third.snapshot.memory(), &[1, 2, 3, 0]);
        for seal in sealing {
            seal.join().expect("a seal ended");
        }
    });
}
