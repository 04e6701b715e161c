//! Writes problems as in RFC 9457.

use axum::http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use super::limits;
use super::problem::{Code, Problem};
use super::quoted::quoted;

/// The media type of a problem.
pub(crate) const PROBLEM_TYPE: &str = "application/problem+json";

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.status()).expect("every code has a status of HTTP");
        let body = serde_json::to_vec(&self.body()).expect("a problem is strings and numbers");
        let mut response = (status, body).into_response();
        response.extensions_mut().insert(self.clone());
        let fields = response.headers_mut();
        fields.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_TYPE));
        if self.code == Code::Unauthorized {
            fields.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.code.passes() {
            fields.insert(RETRY_AFTER, HeaderValue::from(limits::ASK_AGAIN_AFTER_SECONDS));
        }
        response
    }
}

/// The answer to a new connection when `most` are open.
pub(crate) fn too_many_connections(most: usize) -> Response {
    let why = format!(
        "{most} connections are open, and no more are taken (api.connections_max): ask again, or close some that are idle"
    );
    let mut refused = Problem::new(Code::TooMany, why).into_response();
    refused.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    refused
}

/// The answer where there is no such route.
pub(crate) async fn no_route(uri: Uri) -> Problem {
    Problem::new(
        Code::NotFound,
        format!("there is no {}: /openapi.json lists what there is", quoted(uri.path())),
    )
}

/// The answer where a route has no such method.
pub(crate) async fn no_method(method: Method, uri: Uri) -> Problem {
    Problem::new(
        Code::WrongMethod,
        format!("{} has no {method}: the field `{ALLOW}` says what it has", quoted(uri.path())),
    )
}
