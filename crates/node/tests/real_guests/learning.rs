//! Real guests that are resumed again: the pages the first one touched are there before the next one asks.

use rekindle_guest::process::trace::{Access, Pattern, Timing, Trace};
use rekindle_testkit::sandbox::Sandbox;

use crate::support::{Node, assert_verified, each_case, eventually, filled_snapshot};

/// Touches pages far apart, always the same; the faults so far.
fn touch(sandbox: &mut Sandbox, pages: u32) -> u64 {
    let threads = std::num::NonZeroUsize::MIN;
    let far = (0..pages / 4).map(|step| step * 769 % pages).collect();
    let trace = Trace {
        pattern: Pattern::List(far),
        access: Access::Read,
        threads,
        cpus: Vec::new(),
        timing: Timing::Whole,
    };
    sandbox.guest.control.touch_trace(trace).expect("touches");
    sandbox.server().expect("it is served").stats().faults
}

#[test]
fn a_real_guest_that_is_resumed_again_waits_for_at_most_a_twentieth_of_the_pages() {
    each_case(|case| {
        let node = Node::start();
        let engine = &node.engine;
        let snapshot = filled_snapshot(engine, &case.shape, 1);
        let resume = || Sandbox::resume_learning(engine, &snapshot, case.shape.clone()).expect("resumes");
        let pages = snapshot.memory().pages();
        let mut first = resume();
        let before = touch(&mut first, pages);
        drop(first);
        eventually("a recording", || engine.working_set(&snapshot).is_some());
        let set = engine.working_set(&snapshot).expect("seen just now");
        let mut second = resume();
        eventually("an install of the working set", || {
            let stats = second.server().expect("it is served").stats();
            // Pages that the guest touched before their turn came were not installed ahead.
            stats.pages_prefetched + stats.faults >= u64::from(set.pages())
        });
        let after = touch(&mut second, pages);
        assert!(after * 20 <= before, "{before} faults before, then {after}");
        assert_verified(&mut second.guest);
    });
}
