//! Consoles of virtual machines: read and typed at.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use utoipa_axum::routes;

use super::Routes;
use crate::api::bounded::BoundedControl;
use crate::api::control::Answer;
use crate::api::extract::{CheckedQuery, JsonBody, Reference};
use crate::api::limits;
use crate::api::places::Place;
use crate::api::problem::{Code, Problem};
use crate::api::types::{ConsoleInput, ConsoleOutput, ConsoleQuery};

pub(super) fn reads() -> Routes {
    Routes::default().routes(routes!(read_console))
}

pub(super) fn writes() -> Routes {
    Routes::default().routes(routes!(type_at_console))
}

/// Reads what a sandbox's guests printed at their console.
///
/// Each answer gives the position to go on from, so that nothing is missed: ask again from `next` on, and wait there.
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{reference}/console",
    tag = "sandboxes",
    params(crate::api::document::SandboxParameter, ConsoleQuery),
    responses((status = 200, description = "The output; empty if none came in time", body = ConsoleOutput))
)]
async fn read_console(
    State(control): State<BoundedControl>,
    place: Place,
    Reference(reference): Reference,
    CheckedQuery(query): CheckedQuery<ConsoleQuery>,
) -> Answer<Json<ConsoleOutput>> {
    let until = Instant::now() + Duration::from_secs(query.wait_seconds.unwrap_or_default().into());
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let turn = left.min(limits::WAIT_TURN);
        let of = reference.clone();
        let output =
            control.ask(place.clone(), move |control| control.console(&of, query.from, turn)).await?;
        if output.next > output.from || left == turn || control.ending().has_come() {
            return Ok(Json(output));
        }
    }
}

/// Types at the console of a sandbox's guest.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{reference}/console",
    tag = "sandboxes",
    params(crate::api::document::SandboxParameter),
    request_body = ConsoleInput,
    responses((status = 204, description = "It is typed"))
)]
async fn type_at_console(
    State(control): State<BoundedControl>,
    place: Place,
    Reference(reference): Reference,
    JsonBody(input): JsonBody<ConsoleInput>,
) -> Answer<StatusCode> {
    let bytes = BASE64_STANDARD
        .decode(&input.bytes)
        .map_err(|error| Problem::new(Code::InvalidRequest, format!("`bytes` is not base64: {error}")))?;
    control.change(place, None, move |control, _| control.type_console(&reference, &bytes)).await?;
    Ok(StatusCode::NO_CONTENT)
}
