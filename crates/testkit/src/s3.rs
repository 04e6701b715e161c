//! A real S3 server in the test's process, on a port of its own of the loopback interface. It misbehaves when told to, below
//! the protocol: whoever speaks to it cannot tell.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::http::header::HOST;
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rekindle_bucket::{BucketAccess, BucketUrl, Environment};
use s3s::auth::SimpleAuth;
use s3s::host::SingleDomain;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::rules::{self, Operation, RuleNumber, Rules};
use crate::s3_keys::ShortKeys;

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
    /// It refuses, as to a key without the right.
    Refuse,
    /// It does the request, and answers with an error.
    FailAfter,
    /// It answers with an error now, and does the request when the misbehaviour ends.
    LandLater,
    /// It does the request twice.
    Repeat,
    /// It does not answer until the misbehaviour ends, and then does the request.
    Stall,
    /// It does nothing, and does not answer until the misbehaviour ends.
    Lose,
    /// It does the request, and does not answer until the misbehaviour ends.
    LoseAnswer,
    /// The connection ends in the middle of the answer.
    Cut,
    /// One bit of the answer is wrong.
    Corrupt,
    /// It answers a list as it did the last time that the same was asked.
    StaleList,
}

/// A misbehaviour and the requests that it hits.
pub type Rule = rules::Rule<Misbehaviour>;

/// A misbehaviour that lasts until this is dropped.
pub type Misbehaving = rules::Injected<Misbehaviour>;

/// A server; it ends with this.
#[derive(Debug)]
pub struct S3Server {
    address: SocketAddr,
    root: TempDir,
    rules: Rules<Misbehaviour>,
    late: Arc<AtomicUsize>,
    runtime: Option<Runtime>,
}

/// The server as its connections share it.
struct Front {
    service: S3Service,
    rules: Rules<Misbehaviour>,
    /// The last answer to each list.
    lists: Mutex<HashMap<String, Whole>>,
    /// Number of requests that were told as failed and have not landed yet.
    late: Arc<AtomicUsize>,
}

/// An answer with all of its body.
#[derive(Debug, Clone)]
struct Whole {
    parts: hyper::http::response::Parts,
    body: Bytes,
}

type Answer = Response<BoxBody<Bytes, io::Error>>;

impl S3Server {
    /// Starts a server with an empty bucket.
    pub fn start() -> io::Result<Self> {
        Self::start_with(|_| {})
    }

    /// Starts one that finds the bucket in the name of the host, which is `BUCKET.domain`. It is reached as the proxy of a
    /// client, as no such name can be looked up.
    pub fn start_in_domain(domain: &str) -> io::Result<Self> {
        let domain = SingleDomain::new(domain).map_err(io::Error::other)?;
        Self::start_with(|builder| builder.set_host(domain))
    }

    fn start_with(more: impl FnOnce(&mut S3ServiceBuilder)) -> io::Result<Self> {
        let root = tempfile::Builder::new().prefix("s3-").tempdir()?;
        std::fs::create_dir(root.path().join(BUCKET))?;
        let files = FileSystem::new(root.path()).map_err(|error| io::Error::other(format!("{error:?}")))?;
        let mut builder = S3ServiceBuilder::new(ShortKeys::over(files, root.path().to_owned()));
        builder.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
        more(&mut builder);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let rules = Rules::default();
        let (late, lists) = (Arc::<AtomicUsize>::default(), Mutex::default());
        let front = Front { service: builder.build(), rules: rules.clone(), lists, late: Arc::clone(&late) };
        runtime.spawn(accept(listener, Arc::new(front)));
        Ok(Self { address, root, rules, late, runtime: Some(runtime) })
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.address
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
        self.rules.inject(rule)
    }

    /// Waits until `reached` says so; it is asked after each request.
    pub fn wait_until(&self, reached: impl Fn(&Self) -> bool) {
        self.rules.wait_until(|_| reached(self));
    }

    /// True once a rule has hit a request.
    pub fn is_hit(&self) -> bool {
        self.rules.struck() > 0
    }

    /// Waits until all requests that were told as failed, and were to land later, have landed.
    pub fn wait_landed(&self) {
        self.wait_until(|server| server.late.load(Ordering::SeqCst) == 0);
    }

    /// The files of unfinished uploads: one for each upload, and one for each part.
    pub fn unfinished_uploads(&self) -> io::Result<Vec<PathBuf>> {
        let mut unfinished = Vec::new();
        for entry in std::fs::read_dir(self.root.path())? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(".upload") {
                unfinished.push(entry.path());
            }
        }
        Ok(unfinished)
    }

    /// Number of requests of an operation on keys that begin so.
    pub fn requests(&self, on: Operation, under: &str) -> usize {
        self.rules.calls(on, under)
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Front {
    fn lists(&self) -> MutexGuard<'_, HashMap<String, Whole>> {
        self.lists.lock().expect("no thread panics while it holds this lock")
    }
}

async fn accept(listener: TcpListener, front: Arc<Front>) {
    while let Ok((stream, _)) = listener.accept().await {
        let front = Arc::clone(&front);
        let answering = service_fn(move |request| answer(Arc::clone(&front), request));
        // A connection that ends is the client's affair.
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new();
            connection.serve_connection(TokioIo::new(stream), answering).await.ok();
        });
    }
}

async fn answer(front: Arc<Front>, request: Request<Incoming>) -> io::Result<Answer> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let (on, key) = meaning(&parts);
    front.rules.called(on, &key);
    let struck = front.rules.strike(on, &key);
    let rules = front.rules.clone();
    let answer = by_rule(struck, Exchange { front, parts, body }, on).await;
    rules.changed();
    answer
}

async fn by_rule(
    struck: Option<(RuleNumber, Misbehaviour)>,
    exchange: Exchange,
    on: Operation,
) -> io::Result<Answer> {
    let Some((number, misbehaviour)) = struck else { return exchange.listed(on).await };
    match misbehaviour {
        Misbehaviour::SlowDown => Ok(error(StatusCode::SERVICE_UNAVAILABLE, "SlowDown")),
        Misbehaviour::Fail => Ok(error(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")),
        Misbehaviour::Refuse => Ok(error(StatusCode::FORBIDDEN, "AccessDenied")),
        Misbehaviour::FailAfter => {
            exchange.done().await?;
            Ok(error(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"))
        }
        Misbehaviour::LandLater => {
            exchange.front.late.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                exchange.front.rules.ended(number).await;
                // Nobody waits for its answer.
                exchange.done().await.ok();
                exchange.front.late.fetch_sub(1, Ordering::SeqCst);
                exchange.front.rules.changed();
            });
            Ok(error(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"))
        }
        Misbehaviour::Repeat => {
            exchange.done().await?;
            Ok(exchange.done().await?.into_answer())
        }
        Misbehaviour::Stall => {
            exchange.front.rules.ended(number).await;
            exchange.listed(on).await
        }
        Misbehaviour::Lose => {
            exchange.front.rules.ended(number).await;
            Err(io::ErrorKind::ConnectionReset.into())
        }
        Misbehaviour::LoseAnswer => {
            exchange.done().await?;
            exchange.front.rules.ended(number).await;
            Err(io::ErrorKind::ConnectionReset.into())
        }
        Misbehaviour::Cut => Ok(exchange.done().await?.into_cut_answer()),
        Misbehaviour::Corrupt => Ok(exchange.done().await?.into_wrong_answer()),
        Misbehaviour::StaleList => {
            let last = exchange.front.lists().get(&exchange.asked()).cloned();
            match last {
                Some(last) => Ok(last.into_answer()),
                None => exchange.listed(on).await,
            }
        }
    }
}

/// A request that the server can do any number of times.
struct Exchange {
    front: Arc<Front>,
    parts: Parts,
    body: Bytes,
}

impl Exchange {
    async fn done(&self) -> io::Result<Whole> {
        let request = Request::from_parts(self.parts.clone(), s3s::Body::from(self.body.clone()));
        let answer =
            self.front.service.call(request).await.map_err(|error| io::Error::other(format!("{error:?}")))?;
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.map_err(|error| io::Error::other(error.to_string()))?.to_bytes();
        Ok(Whole { parts, body })
    }

    /// Does it; a list is remembered.
    async fn listed(&self, on: Operation) -> io::Result<Answer> {
        let whole = self.done().await?;
        if on == Operation::List {
            self.front.lists().insert(self.asked(), whole.clone());
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
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let is_in_host = host.split('.').next() == Some(BUCKET);
    let key = if is_in_host { path } else { path.split_once('/').map_or("", |(_, key)| key) }.to_owned();
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
