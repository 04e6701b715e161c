//! One request and its answer over a connection of its own.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, UPGRADE,
};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::endpoint::Endpoint;
use super::error::ClientError;
use crate::operation::{EncodedInput, Input, Operation, Output, Subject, Verb};
use crate::upgrade::PROTOCOL;

/// Bytes of an answer: far beyond what any route gives.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// The field that names a request.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A request.
#[derive(Debug)]
pub(super) struct Call {
    method: Method,
    path: String,
    key: Option<String>,
    body: Option<Bytes>,
    /// Goes on as bytes after the answer.
    upgrades: bool,
}

impl Call {
    /// A call of the operation about what `of` names.
    pub(super) fn of<S: Subject, I: Input, O: Output>(
        operation: &Operation<S, I, O>,
        of: &S::Name,
        input: &I::Value,
    ) -> Self {
        let method = match operation.facts.verb {
            Verb::Get => Method::GET,
            Verb::Post => Method::POST,
            Verb::Delete => Method::DELETE,
        };
        let EncodedInput { query, body } = I::encode(input);
        Self { method, path: operation.path_of(of) + &query, key: None, body, upgrades: false }
    }

    /// A call that no operation of the table is.
    pub(super) fn any(method: Method, path: &str, body: Option<&Value>) -> Self {
        let body = body.map(|body| Bytes::from(body.to_string()));
        Self { method, path: path.to_owned(), key: None, body, upgrades: false }
    }

    /// The same, which asks to go on with the connection as bytes.
    pub(super) fn upgraded(self) -> Self {
        Self { upgrades: true, ..self }
    }

    pub(super) fn with_key(mut self, key: Option<&str>) -> Self {
        self.key = key.map(str::to_owned);
        self
    }

    fn into_request(self, endpoint: &Endpoint) -> Result<Request<Full<Bytes>>, ClientError> {
        let strange = |what: &str| ClientError::Address { given: what.to_owned() };
        let mut fields = HeaderMap::new();
        let host = endpoint.host();
        fields.insert(HOST, HeaderValue::try_from(&host).map_err(|_error| strange(&host))?);
        fields.insert(ACCEPT, HeaderValue::from_static("*/*"));
        if let Some(token) = endpoint.token() {
            let mut value =
                HeaderValue::try_from(format!("Bearer {token}")).map_err(|_error| strange(&host))?;
            value.set_sensitive(true);
            fields.insert(AUTHORIZATION, value);
        }
        if let Some(key) = &self.key {
            fields.insert(IDEMPOTENCY_KEY, HeaderValue::try_from(key).map_err(|_error| strange(key))?);
        }
        if self.body.is_some() {
            fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if self.upgrades {
            fields.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            fields.insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
        }
        let mut request = Request::new(Full::new(self.body.unwrap_or_default()));
        *request.method_mut() = self.method;
        *request.uri_mut() = self.path.parse().map_err(|_error| strange(&self.path))?;
        *request.headers_mut() = fields;
        Ok(request)
    }
}

/// An answer, whole.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    endpoint: String,
    status: StatusCode,
    body: Bytes,
}

impl Reply {
    /// The answer as JSON; null where it is empty.
    pub(super) fn json<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        self.succeeded()?.any_json()
    }

    /// The answer as JSON, with any status.
    pub(super) fn any_json<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        let text: &[u8] = if self.body.is_empty() { b"null" } else { &self.body };
        serde_json::from_slice(text).map_err(|error| self.strange(error.to_string()))
    }

    /// The answer as text.
    pub(super) fn text(self) -> Result<String, ClientError> {
        let reply = self.succeeded()?;
        String::from_utf8(reply.body.to_vec()).map_err(|error| reply.strange(error.to_string()))
    }

    /// The same, unless it is a problem.
    pub(super) fn succeeded(self) -> Result<Self, ClientError> {
        if self.status.is_success() {
            return Ok(self);
        }
        match serde_json::from_slice(&self.body) {
            Ok(problem) => Err(ClientError::Problem(problem)),
            Err(error) => Err(self.strange(format!("no problem of its kind: {error}"))),
        }
    }

    fn strange(&self, reason: String) -> ClientError {
        ClientError::Strange { endpoint: self.endpoint.clone(), status: self.status.as_u16(), reason }
    }
}

/// Makes a call and waits for its answer.
pub(super) fn exchange(endpoint: &Endpoint, call: Call, within: Duration) -> Result<Reply, ClientError> {
    let exchanging = async {
        let open = open(endpoint, call).await?;
        open.collected(endpoint).await
    };
    let answered = runtime(endpoint)?.block_on(async { timeout(within, exchanging).await });
    answered.unwrap_or_else(|_elapsed| Err(ClientError::Silent { endpoint: endpoint.to_string(), within }))
}

/// The runtime of a call.
pub(super) fn runtime(endpoint: &Endpoint) -> Result<Runtime, ClientError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| ClientError::Unreachable { endpoint: endpoint.to_string(), source })
}

/// The connection's own work, without which nothing on it moves.
pub(super) type Driving = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// An answer whose body is still to come.
pub(super) struct Open {
    pub(super) response: Response<Incoming>,
    pub(super) driving: Driving,
    /// Keeps the connection: dropped, the request is taken back.
    pub(super) sender: SendRequest<Full<Bytes>>,
}

impl Open {
    /// The whole answer.
    pub(super) async fn collected(self, endpoint: &Endpoint) -> Result<Reply, ClientError> {
        let Self { response, mut driving, sender: _sender } = self;
        let status = response.status();
        let collecting = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect();
        let body = driven(&mut driving, collecting).await.map_err(|error| broken(endpoint, &*error))?;
        Ok(Reply { endpoint: endpoint.to_string(), status, body: body.to_bytes() })
    }
}

/// Sends a call and waits until its answer begins.
pub(super) async fn open(endpoint: &Endpoint, call: Call) -> Result<Open, ClientError> {
    let request = call.into_request(endpoint)?;
    let connection = TokioIo::new(endpoint.connect().await?);
    let (mut sender, driving) =
        handshake(connection).await.map_err(|error| unreachable_there(endpoint, &error))?;
    let mut driving: Driving = Box::pin(driving.with_upgrades());
    let response =
        driven(&mut driving, sender.send_request(request)).await.map_err(|error| broken(endpoint, &error))?;
    Ok(Open { response, driving, sender })
}

/// Waits for `work` while the connection moves.
pub(super) async fn driven<W: Future>(driving: &mut Driving, work: W) -> W::Output {
    match select(pin!(work), driving).await {
        Either::Left((done, _)) => done,
        // The connection has ended, and what it brought is there.
        Either::Right((_, work)) => work.await,
    }
}

fn unreachable_there(endpoint: &Endpoint, error: &hyper::Error) -> ClientError {
    let source = io::Error::other(error.to_string());
    ClientError::Unreachable { endpoint: endpoint.to_string(), source }
}

pub(super) fn broken(endpoint: &Endpoint, error: &(dyn std::error::Error + 'static)) -> ClientError {
    let reason = match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    ClientError::Broken { endpoint: endpoint.to_string(), reason }
}
