//! The routes, a module for each kind of resource, and the number of requests of each that are worked on at once.

mod captures;
mod console;
mod daemon;
mod events;
mod fault_sockets;
mod sandboxes;
mod snapshots;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use tracing::Instrument as _;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use super::admission;
use super::answer;
use super::audit;
use super::bounded::BoundedControl;
use super::limits;
use super::places::{Places, with_place};

/// Routes and their part of the document.
type Routes = OpenApiRouter<BoundedControl>;

/// Everything the API answers, for connections whose requests carry an [`admission::Admission`].
pub(crate) fn router(control: BoundedControl) -> Router {
    let (router, _document) = all().split_for_parts();
    router
        .fallback(answer::no_route)
        .method_not_allowed_fallback(answer::no_method)
        .layer(from_fn(admission::admit))
        .layer(from_fn(audit::audited))
        .layer(from_fn(traced))
        .with_state(control)
}

/// Runs a request in a span of its own and notes what it was answered.
async fn traced(request: Request, next: Next) -> Response {
    let span = tracing::info_span!("request", method = %request.method(), path = request.uri().path());
    let response = next.run(request).instrument(span.clone()).await;
    tracing::debug!(parent: &span, status = response.status().as_u16(), "answered");
    response
}

/// The document of the routes, before the parts common to all of them are added.
pub(crate) fn document() -> OpenApi {
    all().into_openapi()
}

fn all() -> Routes {
    let placed = |routes: Routes, kind: &'static str, count: usize| {
        routes.route_layer(from_fn_with_state(Places::new(kind, count), with_place))
    };
    let requests = sandboxes::routes()
        .merge(console::writes())
        .merge(snapshots::routes())
        .merge(fault_sockets::routes());
    placed(requests, "requests", limits::REQUESTS_MAX)
        .merge(placed(snapshots::waits(), "waits", limits::WAITS_MAX))
        .merge(placed(console::reads(), "console reads", limits::CONSOLE_WAITS_MAX))
        .merge(placed(snapshots::verifications(), "verifications", limits::VERIFICATIONS_MAX))
        .merge(placed(captures::routes(), "captures", limits::CAPTURES_MAX))
        .merge(placed(events::routes(), "event streams", limits::EVENT_STREAMS_MAX))
        .merge(placed(daemon::routes(), "probes", limits::PROBES_MAX))
}
