//! The API's OpenAPI document: the descriptions of its routes, and the rules common to all of them.

use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{AdditionalProperties, Schema};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{InfoBuilder, LicenseBuilder, OpenApi, Ref, RefOr, Required, ResponseBuilder};
use utoipa::{IntoParams, PartialSchema as _, ToSchema};
use uuid::Uuid;

use super::answer::PROBLEM_TYPE;
use super::problem::Code;
use super::types::{CaptureSource, ProblemBody};
use super::{API_VERSION, routes};

/// The name of the way in over TCP.
const TOKEN: &str = "token";

/// Bodies that say nothing that must be said.
const BODIES_THAT_MAY_BE_ABSENT: [&str; 4] =
    ["pause_sandbox", "resume_sandbox", "fork_sandbox", "resume_snapshot"];

/// A sandbox in a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it stands for what handlers take as `Reference`")]
pub(super) struct SandboxParameter {
    /// The sandbox: its id, a unique prefix of it of at least four characters, or its name.
    #[param(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    reference: String,
}

/// A snapshot in a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it stands for what handlers take as `Reference`")]
pub(super) struct SnapshotParameter {
    /// The snapshot: its id, a unique prefix of it of at least four characters, or its name.
    #[param(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    reference: String,
}

/// A fault socket in a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it stands for what handlers take as `WholeId`")]
pub(super) struct FaultSocketParameter {
    /// The fault socket's id.
    id: Uuid,
}

/// A name for the request.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it stands for what handlers take as `Key`")]
pub(super) struct KeyParameter {
    /// A name the caller chooses for this request: the same request under the same key is done once, also over a
    /// restart of the daemon, and answered alike. It is remembered for a day, if it is among the newest 100,000.
    #[param(rename = "Idempotency-Key", min_length = 1, max_length = 255, pattern = "^[!-~]+$")]
    key: Option<String>,
}

/// The id after which an event stream goes on.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it stands for what handlers take as `LastEventId`")]
pub(super) struct LastEventIdParameter {
    /// The last event the client had.
    #[param(rename = "Last-Event-ID")]
    last: Option<u64>,
}

/// A command to a process guest.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it stands for what handlers take as a map")]
pub(super) struct GuestCommand {
    /// The command: `fill`, `rewrite`, `discard`, `verify`, `checksums`, `tick`, `state`. The other fields depend on
    /// it.
    command: String,
}

/// The document, as it is sent and as it is kept in `docs/openapi.json`.
pub fn document_text() -> String {
    let mut text = document().to_pretty_json().expect("the document is strings, numbers and maps");
    text.push('\n');
    text
}

/// The document.
pub fn document() -> OpenApi {
    let mut document = routes::document();
    document.info = InfoBuilder::new()
        .title("rekindle")
        .description(Some(description()))
        .version(API_VERSION)
        .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build()))
        .build();
    let components = document.components.get_or_insert_default();
    components.schemas.insert(ProblemBody::name().into_owned(), ProblemBody::schema());
    if let Some(RefOr::T(Schema::OneOf(sources))) = components.schemas.get_mut(&*CaptureSource::name()) {
        sources.items.iter_mut().for_each(refuse_unknown);
    }
    let by_token = SecurityScheme::Http(
        HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("Over TCP only; on the socket the peer's user decides."))
            .build(),
    );
    components.add_security_scheme(TOKEN, by_token);
    document.security =
        Some(vec![SecurityRequirement::default(), SecurityRequirement::new(TOKEN, Vec::<String>::new())]);
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.delete];
        operations.into_iter().flatten().for_each(complete);
    }
    document
}

/// Adds to a route what holds for all of them.
fn complete(operation: &mut Operation) {
    let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name(ProblemBody::name()))).build();
    let response = ResponseBuilder::new()
        .description("It was not done; `code` says why")
        .content(PROBLEM_TYPE, problem)
        .build();
    operation.responses.responses.insert("default".to_owned(), RefOr::T(response));
    let may_be_absent = operation
        .operation_id
        .as_deref()
        .is_some_and(|operation| BODIES_THAT_MAY_BE_ABSENT.contains(&operation));
    if let Some(RefOr::T(body)) = operation.request_body.as_mut().filter(|_| may_be_absent) {
        body.required = Some(Required::False);
    }
}

/// Says of an object that it has no other fields, as its type in Rust does.
fn refuse_unknown(schema: &mut RefOr<Schema>) {
    if let RefOr::T(Schema::Object(object)) = schema {
        object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
    }
}

fn description() -> String {
    let mut text = String::from(
        "Pauses sandboxes and brings them back at once. A request is done whole or not at all. If its client goes away \
         before it is answered, the things it began to make are undone; a pause that has begun, and a request with an \
         `Idempotency-Key`, which makes asking again safe, are done to their end.\n\nThe codes of problems:\n\n",
    );
    for code in Code::ALL {
        text.push_str(&format!("- `{}` ({}): {}\n", code.name(), code.status(), code.title()));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_route_says_what_a_problem_is_like() {
        let document = serde_json::to_value(document()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let operations: Vec<_> = paths.values().flat_map(|item| item.as_object().unwrap().values()).collect();
        assert_eq!(operations.len(), 29);
        let expected = json!({ "$ref": "#/components/schemas/ProblemBody" });
        for operation in operations {
            assert_eq!(operation["responses"]["default"]["content"][PROBLEM_TYPE]["schema"], expected);
            assert!(operation["operationId"].is_string() && operation["tags"].is_array());
        }
    }
}
