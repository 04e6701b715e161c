//! The store goes in the middle, lies, and comes back.

use std::time::Duration;

use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::snapshot::Snapshot;
use rekindle_testkit::guest::judge;
use rekindle_testkit::site::PATIENCE;
use rekindle_testkit::stores::{Fault, Operation, Rule};

use crate::{check, check_elsewhere, child, first_pause, run, site, start, wait_published, wait_sealed};

fn wait_failure(snapshot: &Snapshot) {
    while snapshot.status().failure.is_none() {
        assert!(
            !snapshot.wait_state(SnapshotState::Published, Duration::from_millis(10)),
            "the store is out"
        );
    }
}

#[test]
fn case_31_a_store_that_goes_in_the_middle_of_publishing_loses_nothing() {
    for after in 0..6 {
        let site = site();
        let engine = start(&site);
        let gone = site.faults.inject(Rule { after, ..Rule::always(Operation::Put, "", Fault::Fail) });
        let first = first_pause(&engine, 200);
        let second = child(&engine, &first, run(20, 60), 2);
        let third = child(&engine, &second, run(70, 30), 3);
        wait_failure(&third.0);
        for snapshot in [&first, &second, &third] {
            check(&engine, snapshot);
        }
        drop(gone);
        for snapshot in [&first, &second, &third] {
            wait_published(&snapshot.0);
            assert_eq!(snapshot.0.status().failure, None, "it says no more what is over");
            check_elsewhere(&site, snapshot);
        }
    }
}

#[test]
fn case_30_a_manifest_is_not_written_before_its_layers() {
    let site = site();
    let engine = start(&site);
    let gone = site.faults.inject(Rule::always(Operation::Put, "layers/", Fault::Fail));
    let first = first_pause(&engine, 50);
    let second = child(&engine, &first, run(20, 6), 2);
    wait_failure(&first.0);
    wait_failure(&second.0);
    assert_eq!(site.faults.calls(Operation::Put, "manifests/"), 0);
    engine.delete(&first.0).expect("nothing to write");
    drop(gone);
    wait_published(&second.0);
    check_elsewhere(&site, &second);
}

#[test]
fn case_08_and_35_the_only_copy_of_a_layer_stays_on_the_disk() {
    let site = site();
    let engine = start(&site);
    let outage = site.faults.outage();
    let first = first_pause(&engine, 150);
    let second = child(&engine, &first, run(20, 60), 2);
    wait_sealed(&first.0);
    wait_sealed(&second.0);
    let layers = second.0.manifest_now().expect("it is sealed").layers().to_vec();
    engine.delete(&first.0).expect("nothing to write");
    drop(first);
    for layer in &layers {
        let path = site.cache_directory().join(format!("{}.raw", layer.id));
        assert!(path.exists(), "{path:?} is the only copy of what the second snapshot names");
    }
    check(&engine, &second);
    drop(outage);
    wait_published(&second.0);
    check_elsewhere(&site, &second);
}

#[test]
fn case_47_a_put_that_reports_failure_but_succeeded_is_done_again_and_right() {
    for under in ["manifests/", "layers/"] {
        let site = site();
        let engine = start(&site);
        let lying = site.faults.inject(Rule::once(Operation::Put, under, Fault::Lie));
        let first = first_pause(&engine, 100);
        wait_published(&first.0);
        check_elsewhere(&site, &first);
        drop(lying);
    }
}

#[test]
fn case_47_a_snapshot_deleted_while_its_manifest_is_put_does_not_come_back() {
    for end in [None, Some(Fault::Lie)] {
        let site = site();
        let engine = start(&site);
        let stalled = site.faults.inject(Rule::once(Operation::Put, "manifests/", Fault::Stall));
        let lying = end.map(|fault| site.faults.inject(Rule::once(Operation::Put, "manifests/", fault)));
        let first = first_pause(&engine, 10);
        site.faults.wait_stalled();
        engine.delete(&first.0).expect("nothing to write");
        site.faults.wait_calls(Operation::Delete, "manifests/", 1);
        drop(stalled);
        site.faults.wait_calls(Operation::Delete, "manifests/", 2);
        drop(engine);
        drop(lying);
        let again = start(&site);
        assert!(again.open(first.0.id()).is_err(), "it was deleted");
    }
}

#[test]
fn case_58_an_outage_stalls_a_cold_reader_and_no_other() {
    let site = site();
    let engine = start(&site);
    let first = first_pause(&engine, 600);
    wait_published(&first.0);
    let elsewhere = site.elsewhere().expect("a temporary directory");
    let cold = start(&elsewhere);
    let opened = cold.open(first.0.id()).expect("it is published");
    let outage = site.faults.outage();
    judge(&cold, &opened, &first.1).expect_err("nothing of it is here, and nothing is made up");
    let own = first_pause(&cold, 40);
    wait_sealed(&own.0);
    check(&cold, &own);
    check(&engine, &first);
    drop(outage);
    judge(&cold, &opened, &first.1).expect("the store is back");
    assert!(own.0.wait_state(SnapshotState::Published, PATIENCE));
}
