//! Each request of a publish in turn: the node ends at it, or its effect comes late.

use rekindle_engine::lifecycle::SnapshotState;
use rekindle_testkit::s3::{Misbehaviour, Rule};
use rekindle_testkit::stores::Operation;

use crate::{PAGES, Place, SHORT, pause, wait_published};

/// More requests than a publish has.
const REQUESTS_MAX: u32 = 200;

/// A rule for the request after this many.
fn rule(misbehaviour: Misbehaviour, after: u32) -> Rule {
    Rule { on: None, under: "", fault: misbehaviour, after, times: 1 }
}

#[test]
fn a_node_that_ends_at_any_request_of_a_publish_publishes_once_and_right_after_it_is_started_again() {
    for misbehaviour in [Misbehaviour::Lose, Misbehaviour::LoseAnswer] {
        for after in 0.. {
            assert!(after < REQUESTS_MAX, "a publish ends");
            let place = Place::new();
            let lost = place.server.misbehave(rule(misbehaviour, after));
            let engine = place.start();
            let (snapshot, memory) = pause(&engine, PAGES);
            let is_published = || snapshot.wait_state(SnapshotState::Published, SHORT);
            while !place.server.is_hit() && !is_published() {}
            let was_hit = place.server.is_hit();
            let (engine, snapshot) = place.start_again(engine, snapshot);
            drop(lost);
            wait_published(&snapshot);
            let id = place.end(engine, snapshot);
            place.check_elsewhere(id, &memory);
            // Only the bucket finds an upload whose id was not recorded yet; it has no parts.
            let unfinished = place.server.unfinished_uploads().expect("they are listed");
            let has_a_part = unfinished.iter().any(|file| file.to_string_lossy().contains(".part-"));
            assert!(unfinished.len() <= 1 && !has_a_part, "{unfinished:?}");
            if !was_hit {
                break;
            }
        }
    }
}

#[test]
fn a_request_of_a_publish_that_is_told_as_failed_and_lands_after_all_others_changes_nothing() {
    for after in 0.. {
        assert!(after < REQUESTS_MAX, "a publish ends");
        let place = Place::new();
        let late = place.server.misbehave(rule(Misbehaviour::LandLater, after));
        let engine = place.start();
        let (snapshot, memory) = pause(&engine, PAGES);
        wait_published(&snapshot);
        let was_hit = place.server.is_hit();
        drop(late);
        place.server.wait_landed();
        let id = place.end(engine, snapshot);
        place.check_elsewhere(id, &memory);
        if !was_hit {
            break;
        }
    }
}

#[test]
fn a_snapshot_that_was_deleted_does_not_come_back_by_a_request_that_lands_late() {
    for after in 0.. {
        assert!(after < REQUESTS_MAX, "a publish ends");
        let place = Place::new();
        let late = place.server.misbehave(rule(Misbehaviour::LandLater, after));
        let engine = place.start();
        let (snapshot, _) = pause(&engine, PAGES);
        wait_published(&snapshot);
        engine.delete(&snapshot).expect("it is recorded");
        place.server.wait_until(|server| server.requests(Operation::Delete, "node/manifests/") > 0);
        let was_hit = place.server.is_hit();
        let id = place.end(engine, snapshot);
        drop(late);
        place.server.wait_landed();
        place.check_deleted(id);
        if !was_hit {
            break;
        }
    }
}
