//! The input of an operation: a body, a query, or none.

use std::future::Future;
use std::marker::PhantomData;

use axum::body::Bytes;
use axum::extract::{FromRequest as _, FromRequestParts as _, Request};
use serde::Serialize;
use utoipa::openapi::RefOr;
use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::openapi::schema::Schema;
use utoipa::{IntoParams, ToSchema};

use super::{Schemas, encoded, named};
use crate::checks::Checked;
use crate::extract::{CheckedQuery, JsonBody};
use crate::problem::Problem;

/// The input of a request.
pub(crate) trait Input: Send + 'static {
    /// Its value.
    type Value: Send + 'static;

    /// The value of a request, checked.
    fn take(request: Request) -> impl Future<Output = Result<Self::Value, Problem>> + Send;
    /// The value after the `?`, and as a body.
    fn encode(value: &Self::Value) -> EncodedInput;
    /// The parameters of the query.
    fn parameters() -> Vec<Parameter> {
        Vec::new()
    }
    /// The schema of the body.
    fn body_schema(_schemas: &mut Schemas) -> Option<BodySchema> {
        None
    }
}

/// A body in the document.
pub(crate) struct BodySchema {
    pub(crate) schema: RefOr<Schema>,
    /// The body in words, where its schema does not say it.
    pub(crate) said: Option<&'static str>,
}

/// An input as a client sends it.
#[derive(Debug, Default)]
pub(crate) struct EncodedInput {
    /// Behind the path, with its `?`.
    pub(crate) query: String,
    pub(crate) body: Option<Bytes>,
}

/// No input.
#[derive(Debug)]
pub(crate) enum NoInput {}

/// A body of JSON.
#[derive(Debug)]
pub(crate) struct Body<T>(PhantomData<fn() -> T>);

/// Fields behind the `?`.
#[derive(Debug)]
pub(crate) struct InQuery<T>(PhantomData<fn() -> T>);

/// A command to a process guest.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the document describes its field")]
pub(crate) struct GuestCommand {
    /// The command: `fill`, `rewrite`, `discard`, `verify`, `checksums`, `tick`, `state`. The other fields depend on
    /// it.
    command: String,
}

impl Input for NoInput {
    type Value = ();

    async fn take(_: Request) -> Result<(), Problem> {
        Ok(())
    }

    fn encode((): &()) -> EncodedInput {
        EncodedInput::default()
    }
}

impl<T: Checked + Serialize + ToSchema + Send + 'static> Input for Body<T> {
    type Value = T;

    async fn take(request: Request) -> Result<T, Problem> {
        JsonBody::from_request(request, &()).await.map(|JsonBody(said)| said)
    }

    fn encode(value: &T) -> EncodedInput {
        EncodedInput { query: String::new(), body: Some(json(value)) }
    }

    fn body_schema(schemas: &mut Schemas) -> Option<BodySchema> {
        Some(BodySchema { schema: named::<T>(schemas), said: None })
    }
}

impl<T: Checked + Serialize + IntoParams + Send + 'static> Input for InQuery<T> {
    type Value = T;

    async fn take(request: Request) -> Result<T, Problem> {
        let (mut parts, _body) = request.into_parts();
        CheckedQuery::from_request_parts(&mut parts, &()).await.map(|CheckedQuery(said)| said)
    }

    fn encode(value: &T) -> EncodedInput {
        EncodedInput { query: query_of(value), body: None }
    }

    fn parameters() -> Vec<Parameter> {
        T::into_params(|| Some(ParameterIn::Query))
    }
}

impl Input for GuestCommand {
    type Value = serde_json::Value;

    async fn take(request: Request) -> Result<Self::Value, Problem> {
        let JsonBody(command) = JsonBody::from_request(request, &()).await?;
        Ok(serde_json::Value::Object(command))
    }

    fn encode(value: &Self::Value) -> EncodedInput {
        EncodedInput { query: String::new(), body: Some(json(value)) }
    }

    fn body_schema(schemas: &mut Schemas) -> Option<BodySchema> {
        Some(BodySchema { schema: named::<Self>(schemas), said: Some("A command of the process guest") })
    }
}

fn json(value: &impl Serialize) -> Bytes {
    Bytes::from(serde_json::to_vec(value).expect("a body is strings, numbers and maps"))
}

/// The fields of `value` as a query, with its `?`; those without a value are left out.
fn query_of(value: &impl Serialize) -> String {
    let fields = serde_json::to_value(value).expect("a query is strings and numbers");
    let mut query = String::new();
    for (name, value) in fields.as_object().into_iter().flatten() {
        let several = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        for value in several.iter().filter(|value| !value.is_null()) {
            let mark = if query.is_empty() { '?' } else { '&' };
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            query.push_str(&format!("{mark}{name}={}", encoded(&text)));
        }
    }
    query
}
