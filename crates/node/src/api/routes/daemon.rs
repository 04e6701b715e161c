//! Routes about the daemon itself.

use std::sync::LazyLock;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use utoipa_axum::routes;

use super::Routes;
use crate::api::bounded::BoundedControl;
use crate::api::control::Answer;
use crate::api::document;
use crate::api::places::Place;
use crate::api::types::{Health, Readiness, Version};

/// The type of measurements that end as OpenMetrics says.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The type of all others.
const PLAIN_METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn routes() -> Routes {
    Routes::default()
        .routes(routes!(show_health))
        .routes(routes!(show_readiness))
        .routes(routes!(show_version))
        .routes(routes!(show_metrics))
        .routes(routes!(show_document))
}

/// Says that the daemon answers.
#[utoipa::path(
    get,
    path = "/v1/health",
    tag = "daemon",
    responses((status = 200, description = "It does", body = Health))
)]
async fn show_health(_place: Place) -> Json<Health> {
    Json(Health { healthy: true })
}

/// Tells if requests can be done, and names the obstacles.
#[utoipa::path(
    get,
    path = "/v1/ready",
    tag = "daemon",
    responses(
        (status = 200, description = "They can", body = Readiness),
        (status = 503, description = "They cannot now", body = Readiness)
    )
)]
async fn show_readiness(State(control): State<BoundedControl>, place: Place) -> Answer<Response> {
    let mut readiness = control.ask(place, |control| Ok(control.readiness())).await?;
    if control.ending().has_come() {
        readiness.ready = false;
        readiness.reasons.push("the daemon is ending".to_owned());
    }
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(readiness)).into_response())
}

/// Gives the daemon's version.
#[utoipa::path(
    get,
    path = "/v1/version",
    tag = "daemon",
    responses((status = 200, description = "The version", body = Version))
)]
async fn show_version(State(control): State<BoundedControl>, place: Place) -> Answer<Json<Version>> {
    control.ask(place, |control| Ok(Json(control.version()))).await
}

/// Gives the measurements, in a form Prometheus reads.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "daemon",
    responses((status = 200, description = "The measurements", content(
        (String = "application/openmetrics-text"),
        (String = "text/plain")
    )))
)]
async fn show_metrics(State(control): State<BoundedControl>, place: Place) -> Answer<Response> {
    let text = control.ask(place, |control| Ok(control.metrics())).await?;
    let is_open = text.trim_end().ends_with("# EOF");
    let kind = if is_open { OPEN_METRICS } else { PLAIN_METRICS };
    Ok(([(CONTENT_TYPE, kind)], text).into_response())
}

/// Gives this document.
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "daemon",
    responses((status = 200, description = "The OpenAPI document", body = serde_json::Value))
)]
async fn show_document(_place: Place) -> Response {
    static TEXT: LazyLock<String> = LazyLock::new(document::document_text);
    ([(CONTENT_TYPE, "application/json")], TEXT.as_str()).into_response()
}
