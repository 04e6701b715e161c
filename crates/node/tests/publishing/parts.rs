//! Layers in one request or in parts, and uploads that are gone on with, begun anew, or given up.

use std::sync::Arc;

use rekindle_engine::catalog::{Catalog, Kind};
use rekindle_engine::engine::Engine;
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::snapshot::Snapshot;
use rekindle_testkit::model::ModelMemory;
use rekindle_testkit::s3::{Misbehaviour, Rule, S3Server};
use rekindle_testkit::stores::Operation;

use crate::{PAGES, PARTS, Place, pause, wait_failure, wait_published};

const LAYERS: &str = "node/layers/";

#[test]
fn a_small_layer_is_written_in_one_request_and_a_larger_one_in_parts() {
    for (pages, begun, written) in [(20, 0, 1), (PAGES, 1, PARTS + 1)] {
        let place = Place::new();
        let engine = place.start();
        let (snapshot, memory) = pause(&engine, pages);
        wait_published(&snapshot);
        assert_eq!(place.server.requests(Operation::Begin, LAYERS), begun);
        assert_eq!(
            place.server.requests(Operation::Put, LAYERS),
            written,
            "the parts, and one that joins them"
        );
        let id = snapshot.id();
        assert_eq!(recorded(&place, engine, snapshot), 0, "what is finished is forgotten");
        place.check_elsewhere(id, &memory);
    }
}

/// Number of parts that the catalog has after the end of an engine.
fn recorded(place: &Place, engine: Engine, snapshot: Arc<Snapshot>) -> usize {
    place.end(engine, snapshot);
    let catalog = Catalog::open(&place.site.catalog_path()).expect("nobody else has it");
    catalog.all(Kind::Upload).expect("it is read").len().saturating_sub(1)
}

/// A node that ended while it sent the last part of a layer, and the number of parts that it has recorded.
fn ended_at_the_last_part(place: &Place) -> (ModelMemory, SnapshotId, usize) {
    let after = u32::try_from(PARTS - 1).expect("few parts");
    let last = Rule { after, ..Rule::next(1, Operation::Put, LAYERS, Misbehaviour::Lose) };
    let lost = place.server.misbehave(last);
    let engine = place.start();
    let (snapshot, memory) = pause(&engine, PAGES);
    place.server.wait_until(S3Server::is_hit);
    let id = snapshot.id();
    let parts = recorded(place, engine, snapshot);
    drop(lost);
    (memory, id, parts)
}

#[test]
fn a_node_that_is_started_again_sends_only_the_parts_that_are_missing() {
    let place = Place::new();
    let (memory, id, recorded) = ended_at_the_last_part(&place);
    assert!((3..PARTS).contains(&recorded), "at most five are under way at once");
    let sent_before = place.server.requests(Operation::Put, LAYERS);
    let engine = place.start();
    let snapshot = engine.snapshot(id).expect("it was acknowledged");
    wait_published(&snapshot);
    let sent = place.server.requests(Operation::Put, LAYERS) - sent_before;
    assert_eq!(sent, PARTS - recorded + 1, "the missing parts, and one that joins all");
    assert_eq!(place.server.requests(Operation::Begin, LAYERS), 1);
    place.check_elsewhere(id, &memory);
    assert!(place.server.unfinished_uploads().expect("they are listed").is_empty());
}

#[test]
fn an_upload_that_the_store_does_not_know_any_more_is_begun_anew() {
    let place = Place::new();
    let (memory, id, _) = ended_at_the_last_part(&place);
    for file in place.server.unfinished_uploads().expect("they are listed") {
        std::fs::remove_file(file).expect("as a lifecycle rule does");
    }
    let engine = place.start();
    let snapshot = engine.snapshot(id).expect("it was acknowledged");
    wait_published(&snapshot);
    assert_eq!(place.server.requests(Operation::Begin, LAYERS), 2);
    place.check_elsewhere(id, &memory);
}

#[test]
fn an_object_that_was_joined_without_an_answer_is_found_and_not_sent_again() {
    let place = Place::new();
    let after = u32::try_from(PARTS).expect("few parts");
    let joining = Rule { after, ..Rule::next(1, Operation::Put, LAYERS, Misbehaviour::LoseAnswer) };
    let lost = place.server.misbehave(joining);
    let engine = place.start();
    let (snapshot, memory) = pause(&engine, PAGES);
    place.server.wait_until(S3Server::is_hit);
    let (engine, snapshot) = place.start_again(engine, snapshot);
    drop(lost);
    wait_published(&snapshot);
    assert_eq!(place.server.requests(Operation::Begin, LAYERS), 1);
    // It is asked to join them once more, and knows the upload no more.
    assert_eq!(place.server.requests(Operation::Put, LAYERS), PARTS + 2);
    let id = place.end(engine, snapshot);
    place.check_elsewhere(id, &memory);
}

#[test]
fn the_unfinished_upload_of_a_snapshot_that_is_deleted_is_given_up_also_after_a_new_start() {
    for starts_again in [false, true] {
        let place = Place::new();
        let second = Rule { after: 1, ..Rule::next(u32::MAX, Operation::Put, LAYERS, Misbehaviour::Refuse) };
        let refused = place.server.misbehave(second);
        let mut engine = place.start();
        let (snapshot, _) = pause(&engine, PAGES);
        wait_failure(&snapshot);
        assert!(!place.server.unfinished_uploads().expect("they are listed").is_empty());
        let refuses = Rule::next(u32::MAX, Operation::Delete, "", Misbehaviour::Refuse);
        let keeps = starts_again.then(|| place.server.misbehave(refuses));
        engine.delete(&snapshot).expect("it is recorded");
        if starts_again {
            place.end(engine, snapshot);
            drop(keeps);
            engine = place.start();
        }
        let is_clean = |server: &S3Server| server.unfinished_uploads().expect("they are listed").is_empty();
        place.server.wait_until(is_clean);
        drop((refused, engine));
    }
}
