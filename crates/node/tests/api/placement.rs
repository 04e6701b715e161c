//! A node as a scheduler asks for it.

use rekindle_api::problem::Code;
use rekindle_api::types::{PauseSandbox, PlacementQuery, ResumeHint, SnapshotState};
use uuid::Uuid;

use crate::raw;
use crate::served::Served;

#[test]
fn a_node_tells_of_the_snapshots_that_are_asked_about_in_their_order() {
    let served = Served::new();
    let client = served.client();
    served.sandbox("web");
    let saved = client.pause_sandbox("web", None, &PauseSandbox::default()).unwrap().id;
    let none = client.node_placement(&PlacementQuery::default()).unwrap();
    assert_eq!((none.placed, none.snapshots, none.running), (Vec::new(), 1, 0));
    served.fake.advance(saved, SnapshotState::Published);
    let unknown = Uuid::now_v7();
    let told = client.node_placement(&PlacementQuery { snapshots: vec![unknown, saved] }).unwrap();
    let hints: Vec<_> = told.placed.iter().map(|placed| (placed.snapshot, placed.resume)).collect();
    assert_eq!(hints, [(unknown, Some(ResumeHint::Remote)), (saved, Some(ResumeHint::Warm))]);
    let answer = raw::ask(&served.socket(), "GET /v1/placement", "", "");
    assert_eq!(answer.json()["placed"][0]["resume"], "warm");
}

#[test]
fn a_request_about_too_many_snapshots_or_about_no_id_is_refused() {
    let served = Served::new();
    let client = served.client();
    let asked = |count: u128| {
        client.node_placement(&PlacementQuery { snapshots: (0..count).map(Uuid::from_u128).collect() })
    };
    assert_eq!(asked(256).unwrap().placed.len(), 256);
    assert_eq!(asked(257).unwrap_err().code(), Some(Code::InvalidRequest));
    let answer = raw::ask(&served.socket(), "GET /v1/placement?snapshot=web", "", "");
    assert_eq!(answer.status, 400);
}
