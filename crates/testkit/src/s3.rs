//! A real S3 server in the test's process, on a port of its own of the loopback interface. It misbehaves when told to, below
//! the protocol: whoever speaks to it cannot tell.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rekindle::bucket::{BucketAccess, BucketUrl, Environment};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::s3_keys::ShortKeys;
use crate::stores::Operation;

/// The bucket that every server has.
pub const BUCKET: &str = "snapshots";

/// The key that servers take.
pub const KEY_ID: &str = "REKINDLETESTKEY";
/// Its secret.
pub const SECRET: &str = "a-secret-of-tests-alone";

/// Misbehaviour of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misbehaviour {
    /// It asks for fewer requests, and does nothing.
    SlowDown,
    /// It answers with an error of its own, and does nothing.
    Fail,
    /// It does the request, and answers with an error.
    FailAfter,
    /// It answers with an error now, and does the request when the misbehaviour ends.
    LandLater,
    /// It does the request twice.
    Repeat,
    /// It does not answer until the misbehaviour ends, and then does the request.
    Stall,
    /// The connection ends in the middle of the answer.
    Cut,
    /// One bit of the answer is wrong.
    Corrupt,
    /// It answers a list as it did the last time that the same was asked.
    StaleList,
}

/// A misbehaviour and the requests that it hits.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// The operation that it hits.
    pub on: Operation,
    /// The beginning of the keys that it hits, or of the prefix of a list; empty for all.
    pub under: &'static str,
    /// The misbehaviour.
    pub misbehaviour: Misbehaviour,
    /// Number of such requests that are answered well first.
    pub after: u32,
    /// Number of such requests that it hits.
    pub times: u32,
}

/// A server; it ends with this.
#[derive(Debug)]
pub struct S3Server {
    address: SocketAddr,
    root: TempDir,
    state: Arc<Shared>,
    runtime: Option<Runtime>,
}

/// A misbehaviour that lasts until this is dropped.
#[derive(Debug)]
#[must_use = "dropped, the misbehaviour ends"]
pub struct Misbehaving {
    state: Arc<Shared>,
    number: u64,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Counts changes of the rules, so that those who wait look again.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    active: Vec<(u64, Rule, u32)>,
    requests: Vec<(Operation, String)>,
    lists: HashMap<String, Whole>,
}

/// An answer with all of its body.
#[derive(Debug, Clone)]
struct Whole {
    parts: hyper::http::response::Parts,
    body: Bytes,
}

type Answer = Response<BoxBody<Bytes, io::Error>>;

impl Rule {
    /// Hits the next `times` requests.
    pub fn next(times: u32, on: Operation, under: &'static str, misbehaviour: Misbehaviour) -> Self {
        Self { on, under, misbehaviour, after: 0, times }
    }
}

impl S3Server {
    /// Starts a server with an empty bucket.
    pub fn start() -> io::Result<Self> {
        let root = tempfile::Builder::new().prefix("s3-").tempdir()?;
        std::fs::create_dir(root.path().join(BUCKET))?;
        let files = FileSystem::new(root.path()).map_err(|error| io::Error::other(format!("{error:?}")))?;
        let mut builder = S3ServiceBuilder::new(ShortKeys::over(files));
        builder.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
        let service = builder.build();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let state = Arc::new(Shared { state: Mutex::default(), changes: watch::Sender::new(0) });
        runtime.spawn(accept(listener, service, Arc::clone(&state)));
        Ok(Self { address, root, state, runtime: Some(runtime) })
    }

    /// Its address, as a URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The store at a prefix of the bucket.
    pub fn url(&self, prefix: &str) -> BucketUrl {
        BucketUrl::parse("s3", &format!("{BUCKET}/{prefix}")).expect("the prefixes of tests are legal")
    }

    /// Options of reaching it.
    pub fn access(&self) -> BucketAccess {
        BucketAccess { endpoint: Some(self.endpoint()), allow_http: true, ..BucketAccess::default() }
    }

    /// Variables with the key that it takes.
    pub fn environment(&self) -> Environment {
        [("AWS_ACCESS_KEY_ID", KEY_ID), ("AWS_SECRET_ACCESS_KEY", SECRET)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    /// The directory of the bucket's objects.
    pub fn objects(&self) -> PathBuf {
        self.root.path().join(BUCKET)
    }

    /// Misbehaves by `rule` until the result is dropped.
    pub fn misbehave(&self, rule: Rule) -> Misbehaving {
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        state.active.push((number, rule, 0));
        Misbehaving { state: Arc::clone(&self.state), number }
    }

    /// Number of requests of an operation on keys that begin so.
    pub fn requests(&self, on: Operation, under: &str) -> usize {
        let asked = |(operation, key): &&(Operation, String)| *operation == on && key.starts_with(under);
        self.state.lock().requests.iter().filter(asked).count()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Misbehaving {
    fn drop(&mut self) {
        self.state.lock().active.retain(|(number, ..)| *number != self.number);
        self.state.changes.send_modify(|changes| *changes += 1);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds this lock")
    }

    /// Waits until a rule has ended.
    async fn ended(&self, number: u64) {
        let mut changes = self.changes.subscribe();
        while self.lock().active.iter().any(|(active, ..)| *active == number) {
            // The sender is this one's.
            changes.changed().await.ok();
        }
    }
}

impl State {
    /// Notes a request; the rule that hits it, if one does.
    fn strike(&mut self, on: Operation, key: &str) -> Option<(u64, Misbehaviour)> {
        self.requests.push((on, key.to_owned()));
        for (number, rule, seen) in &mut self.active {
            if rule.on == on && key.starts_with(rule.under) {
                *seen += 1;
                if *seen > rule.after && *seen - rule.after <= rule.times {
                    return Some((*number, rule.misbehaviour));
                }
            }
        }
        None
    }
}

async fn accept(listener: TcpListener, service: S3Service, state: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (service, state) = (service.clone(), Arc::clone(&state));
        let answering = service_fn(move |request| answer(service.clone(), Arc::clone(&state), request));
        // A connection that ends is the client's affair.
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new();
            connection.serve_connection(TokioIo::new(stream), answering).await.ok();
        });
    }
}

async fn answer(service: S3Service, state: Arc<Shared>, request: Request<Incoming>) -> io::Result<Answer> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let (on, key) = meaning(&parts);
    let struck = state.lock().strike(on, &key);
    let exchange = Exchange { service, parts, body };
    let Some((number, misbehaviour)) = struck else { return exchange.listed(on, &state).await };
    match misbehaviour {
        Misbehaviour::SlowDown => Ok(error(StatusCode::SERVICE_UNAVAILABLE, "SlowDown")),
        Misbehaviour::Fail => Ok(error(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")),
        Misbehaviour::FailAfter => {
            exchange.done().await?;
            Ok(error(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"))
        }
        Misbehaviour::LandLater => {
            tokio::spawn(async move {
                state.ended(number).await;
                exchange.done().await.map(drop)
            });
            Ok(error(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"))
        }
        Misbehaviour::Repeat => {
            exchange.done().await?;
            Ok(exchange.done().await?.into_answer())
        }
        Misbehaviour::Stall => {
            state.ended(number).await;
            exchange.listed(on, &state).await
        }
        Misbehaviour::Cut => Ok(exchange.done().await?.into_cut_answer()),
        Misbehaviour::Corrupt => Ok(exchange.done().await?.into_wrong_answer()),
        Misbehaviour::StaleList => {
            let last = state.lock().lists.get(&exchange.asked()).cloned();
            match last {
                Some(last) => Ok(last.into_answer()),
                None => exchange.listed(on, &state).await,
            }
        }
    }
}

/// A request that the server can do any number of times.
struct Exchange {
    service: S3Service,
    parts: Parts,
    body: Bytes,
}

impl Exchange {
    async fn done(&self) -> io::Result<Whole> {
        let request = Request::from_parts(self.parts.clone(), s3s::Body::from(self.body.clone()));
        let answer =
            self.service.call(request).await.map_err(|error| io::Error::other(format!("{error:?}")))?;
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.map_err(|error| io::Error::other(error.to_string()))?.to_bytes();
        Ok(Whole { parts, body })
    }

    /// Does it; a list is remembered.
    async fn listed(&self, on: Operation, state: &Shared) -> io::Result<Answer> {
        let whole = self.done().await?;
        if on == Operation::List {
            state.lock().lists.insert(self.asked(), whole.clone());
        }
        Ok(whole.into_answer())
    }

    fn asked(&self) -> String {
        self.parts.uri.to_string()
    }
}

impl Whole {
    fn into_answer(self) -> Answer {
        Response::from_parts(self.parts, Full::new(self.body).map_err(|never| match never {}).boxed())
    }

    fn into_cut_answer(self) -> Answer {
        let half = self.body.slice(..self.body.len() / 2);
        let frames = [Ok(Frame::data(half)), Err(io::Error::from(io::ErrorKind::ConnectionReset))];
        Response::from_parts(self.parts, StreamBody::new(futures_util::stream::iter(frames)).boxed())
    }

    fn into_wrong_answer(mut self) -> Answer {
        let mut bytes = self.body.to_vec();
        let middle = bytes.len() / 2;
        if let Some(byte) = bytes.get_mut(middle) {
            *byte ^= 1;
        }
        self.body = Bytes::from(bytes);
        self.into_answer()
    }
}

fn error(status: StatusCode, code: &str) -> Answer {
    let body = format!("<Error><Code>{code}</Code><Message>A test lets this fail.</Message></Error>");
    let mut answer = Response::new(Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed());
    *answer.status_mut() = status;
    answer
}

/// The operation of a request, and its key or the prefix of its list.
fn meaning(parts: &Parts) -> (Operation, String) {
    let path = parts.uri.path().trim_start_matches('/');
    let key = path.split_once('/').map_or("", |(_, key)| key).to_owned();
    let query = parts.uri.query().unwrap_or_default();
    let prefix = || {
        let named = query.split('&').find_map(|pair| pair.strip_prefix("prefix="));
        named.unwrap_or_default().replace("%2F", "/")
    };
    if parts.method == Method::GET && key.is_empty() {
        (Operation::List, prefix())
    } else if parts.method == Method::GET || parts.method == Method::HEAD {
        (Operation::Get, key)
    } else if parts.method == Method::DELETE {
        (Operation::Delete, key)
    } else if parts.method == Method::POST && query.starts_with("uploads") {
        (Operation::Begin, key)
    } else {
        (Operation::Put, key)
    }
}
