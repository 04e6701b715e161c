//! Sandboxes: created, listed, paused, resumed, forked, given commands, stopped and removed.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use utoipa_axum::routes;

use super::Routes;
use crate::api::answer::Made;
use crate::api::audit::Removed;
use crate::api::bounded::BoundedControl;
use crate::api::control::Answer;
use crate::api::extract::{CheckedQuery, JsonBody, Key, Reference};
use crate::api::places::Place;
use crate::api::types::{
    CreateSandbox, ForkSandbox, ListQuery, PauseSandbox, ResumeSandbox, Sandbox, SandboxList, Snapshot,
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .routes(routes!(create_sandbox, list_sandboxes))
        .routes(routes!(show_sandbox, remove_sandbox))
        .routes(routes!(pause_sandbox))
        .routes(routes!(resume_sandbox))
        .routes(routes!(fork_sandbox))
        .routes(routes!(stop_sandbox))
        .routes(routes!(tell_guest))
}

/// Starts a sandbox on empty memory.
#[utoipa::path(
    post,
    path = "/v1/sandboxes",
    tag = "sandboxes",
    params(crate::api::document::KeyParameter),
    request_body = CreateSandbox,
    responses((status = 201, description = "The sandbox; its path is in `Location`", body = Sandbox))
)]
async fn create_sandbox(
    State(control): State<BoundedControl>,
    place: Place,
    Key(key): Key,
    JsonBody(wanted): JsonBody<CreateSandbox>,
) -> Answer<Made<Sandbox>> {
    let made =
        control.change(place, key, move |control, asked| control.create_sandbox(asked, wanted)).await?;
    let path = Some(format!("/v1/sandboxes/{}", made.id));
    Ok(Made { made, path })
}

/// Lists the sandboxes, oldest first.
#[utoipa::path(
    get,
    path = "/v1/sandboxes",
    tag = "sandboxes",
    params(ListQuery),
    responses((status = 200, description = "A page of them", body = SandboxList))
)]
async fn list_sandboxes(
    State(control): State<BoundedControl>,
    place: Place,
    CheckedQuery(query): CheckedQuery<ListQuery>,
) -> Answer<Json<SandboxList>> {
    control.ask(place, move |control| control.sandboxes(&query)).await.map(Json)
}

/// Shows one sandbox.
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{reference}",
    tag = "sandboxes",
    params(crate::api::document::SandboxParameter),
    responses((status = 200, description = "The sandbox", body = Sandbox))
)]
async fn show_sandbox(
    State(control): State<BoundedControl>,
    place: Place,
    Reference(reference): Reference,
) -> Answer<Json<Sandbox>> {
    control.ask(place, move |control| control.sandbox(&reference)).await.map(Json)
}

/// Ends a sandbox's guest if it runs and forgets the sandbox; its snapshots stay.
#[utoipa::path(
    delete,
    path = "/v1/sandboxes/{reference}",
    tag = "sandboxes",
    params(crate::api::document::SandboxParameter),
    responses((status = 204, description = "It is gone"))
)]
async fn remove_sandbox(
    State(control): State<BoundedControl>,
    place: Place,
    Reference(reference): Reference,
) -> Answer<StatusCode> {
    control
        .change(place, None, move |control, asked| {
            control.remove_sandbox(&reference, asked).map(Removed::Sandbox)
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Pauses a sandbox into a snapshot, which can be resumed at once.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{reference}/pause",
    tag = "sandboxes",
    params(crate::api::document::SandboxParameter, crate::api::document::KeyParameter),
    request_body = PauseSandbox,
    responses((status = 201, description = "The snapshot; its path is in `Location`", body = Snapshot))
)]
async fn pause_sandbox(
    State(control): State<BoundedControl>,
    place: Place,
    Reference(reference): Reference,
    Key(key): Key,
    JsonBody(how): JsonBody<PauseSandbox>,
) -> Answer<Made<Snapshot>> {
    let made = control
        .change(place, key, move |control, asked| control.pause_sandbox(&reference, asked, how))
        .await?;
    let path = Some(format!("/v1/snapshots/{}", made.id));
    Ok(Made { made, path })
}

/// Resumes a paused sandbox from its last snapshot.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{reference}/resume",
    tag = "sandboxes",
    params(crate::api::document::SandboxParameter),
    request_body = ResumeSandbox,
    responses((status = 200, description = "The sandbox, running", body = Sandbox))
)]
async fn resume_sandbox(
    State(control): State<BoundedControl>,
    place: Place,
    Reference(reference): Reference,
    JsonBody(how): JsonBody<ResumeSandbox>,
) -> Answer<Json<Sandbox>> {
    control
        .change(place, None, move |control, asked| control.resume_sandbox(&reference, asked, how))
        .await
        .map(Json)
}

/// Makes new sandboxes that go on from this one's present state.
///
/// A running sandbox is paused for it and goes on from the same snapshot.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{reference}/fork",
    tag = "sandboxes",
    params(crate::api::document::SandboxParameter, crate::api::document::KeyParameter),
    request_body = ForkSandbox,
    responses((status = 201, description = "The new sandboxes", body = SandboxList))
)]
async fn fork_sandbox(
    State(control): State<BoundedControl>,
    place: Place,
    Reference(reference): Reference,
    Key(key): Key,
    JsonBody(how): JsonBody<ForkSandbox>,
) -> Answer<Made<SandboxList>> {
    let made = control
        .change(place, key, move |control, asked| control.fork_sandbox(&reference, asked, how))
        .await?;
    Ok(Made { made, path: None })
}

/// Ends a sandbox's guest; its work since its last pause is gone.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{reference}/stop",
    tag = "sandboxes",
    params(crate::api::document::SandboxParameter),
    responses((status = 200, description = "The sandbox, stopped", body = Sandbox))
)]
async fn stop_sandbox(
    State(control): State<BoundedControl>,
    place: Place,
    Reference(reference): Reference,
) -> Answer<Json<Sandbox>> {
    control.change(place, None, move |control, asked| control.stop_sandbox(&reference, asked)).await.map(Json)
}

/// Tells a process guest to do something, and gives its answer.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{reference}/guest",
    tag = "sandboxes",
    params(crate::api::document::SandboxParameter),
    request_body(content = crate::api::document::GuestCommand, description = "A command of the process guest"),
    responses((status = 200, description = "The guest's answer", body = serde_json::Value))
)]
async fn tell_guest(
    State(control): State<BoundedControl>,
    place: Place,
    Reference(reference): Reference,
    JsonBody(command): JsonBody<serde_json::Map<String, serde_json::Value>>,
) -> Answer<Json<serde_json::Value>> {
    let command = serde_json::Value::Object(command);
    control
        .change(place, None, move |control, asked| control.tell_guest(&reference, asked, command))
        .await
        .map(Json)
}
