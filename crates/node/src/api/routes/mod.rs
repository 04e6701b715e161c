//! The handlers of all operations, and the number of requests of each kind that are worked on at once.

mod daemon;
mod events;
mod memory;
mod registered;
mod sandboxes;
mod snapshots;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use tracing::Instrument as _;

use self::registered::{Routes, Taken};
use super::admission;
use super::answer;
use super::audit;
use super::bounded::BoundedControl;
use super::limits;
use super::operation::Described;
use super::places::{Places, with_place};

/// Everything the API answers, for connections whose requests carry an [`admission::Admission`].
pub(crate) fn router(control: BoundedControl) -> Router {
    all()
        .router
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

/// Every operation that is answered.
pub(crate) fn described() -> Vec<Described> {
    all().described
}

fn all() -> Routes {
    let placed = |routes: Routes, kind: &'static str, count: usize| Routes {
        router: routes.router.route_layer(from_fn_with_state(Places::new(kind, count), with_place)),
        described: routes.described,
    };
    let requests = sandboxes::routes().and(snapshots::routes()).and(memory::fault_sockets());
    placed(requests, "requests", limits::REQUESTS_MAX)
        .and(placed(snapshots::waits(), "waits", limits::WAITS_MAX))
        .and(placed(sandboxes::console_reads(), "console reads", limits::CONSOLE_WAITS_MAX))
        .and(placed(snapshots::verifications(), "verifications", limits::VERIFICATIONS_MAX))
        .and(placed(memory::captures(), "captures", limits::CAPTURES_MAX))
        .and(placed(events::routes(), "event streams", limits::EVENT_STREAMS_MAX))
        .and(placed(daemon::routes(), "probes", limits::PROBES_MAX))
}
