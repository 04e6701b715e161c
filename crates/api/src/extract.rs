//! Extracts typed values from requests, checked; a refusal says what to change.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use uuid::Uuid;

use super::bounded::Ending;
use super::checks::Checked;
use super::control::IdempotencyKey;
use super::limits;
use super::problem::{Code, Problem};
use super::query;
use super::quoted::quoted;
use super::types::Reference;
use super::types::shapes::Object;

/// The name of the field that carries an idempotency key.
const IDEMPOTENCY_KEY: &str = "Idempotency-Key";

/// The name of the field with which an event stream is resumed.
const LAST_EVENT_ID: &str = "Last-Event-ID";

/// A body of JSON; none at all is `{}`, and so is `null`. The declared type of the body does not matter.
#[derive(Debug)]
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<S: Send + Sync, T: Checked> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Problem> {
        let ending = request.extensions().get::<Ending>().cloned();
        let reading = read_body(request, T::BYTES_MAX, limits::BODY_WITHIN);
        let body = match ending {
            Some(mut ending) => tokio::select! {
                biased;
                body = reading => body?,
                () = ending.comes() => return Err(half_a_request()),
            },
            None => reading.await?,
        };
        let text: &[u8] = if body.is_empty() || body.trim_ascii() == b"null" { b"{}" } else { &body };
        let Object(said) = serde_json::from_slice::<Object<T>>(text)
            .map_err(|error| invalid(format!("the body: {error}")))?;
        said.check()?;
        Ok(Self(said))
    }
}

fn half_a_request() -> Problem {
    Problem::new(
        Code::Ending,
        "the daemon is ending, and the request had not come whole: ask again when it is back",
    )
}

async fn read_body(request: Request, bytes_max: usize, within: Duration) -> Result<Bytes, Problem> {
    let reading = Limited::new(request.into_body(), bytes_max).collect();
    match tokio::time::timeout(within, reading).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(Problem::new(Code::TooLarge, format!("the body has more than {bytes_max} bytes")))
        }
        Ok(Err(error)) => Err(invalid(format!("the body could not be read to its end: {error}"))),
        Err(_elapsed) => Err(invalid(format!("the body did not arrive within {} s", within.as_secs()))),
    }
}

/// The fields after the `?`.
#[derive(Debug)]
pub(crate) struct CheckedQuery<T>(pub(crate) T);

impl<S: Send + Sync, T: Checked> FromRequestParts<S> for CheckedQuery<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let read = Query::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        let Query(pairs) =
            read.map_err(|_refused| invalid("the query is not `name=value` with `&` between".to_owned()))?;
        let said: T = query::read(&pairs)?;
        said.check()?;
        Ok(Self(said))
    }
}

/// An id, the beginning of one, or a name, in the path.
#[derive(Debug)]
pub(crate) struct InPath(pub(crate) Reference);

impl<S: Send + Sync> FromRequestParts<S> for InPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let found = Path::<String>::from_request_parts(parts, state).await;
        let Path(reference) = found.map_err(|refused: PathRejection| invalid(refused.body_text()))?;
        Reference::try_from(reference).map(Self).map_err(|error| invalid(error.to_string()))
    }
}

/// A whole id in the path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WholeId(pub(crate) Uuid);

impl<S: Send + Sync> FromRequestParts<S> for WholeId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let InPath(text) = InPath::from_request_parts(parts, state).await?;
        let id = Uuid::try_parse(&text)
            .map_err(|error| invalid(format!("{} is no id: {error}", quoted(&text))))?;
        Ok(Self(id))
    }
}

/// The request's idempotency key, if it has one.
#[derive(Debug)]
pub(crate) struct Key(pub(crate) Option<IdempotencyKey>);

impl<S: Send + Sync> FromRequestParts<S> for Key {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let Some(key) = only_field(&parts.headers, IDEMPOTENCY_KEY)? else { return Ok(Self(None)) };
        let length_max = limits::IDEMPOTENCY_KEY_LENGTH_MAX;
        let fits = (1..=length_max).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
        match fits {
            true => Ok(Self(Some(key))),
            false => Err(invalid(format!(
                "`{IDEMPOTENCY_KEY}` must be 1 to {length_max} visible ASCII characters"
            ))),
        }
    }
}

/// The id of the last event a client had, if it says one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LastEventId(pub(crate) Option<u64>);

impl<S: Send + Sync> FromRequestParts<S> for LastEventId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let Some(text) = only_field(&parts.headers, LAST_EVENT_ID)? else { return Ok(Self(None)) };
        let id = text.parse().map_err(|_not_a_number| {
            invalid(format!(
                "`{LAST_EVENT_ID}` is {}: it must be the id of an event, a number",
                quoted(&text)
            ))
        })?;
        Ok(Self(Some(id)))
    }
}

/// The value of a field that may come once.
fn only_field(fields: &HeaderMap, name: &str) -> Result<Option<String>, Problem> {
    let mut values = fields.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(invalid(format!("`{name}` comes twice")));
    }
    let text =
        value.to_str().map_err(|_not_ascii| invalid(format!("`{name}` must be visible ASCII characters")))?;
    Ok(Some(text.to_owned()))
}

fn invalid(detail: String) -> Problem {
    Problem::new(Code::InvalidRequest, detail)
}
