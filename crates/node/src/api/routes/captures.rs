//! Captures: memory of processes that others manage, made into snapshots.

use axum::extract::State;
use utoipa_axum::routes;

use super::Routes;
use crate::api::answer::Made;
use crate::api::bounded::BoundedControl;
use crate::api::control::Answer;
use crate::api::extract::JsonBody;
use crate::api::places::Place;
use crate::api::types::{CaptureMemory, Snapshot};

pub(super) fn routes() -> Routes {
    Routes::default().routes(routes!(capture_memory))
}

/// Captures memory of a process that others manage.
#[utoipa::path(
    post,
    path = "/v1/captures",
    tag = "memory",
    request_body = CaptureMemory,
    responses((status = 201, description = "The snapshot; its path is in `Location`", body = Snapshot))
)]
async fn capture_memory(
    State(control): State<BoundedControl>,
    place: Place,
    JsonBody(wanted): JsonBody<CaptureMemory>,
) -> Answer<Made<Snapshot>> {
    let made =
        control.change(place, None, move |control, asked| control.capture_memory(asked, wanted)).await?;
    let path = Some(format!("/v1/snapshots/{}", made.id));
    Ok(Made { made, path })
}
