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
use super::document;
use super::limits;
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

/// The OpenAPI document of every operation that is answered.
pub fn document_text() -> String {
    document::text_of(&all().described)
}

fn all() -> Routes {
    let placed = |routes: Routes, kind: &'static str, count: usize| Routes {
        router: routes.router.route_layer(from_fn_with_state(Places::new(kind, count), with_place)),
        described: routes.described,
    };
    let requests =
        sandboxes::routes().and(snapshots::routes()).and(memory::fault_sockets()).and(daemon::drains());
    placed(requests, "requests", limits::REQUESTS_MAX)
        .and(placed(snapshots::waits(), "waits", limits::WAITS_MAX))
        .and(placed(sandboxes::console_reads(), "console reads", limits::CONSOLE_WAITS_MAX))
        .and(placed(sandboxes::channels(), "channels", limits::CHANNELS_MAX))
        .and(placed(snapshots::verifications(), "verifications", limits::VERIFICATIONS_MAX))
        .and(placed(daemon::collections(), "collections", limits::COLLECTIONS_MAX))
        .and(placed(memory::captures(), "captures", limits::CAPTURES_MAX))
        .and(placed(snapshots::placements(), "placements", limits::PLACEMENTS_MAX))
        .and(placed(events::routes(), "event streams", limits::EVENT_STREAMS_MAX))
        .and(placed(daemon::routes(), "probes", limits::PROBES_MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::answer::PROBLEM_TYPE;
    use crate::problem::Code;

    #[test]
    fn every_route_says_what_a_problem_is_like() {
        let document = serde_json::to_value(document::document(&all().described)).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let operations: Vec<_> = paths.values().flat_map(|item| item.as_object().unwrap().values()).collect();
        assert_eq!(operations.len(), 44);
        let expected = json!({ "$ref": "#/components/schemas/ProblemBody" });
        for operation in operations {
            assert_eq!(operation["responses"]["default"]["content"][PROBLEM_TYPE]["schema"], expected);
            assert!(operation["operationId"].is_string() && operation["tags"].is_array());
        }
    }

    #[test]
    fn an_operation_lists_the_codes_that_are_its_own_by_their_status() {
        let document = serde_json::to_value(document::document(&all().described)).unwrap();
        let responses = |path: &str, verb: &str| document["paths"][path][verb]["responses"].clone();
        let keys = |responses: serde_json::Value| {
            responses.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(keys(responses("/v1/sandboxes", "get")), "200 default");
        assert_eq!(keys(responses("/v1/fault-sockets/{id}", "get")), "200 404 default");
        let create = responses("/v1/sandboxes", "post");
        assert_eq!(
            create["422"]["description"],
            "`idempotency_mismatch`: The idempotency key belongs to another request"
        );
        let busy = create["503"]["description"].as_str().unwrap();
        assert!(busy.contains("`no_ram`") && busy.contains("`ending`"), "{busy}");
    }

    #[test]
    fn every_code_belongs_to_an_operation() {
        let of_one =
            |code: &Code| all().described.iter().any(|operation| operation.facts.may_fail_with(*code));
        let unused: Vec<_> = Code::ALL.into_iter().filter(|code| !of_one(code)).collect();
        assert_eq!(unused, [Code::WrongMethod], "only a path's own answer has it");
    }
}
