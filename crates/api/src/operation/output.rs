//! The answer of an operation: its value, and how it is sent.

use std::convert::Infallible;
use std::marker::PhantomData;

use axum::Json as AxumJson;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::{Content, Schemas, named};
use crate::audit::Removed;

/// The media type of JSON.
pub(crate) const JSON: &str = "application/json";

/// The type of measurements that end as OpenMetrics says.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The type of all others.
const PLAIN_METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The answer to a request.
pub(crate) trait Output: 'static {
    /// Its value.
    type Value: Send + 'static;

    /// The media types that it comes in, each with its schema.
    fn content(schemas: &mut Schemas) -> Content;

    /// The answer as it is sent.
    fn written(status: StatusCode, value: Self::Value) -> Response
    where
        Self::Value: Serialize,
    {
        (status, AxumJson(value)).into_response()
    }
}

/// A value with a schema of its own.
#[derive(Debug)]
pub(crate) struct Json<T>(PhantomData<fn() -> T>);

/// Several of them.
#[derive(Debug)]
pub(crate) struct JsonArray<T>(PhantomData<fn() -> T>);

/// Any JSON.
#[derive(Debug)]
pub(crate) enum AnyJson {}

/// The whole answer of an operation that only says that it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Done;

/// Measurements as text.
#[derive(Debug)]
pub(crate) enum Measurements {}

/// A stream of values, each an event; it has no end, and so no value.
#[derive(Debug)]
pub(crate) struct EventStreamOf<T>(PhantomData<fn() -> T>);

/// A connection that carries bytes from then on.
#[derive(Debug)]
pub(crate) enum ByteStream {}

impl Output for ByteStream {
    type Value = Infallible;

    fn content(_: &mut Schemas) -> Content {
        Vec::new()
    }
}

impl<T: ToSchema + Send + 'static> Output for Json<T> {
    type Value = T;

    fn content(schemas: &mut Schemas) -> Content {
        vec![(JSON, named::<T>(schemas))]
    }
}

impl<T: ToSchema + Send + 'static> Output for JsonArray<T> {
    type Value = Vec<T>;

    fn content(schemas: &mut Schemas) -> Content {
        let array = ArrayBuilder::new().items(named::<T>(schemas)).build();
        vec![(JSON, RefOr::T(Schema::Array(array)))]
    }
}

impl Output for AnyJson {
    type Value = serde_json::Value;

    fn content(_: &mut Schemas) -> Content {
        vec![(JSON, serde_json::Value::schema())]
    }
}

impl Output for Done {
    type Value = Self;

    fn content(_: &mut Schemas) -> Content {
        Vec::new()
    }

    fn written(status: StatusCode, Self: Self) -> Response {
        status.into_response()
    }
}

impl Output for Measurements {
    type Value = String;

    fn content(_: &mut Schemas) -> Content {
        vec![("application/openmetrics-text", String::schema()), ("text/plain", String::schema())]
    }

    fn written(status: StatusCode, text: String) -> Response {
        let is_open = text.trim_end().ends_with("# EOF");
        let kind = if is_open { OPEN_METRICS } else { PLAIN_METRICS };
        (status, [(CONTENT_TYPE, kind)], text).into_response()
    }
}

impl<T: ToSchema + 'static> Output for EventStreamOf<T> {
    type Value = Infallible;

    fn content(schemas: &mut Schemas) -> Content {
        vec![("text/event-stream", named::<T>(schemas))]
    }
}

impl From<Removed> for Done {
    fn from(_: Removed) -> Self {
        Self
    }
}

impl From<()> for Done {
    fn from((): ()) -> Self {
        Self
    }
}
