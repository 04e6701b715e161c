//! Cases of sandboxes that run from snapshots in a store from which others delete.

use std::sync::Arc;
use std::time::Instant;

use rekindle_engine::root::{Cause, Root};
use rekindle_engine::store_gate::OtherStore;
use rekindle_testkit::hooks::Point;
use rekindle_testkit::site::PATIENCE;
use rekindle_testkit::stores::{Fault, Operation, Rule, UnreliableStore};

use crate::roots::{begin, begin_unreliable, begun_with, copies, names, roots, wait_no_roots};
use crate::store::start_gated;
use crate::{child, first_pause, run, site, wait_published, wait_sealed};

pub(crate) fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "it never was so that {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_root_names_what_a_sandbox_reads_until_it_ends_and_what_it_was_paused_into_is_published() {
    let (site, _engine, first) = begun_with(50);
    let there = site.elsewhere().expect("a directory");
    let (elsewhere, faults) = begin_unreliable(&there);
    let opened = (elsewhere.open(first.0.id()).expect("it is published"), first.1.clone());
    let run_from = [elsewhere.runs_from(&opened.0), elsewhere.runs_from(&opened.0)];
    let named: std::collections::BTreeSet<_> = copies(&first.0).into_iter().collect();
    let root = Root { snapshot: first.0.id(), cause: Cause::Runs, named };
    wait_for("a root is there", || roots(&site) == [root.clone()]);
    let failing = faults.inject(Rule::always(Operation::Put, "layers/", Fault::Fail));
    let second = child(&elsewhere, &opened, run(20, 6), 2);
    wait_sealed(&second.0);
    drop(run_from);
    faults.wait_calls(Operation::Put, "layers/", 1);
    assert!(roots(&site).contains(&root), "an unpublished snapshot needs what it names");
    drop(failing);
    wait_published(&second.0);
    drop(elsewhere.runs_from(&second.0));
    wait_no_roots(&site);
}

#[test]
fn a_sandbox_that_runs_when_its_snapshot_is_published_has_a_root_before_those_of_the_publish_go() {
    let site = site();
    let (engine, faults) = begin_unreliable(&site);
    let failing = faults.inject(Rule::always(Operation::Put, "manifests/", Fault::Fail));
    let kept = faults.inject(Rule::always(Operation::Delete, "roots/", Fault::Fail));
    let first = first_pause(&engine, 50);
    let runs_from = engine.runs_from(&first.0);
    drop(failing);
    faults.wait_calls(Operation::Delete, "roots/", 1);
    let causes: Vec<_> = roots(&site).iter().map(|root| root.cause).collect();
    assert_eq!(causes.len(), 2, "{causes:?}");
    assert!(causes.contains(&Cause::Runs));
    drop((kept, runs_from));
}

#[test]
fn roots_for_sandboxes_stay_over_a_restart_until_it_is_known_which_of_them_run() {
    let (site, engine, first) = begun_with(50);
    let runs_from = engine.runs_from(&first.0);
    wait_for("a root is there", || roots(&site).len() == 1);
    let id = first.0.id();
    // From here on no drop changes anything in the store.
    engine.stop();
    drop((runs_from, first, engine));
    let engine = begin(&site);
    let origin = engine.origin(id).expect("it is recorded");
    let runs_from = engine.runs_from(&origin);
    wait_for("the old root has a successor", || roots(&site).len() == 2);
    engine.end_replay();
    drop(engine.runs_from(&first_pause(&engine, 1).0));
    wait_for("the old root is gone", || roots(&site).iter().filter(|root| root.snapshot == id).count() == 1);
    drop(runs_from);
    wait_for("none is left", || roots(&site).iter().all(|root| root.cause == Cause::Publishes));
}

#[test]
fn a_snapshot_that_was_paused_before_its_sandbox_had_a_root_gets_one_until_it_is_published() {
    let (site, _engine, first) = begun_with(50);
    let there = site.elsewhere().expect("a directory");
    let (elsewhere, faults) = begin_unreliable(&there);
    let opened = (elsewhere.open(first.0.id()).expect("it is published"), first.1.clone());
    let failing = faults.inject(Rule::always(Operation::Put, "roots/", Fault::Fail));
    let held = there.hooks.hold(Point::Compare);
    let runs_from = elsewhere.runs_from(&opened.0);
    let second = child(&elsewhere, &opened, run(20, 6), 2);
    drop((runs_from, failing));
    elsewhere.look_after_roots().expect("the store is there");
    let named: Vec<_> = roots(&site).into_iter().map(|root| (root.cause, root.named)).collect();
    assert_eq!(named, [(Cause::Runs, copies(&first.0).into_iter().collect())]);
    drop(held);
    wait_published(&second.0);
    elsewhere.look_after_roots().expect("the store is there");
    wait_no_roots(&site);
}

#[test]
fn a_deletion_comes_after_the_roots_for_what_runs_here() {
    let site = site();
    let (engine, faults) = begin_unreliable(&site);
    let first = first_pause(&engine, 50);
    wait_published(&first.0);
    wait_no_roots(&site);
    let failing = faults.inject(Rule::always(Operation::Put, "roots/", Fault::Fail));
    let tries = faults.calls(Operation::Put, "roots/") + 3;
    let runs_from = engine.runs_from(&first.0);
    engine.delete(&first.0).expect("no catalog stands in its way");
    faults.wait_calls(Operation::Put, "roots/", tries);
    assert_eq!(faults.calls(Operation::Put, "deleted/"), 0, "a collector could take what the sandbox reads");
    drop(failing);
    wait_for("it is deleted", || !names(&site, "deleted").is_empty());
    let named = copies(&first.0).into_iter().collect();
    assert_eq!(roots(&site), [Root { snapshot: first.0.id(), cause: Cause::Runs, named }]);
    drop(runs_from);
}

#[test]
fn a_snapshot_that_a_start_finds_unpublished_has_a_root_for_what_it_needs() {
    let site = site();
    let (engine, faults) = begin_unreliable(&site);
    let first = first_pause(&engine, 50);
    wait_published(&first.0);
    wait_no_roots(&site);
    let _away = faults.outage();
    let second = child(&engine, &first, run(20, 6), 2);
    wait_sealed(&second.0);
    let (id, named) = (second.0.id(), copies(&first.0).into_iter().collect());
    engine.stop();
    drop((first, second, engine));
    let unreliable = UnreliableStore::new(site.objects.clone());
    let _failing = unreliable.faults().inject(Rule::always(Operation::Put, "layers/", Fault::Fail));
    let engine = start_gated(&site, Arc::new(unreliable), OtherStore::Refused);
    let wanted = Root { snapshot: id, cause: Cause::Runs, named };
    wait_for("it has one", || roots(&site).contains(&wanted));
    drop(engine);
}

#[test]
fn a_deletion_that_a_start_goes_on_with_comes_after_a_root_for_the_sandbox_that_may_run_from_it() {
    let site = site();
    let (engine, faults) = begin_unreliable(&site);
    let first = first_pause(&engine, 50);
    wait_published(&first.0);
    wait_no_roots(&site);
    let away = faults.outage();
    let runs_from = engine.runs_from(&first.0);
    engine.delete(&first.0).expect("a disk");
    let (id, named) = (first.0.id(), copies(&first.0).into_iter().collect());
    engine.stop();
    drop((runs_from, first, engine, away));
    let engine = begin(&site);
    wait_for("it is deleted", || !names(&site, "deleted").is_empty());
    assert_eq!(roots(&site), [Root { snapshot: id, cause: Cause::Runs, named }]);
    engine.end_replay();
    engine.look_after_roots().expect("the store is there");
    wait_no_roots(&site);
}
