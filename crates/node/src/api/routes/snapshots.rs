//! Snapshots: listed, waited for, verified, resumed and deleted.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use tokio::time::Instant;
use utoipa_axum::routes;

use super::Routes;
use crate::api::answer::Made;
use crate::api::audit::Removed;
use crate::api::bounded::BoundedControl;
use crate::api::control::Answer;
use crate::api::extract::{CheckedQuery, JsonBody, Key, Reference};
use crate::api::limits;
use crate::api::places::Place;
use crate::api::problem::{Code, Problem};
use crate::api::types::{
    ListQuery, Placement, ResumeSnapshot, SandboxList, Snapshot, SnapshotList, Verification, WaitQuery,
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .routes(routes!(list_snapshots))
        .routes(routes!(show_snapshot, delete_snapshot))
        .routes(routes!(show_placement))
        .routes(routes!(resume_snapshot))
}

/// The routes that wait.
pub(super) fn waits() -> Routes {
    Routes::default().routes(routes!(wait_snapshot))
}

/// The routes that read whole snapshots.
pub(super) fn verifications() -> Routes {
    Routes::default().routes(routes!(verify_snapshot))
}

/// Lists the snapshots, oldest first.
#[utoipa::path(
    get,
    path = "/v1/snapshots",
    tag = "snapshots",
    params(ListQuery),
    responses((status = 200, description = "A page of them", body = SnapshotList))
)]
async fn list_snapshots(
    State(control): State<BoundedControl>,
    place: Place,
    CheckedQuery(query): CheckedQuery<ListQuery>,
) -> Answer<Json<SnapshotList>> {
    control.ask(place, move |control| control.snapshots(&query)).await.map(Json)
}

/// Shows one snapshot.
#[utoipa::path(
    get,
    path = "/v1/snapshots/{reference}",
    tag = "snapshots",
    params(crate::api::document::SnapshotParameter),
    responses((status = 200, description = "The snapshot", body = Snapshot))
)]
async fn show_snapshot(
    State(control): State<BoundedControl>,
    place: Place,
    Reference(reference): Reference,
) -> Answer<Json<Snapshot>> {
    control.ask(place, move |control| control.snapshot(&reference)).await.map(Json)
}

/// Waits until a snapshot is in a state, or beyond it.
///
/// If it is not in time, the answer is the problem `not_yet`.
#[utoipa::path(
    get,
    path = "/v1/snapshots/{reference}/wait",
    tag = "snapshots",
    params(crate::api::document::SnapshotParameter, WaitQuery),
    responses((status = 200, description = "The snapshot, in that state or beyond it", body = Snapshot))
)]
async fn wait_snapshot(
    State(control): State<BoundedControl>,
    place: Place,
    Reference(reference): Reference,
    CheckedQuery(query): CheckedQuery<WaitQuery>,
) -> Answer<Json<Snapshot>> {
    let seconds = query.timeout_seconds.unwrap_or(limits::WAIT_SECONDS);
    let until = Instant::now() + Duration::from_secs(seconds.into());
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let turn = left.min(limits::WAIT_TURN);
        let waited = reference.clone();
        let asked =
            control.ask(place.clone(), move |control| control.wait_snapshot(&waited, query.state, turn));
        match asked.await {
            Err(problem) if problem.code != Code::NotYet => return Err(problem),
            Err(_) if control.ending().has_come() => return Err(ending(&reference)),
            Err(problem) if left == turn => return Err(not_yet(problem, &reference, seconds)),
            Err(_) => {}
            Ok(snapshot) => return Ok(Json(snapshot)),
        }
    }
}

fn ending(reference: &str) -> Problem {
    Problem::new(Code::Ending, format!("the daemon is ending: wait for {reference} again when it is back"))
}

/// `turn`, the problem of the last turn, said of the whole wait.
fn not_yet(turn: Problem, reference: &str, seconds: u32) -> Problem {
    let detail = format!("snapshot {reference} did not reach that state within {seconds} s: {}", turn.detail);
    Problem { detail, ..turn }
}

/// Deletes a snapshot; sandboxes that run from it and its children go on.
#[utoipa::path(
    delete,
    path = "/v1/snapshots/{reference}",
    tag = "snapshots",
    params(crate::api::document::SnapshotParameter),
    responses((status = 204, description = "It is deleted"))
)]
async fn delete_snapshot(
    State(control): State<BoundedControl>,
    place: Place,
    Reference(reference): Reference,
) -> Answer<StatusCode> {
    control
        .change(place, None, move |control, _| control.delete_snapshot(&reference).map(Removed::Snapshot))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Reads every page of a snapshot and checks it.
#[utoipa::path(
    post,
    path = "/v1/snapshots/{reference}/verify",
    tag = "snapshots",
    params(crate::api::document::SnapshotParameter),
    responses((status = 200, description = "The result", body = Verification))
)]
async fn verify_snapshot(
    State(control): State<BoundedControl>,
    place: Place,
    Reference(reference): Reference,
) -> Answer<Json<Verification>> {
    control
        .ask_while(place, None, move |control, asked| control.verify_snapshot(&reference, asked))
        .await
        .map(Json)
}

/// Shows the layers that a snapshot is made of and their places, without waiting for a seal.
#[utoipa::path(
    get,
    path = "/v1/snapshots/{reference}/placement",
    tag = "snapshots",
    params(crate::api::document::SnapshotParameter),
    responses((status = 200, description = "The layers", body = Placement))
)]
async fn show_placement(
    State(control): State<BoundedControl>,
    place: Place,
    Reference(reference): Reference,
) -> Answer<Json<Placement>> {
    control.ask(place, move |control| control.placement(&reference)).await.map(Json)
}

/// Makes new sandboxes of a snapshot.
#[utoipa::path(
    post,
    path = "/v1/snapshots/{reference}/resume",
    tag = "snapshots",
    params(crate::api::document::SnapshotParameter, crate::api::document::KeyParameter),
    request_body = ResumeSnapshot,
    responses((status = 201, description = "The new sandboxes", body = SandboxList))
)]
async fn resume_snapshot(
    State(control): State<BoundedControl>,
    place: Place,
    Reference(reference): Reference,
    Key(key): Key,
    JsonBody(how): JsonBody<ResumeSnapshot>,
) -> Answer<Made<SandboxList>> {
    let made = control
        .change(place, key, move |control, asked| control.resume_snapshot(&reference, asked, how))
        .await?;
    Ok(Made { made, path: None })
}
