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
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::endpoint::Endpoint;
use super::error::ClientError;

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
    body: Option<Vec<u8>>,
}

impl Call {
    pub(super) fn new(method: Method, path: &str) -> Self {
        Self { method, path: path.to_owned(), key: None, body: None }
    }

    pub(super) fn get(path: &str) -> Self {
        Self::new(Method::GET, path)
    }

    pub(super) fn post(path: &str) -> Self {
        Self::new(Method::POST, path)
    }

    pub(super) fn delete(path: &str) -> Self {
        Self::new(Method::DELETE, path)
    }

    /// The same, of the one thing `reference` names.
    pub(super) fn of(mut self, reference: &str) -> Self {
        self.path.push('/');
        for byte in reference.bytes() {
            push_byte(&mut self.path, byte);
        }
        self
    }

    /// The same, with more path behind it.
    pub(super) fn then(mut self, more: &str) -> Self {
        self.path.push_str(more);
        self
    }

    /// The same, asking more closely.
    pub(super) fn with_query(mut self, query: &impl Serialize) -> Self {
        let fields = serde_json::to_value(query).expect("a query is strings and numbers");
        let fields = fields.as_object().expect("a query has fields");
        let mut mark = '?';
        let all = fields.iter().flat_map(|(name, value)| {
            let several = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            several.iter().map(move |value| (name, value))
        });
        for (name, value) in all.filter(|(_, value)| !value.is_null()) {
            self.path.push(mark);
            self.path.push_str(name);
            self.path.push('=');
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            text.bytes().for_each(|byte| push_byte(&mut self.path, byte));
            mark = '&';
        }
        self
    }

    pub(super) fn with_key(mut self, key: Option<&str>) -> Self {
        self.key = key.map(str::to_owned);
        self
    }

    pub(super) fn with_body(mut self, body: &impl Serialize) -> Self {
        self.body = Some(serde_json::to_vec(body).expect("a body is strings, numbers and maps"));
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
        let mut request = Request::new(Full::new(Bytes::from(self.body.unwrap_or_default())));
        *request.method_mut() = self.method;
        *request.uri_mut() = self.path.parse().map_err(|_error| strange(&self.path))?;
        *request.headers_mut() = fields;
        Ok(request)
    }
}

/// Adds a byte to a path or query, as `%` and its number where it may not stand there as it is.
fn push_byte(path: &mut String, byte: u8) {
    match byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
        true => path.push(char::from(byte)),
        false => path.push_str(&format!("%{byte:02X}")),
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

    /// Nothing but that it was done.
    pub(super) fn done(self) -> Result<(), ClientError> {
        self.succeeded().map(drop)
    }

    fn succeeded(self) -> Result<Self, ClientError> {
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
    let mut driving: Driving = Box::pin(driving);
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
