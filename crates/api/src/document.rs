//! The API's OpenAPI document: the operations that are answered, and the rules common to all of them.

use std::collections::{BTreeMap, BTreeSet};

use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::path::{HttpMethod, Operation, OperationBuilder};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{
    AdditionalProperties, ComponentsBuilder, ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type,
};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, Paths, Ref, RefOr, Required, Response,
    ResponseBuilder,
};
use utoipa::{IntoParams, PartialSchema as _, ToSchema as _};

use super::API_VERSION;
use super::answer::PROBLEM_TYPE;
use super::operation::{BodySchema, Described, Facts, JSON, Schemas, Verb};
use super::problem::Code;
use super::types::{CaptureSource, ProblemBody};

/// The name of the way in over TCP.
const TOKEN: &str = "token";

/// A name for the request.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it stands for what handlers take as `Key`")]
struct KeyParameter {
    /// A name the caller chooses for this request: the same request under the same key is done once, also over a
    /// restart of the daemon, and answered alike. It is remembered for a day, if it is among the newest 100,000.
    #[param(rename = "Idempotency-Key", min_length = 1, max_length = 255, pattern = "^[!-~]+$")]
    key: Option<String>,
}

/// The id after which an event stream goes on.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it stands for what handlers take as `LastEventId`")]
struct LastEventIdParameter {
    /// The last event the client had.
    #[param(rename = "Last-Event-ID")]
    last: Option<u64>,
}

/// The document of these operations, as it is sent and as it is kept in `docs/openapi.json`.
pub(super) fn text_of(operations: &[Described]) -> String {
    let mut text = document(operations).to_pretty_json().expect("the document is strings, numbers and maps");
    text.push('\n');
    text
}

/// The document of these operations.
pub(super) fn document(operations: &[Described]) -> OpenApi {
    let mut schemas: Schemas = vec![(ProblemBody::name().into_owned(), ProblemBody::schema())];
    let mut paths = Paths::new();
    for operation in operations {
        let method = match operation.facts.verb {
            Verb::Get => HttpMethod::Get,
            Verb::Post => HttpMethod::Post,
            Verb::Delete => HttpMethod::Delete,
        };
        let described = in_document(operation, &mut schemas);
        paths.add_path_operation(operation.facts.path, vec![method], described);
    }
    let by_token = SecurityScheme::Http(
        HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("Over TCP only; on the socket the peer's user decides."))
            .build(),
    );
    let mut components =
        ComponentsBuilder::new().schemas_from_iter(schemas).security_scheme(TOKEN, by_token).build();
    if let Some(RefOr::T(Schema::OneOf(sources))) = components.schemas.get_mut(&*CaptureSource::name()) {
        sources.items.iter_mut().for_each(refuse_unknown);
    }
    let info = InfoBuilder::new()
        .title("rekindle")
        .description(Some(description()))
        .version(API_VERSION)
        .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build()))
        .build();
    let security = [SecurityRequirement::default(), SecurityRequirement::new(TOKEN, Vec::<String>::new())];
    OpenApiBuilder::new()
        .info(info)
        .paths(paths)
        .components(Some(components))
        .security(Some(security))
        .build()
}

/// The schema of a body that may be absent: generated clients send `null` for that.
fn or_null(schema: RefOr<Schema>) -> RefOr<Schema> {
    let null = ObjectBuilder::new().schema_type(SchemaType::new(Type::Null));
    RefOr::T(OneOfBuilder::new().item(schema).item(null).into())
}

/// An operation as the document has it; the schemas that it names are added to `schemas`.
fn in_document(operation: &Described, schemas: &mut Schemas) -> Operation {
    let Described { facts, path, query, body, content } = operation;
    let key = facts.is_keyed.then(|| KeyParameter::into_params(|| None));
    let last_event = facts.goes_on_after_event.then(|| LastEventIdParameter::into_params(|| None));
    let fields = key.into_iter().chain(last_event).flatten();
    let parameters: Vec<_> = path().into_iter().chain(query()).chain(fields).collect();
    let body = body(schemas).map(|BodySchema { schema, said }| {
        let (schema, required) = match facts.is_body_optional {
            true => (or_null(schema), Required::False),
            false => (schema, Required::True),
        };
        RequestBodyBuilder::new()
            .description(said)
            .content(JSON, ContentBuilder::new().schema(Some(schema)).build())
            .required(Some(required))
            .build()
    });
    let success = (facts.status, facts.said);
    let answered = OperationBuilder::new()
        .tag(facts.tag)
        .summary(Some(facts.summary))
        .description(facts.description)
        .operation_id(Some(facts.id))
        .parameters((!parameters.is_empty()).then_some(parameters))
        .request_body(body);
    let answered = refusals(facts)
        .into_iter()
        .fold(answered, |answered, (status, said)| answered.response(status.to_string(), problem(said)));
    [success]
        .into_iter()
        .chain(facts.or)
        .fold(answered, |answered, (status, said)| {
            let answer = content(schemas).into_iter().fold(
                ResponseBuilder::new().description(said),
                |answer, (kind, schema)| {
                    answer.content(kind, ContentBuilder::new().schema(Some(schema)).build())
                },
            );
            answered.response(status.to_string(), answer.build())
        })
        .response("default", problem("It was not done; `code` says why".to_owned()))
        .build()
}

/// The statuses with the codes that only some operations have, each in words with all codes that come with it here.
fn refusals(facts: &Facts) -> BTreeMap<u16, String> {
    let own = |code: &Code| facts.may_fail_with(*code) && !Code::OF_ALL.contains(code);
    let statuses: BTreeSet<u16> = Code::ALL.into_iter().filter(own).map(Code::status).collect();
    let said_of = |status| {
        let codes =
            Code::ALL.into_iter().filter(|code| code.status() == status && facts.may_fail_with(*code));
        let said: Vec<_> = codes.map(|code| format!("`{}`: {}", code.name(), code.title())).collect();
        said.join("; ")
    };
    statuses.into_iter().map(|status| (status, said_of(status))).collect()
}

/// The answer of a request that was not done.
fn problem(said: String) -> Response {
    let schema = Ref::from_schema_name(ProblemBody::name());
    let content = ContentBuilder::new().schema(Some(schema)).build();
    ResponseBuilder::new().description(said).content(PROBLEM_TYPE, content).build()
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
        let (every, status) = (Code::OF_ALL.contains(&code), code.status());
        let of_all = if every { ", of every operation" } else { "" };
        text.push_str(&format!("- `{}` ({status}{of_all}): {}\n", code.name(), code.title()));
    }
    text
}
