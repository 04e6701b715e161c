//! The serving end: a listener of its own, to which only nodes of the fleet are answered.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rekindle_engine::byte_budget::{ByteBudget, ByteLease};
use rekindle_engine::engine::Engine;
use rekindle_engine::geometry::{PAGE_BYTES, u64_of, usize_of};
use rekindle_engine::peer::WantedPages;
use rekindle_engine::read_plan::ReadPlan;
use rekindle_engine::sources::Class;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::layers::{begin_frames, decode_layers, decode_wanted_frames, encode_held};
use crate::limits;
use crate::message::{Question, VERSION_FIELD, decode_wanted, encode_pages, snapshot_of};
use crate::taking::{Taken, Taking};
use crate::tls::{TlsFiles, is_node};

/// A thing with the engine whose snapshots are served.
pub trait HasEngine: Send + Sync + 'static {
    /// The engine.
    fn engine(&self) -> &Engine;

    /// Goes on with a sandbox of another node, or refuses to. An error if it may run here all the same.
    fn take(&self, taking: &Taking) -> Result<Taken, String>;
}

impl HasEngine for Engine {
    fn engine(&self) -> &Engine {
        self
    }

    fn take(&self, _taking: &Taking) -> Result<Taken, String> {
        Ok(Taken::Refused("it runs no sandboxes".to_owned()))
    }
}

/// An address that is listened at.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
    files: TlsFiles,
}

/// An answer: its status and its body.
type Answer = (StatusCode, Bytes);

/// An answer's body, with its share of all answers until it is sent.
struct Leased {
    body: Bytes,
    _share: ByteLease<Class>,
}

struct Serving<H> {
    node: Arc<H>,
    answers: ByteBudget<Class>,
}

impl Listener {
    /// Listens, so that nodes can connect from now on; they are answered once [`serve`] runs.
    pub fn bind(address: SocketAddr, files: TlsFiles) -> io::Result<Self> {
        files.check().map_err(io::Error::other)?;
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address, files })
    }

    /// The address, with the port that the kernel chose where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Answers nodes until `end` comes. Runs on a runtime with I/O and time.
pub async fn serve<H: HasEngine>(
    node: Arc<H>,
    listener: Listener,
    end: impl Future<Output = ()>,
) -> io::Result<()> {
    let accepting = tokio::net::TcpListener::from_std(listener.listener)?;
    let serving = Arc::new(Serving { node, answers: ByteBudget::new(limits::ANSWERS_BYTES_MAX) });
    let places = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let mut end = std::pin::pin!(end);
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.expect("nobody closes it");
            (accepting.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            next = next => next,
            () = end.as_mut() => return Ok(()),
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, from)) => {
                let connection = answer(Arc::clone(&serving), listener.files.clone(), stream, place);
                connections.spawn(async move {
                    if let Err(reason) = connection.await {
                        tracing::debug!(%from, %reason, "a connection of a node ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a node could not connect");
                sleep(limits::ACCEPT_AGAIN_AFTER).await;
            }
        }
    }
}

async fn answer<H: HasEngine>(
    serving: Arc<Serving<H>>,
    files: TlsFiles,
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
) -> Result<(), String> {
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let tls = files.server().map_err(|error| error.to_string())?;
    let shaken = timeout(limits::CONNECTED_WITHIN, TlsAcceptor::from(tls).accept(stream)).await;
    let stream = shaken.map_err(|_| "no handshake in time".to_owned())?.map_err(|error| error.to_string())?;
    if !is_node(stream.get_ref().1.peer_certificates()) {
        return Err(format!("its certificate is not for the name {}", crate::tls::NODE));
    }
    let service = service_fn(move |request: Request<Incoming>| {
        let serving = Arc::clone(&serving);
        async move { Ok::<_, Infallible>(response(serving.respond(request).await)) }
    });
    http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits::WINDOW_BYTES)
        .initial_connection_window_size(limits::WINDOW_BYTES)
        .max_frame_size(limits::FRAME_BYTES)
        .max_concurrent_streams(limits::STREAMS_MAX)
        .keep_alive_interval(limits::SIGN_EVERY)
        .keep_alive_timeout(limits::SIGN_EVERY)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(|error| error.to_string())
}

impl AsRef<[u8]> for Leased {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

fn response((status, body): Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(VERSION_FIELD, HeaderValue::from(limits::VERSION));
    response
}

fn refused(status: StatusCode, why: &dyn std::fmt::Display) -> Answer {
    let mut why = why.to_string();
    why.truncate(why.floor_char_boundary(limits::ERROR_BYTES_MAX));
    (status, Bytes::from(why))
}

impl<H: HasEngine> Serving<H> {
    async fn respond(&self, request: Request<Incoming>) -> Answer {
        let Some(question) = Question::of_path(request.uri().path()) else {
            return refused(
                StatusCode::BAD_REQUEST,
                &format!("this node speaks version {}", limits::VERSION),
            );
        };
        let body = Limited::new(request.into_body(), question.request_bytes_max()).collect();
        let body = match timeout(limits::REQUEST_WITHIN, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => return refused(StatusCode::BAD_REQUEST, &error),
            Err(_elapsed) => return refused(StatusCode::REQUEST_TIMEOUT, &"the request did not come"),
        };
        match question {
            Question::Describe => self.describe(&body),
            Question::Published => self.published(&body).await,
            Question::Pages => self.pages(body).await,
            Question::Layers => self.layers(&body),
            Question::Frames => self.frames(body).await,
            Question::Take => self.take(&body).await,
        }
    }

    fn describe(&self, request: &[u8]) -> Answer {
        match snapshot_of(request) {
            Ok(id) => match self.node.engine().describe(id) {
                Some(described) => (StatusCode::OK, Bytes::from(described.encode())),
                None => refused(StatusCode::NOT_FOUND, &"it is not here"),
            },
            Err(error) => refused(StatusCode::BAD_REQUEST, &error),
        }
    }

    async fn published(&self, request: &[u8]) -> Answer {
        let id = match snapshot_of(request) {
            Ok(id) => id,
            Err(error) => return refused(StatusCode::BAD_REQUEST, &error),
        };
        let Some(snapshot) = self.node.engine().snapshot(id) else {
            return refused(StatusCode::NOT_FOUND, &"it is not here");
        };
        // At the end of the wait it is asked again.
        timeout(limits::PUBLISHED_WAIT, snapshot.published_or_over()).await.ok();
        let is_published = self.node.engine().describe(id).map(|described| described.is_published);
        match is_published {
            Some(is_published) => (StatusCode::OK, Bytes::from(vec![u8::from(is_published)])),
            None => refused(StatusCode::NOT_FOUND, &"it is not here any more"),
        }
    }

    fn layers(&self, request: &[u8]) -> Answer {
        match decode_layers(request) {
            Ok(layers) => {
                (StatusCode::OK, Bytes::from(encode_held(&self.node.engine().held_layers(&layers))))
            }
            Err(error) => refused(StatusCode::BAD_REQUEST, &error),
        }
    }

    async fn frames(&self, request: Bytes) -> Answer {
        let (wanted, class) = match decode_wanted_frames(&request) {
            Ok(wanted) => wanted,
            Err(error) => return refused(StatusCode::BAD_REQUEST, &error),
        };
        let bytes: usize = wanted.lengths().sum();
        let share = self.answers.lease(class, u64_of(bytes)).await;
        let node = Arc::clone(&self.node);
        let read = tokio::task::spawn_blocking(move || {
            let here = node.engine().frames_here(&wanted);
            let mut answer = begin_frames(&request, here.there());
            answer.reserve_exact(bytes);
            if here.append_to(&mut answer).is_err() {
                return Bytes::from(begin_frames(&request, &vec![false; here.there().len()]));
            }
            Bytes::from(answer)
        });
        match read.await {
            Ok(body) => (StatusCode::OK, Bytes::from_owner(Leased { body, _share: share })),
            Err(_) => refused(StatusCode::SERVICE_UNAVAILABLE, &"this node ends"),
        }
    }

    async fn take(&self, request: &[u8]) -> Answer {
        let taking = match Taking::decode(request) {
            Ok(taking) => taking,
            Err(error) => return refused(StatusCode::BAD_REQUEST, &error),
        };
        let (node, snapshot) = (Arc::clone(&self.node), taking.snapshot);
        let taken = tokio::task::spawn_blocking(move || node.take(&taking)).await;
        match taken.unwrap_or_else(|_| Err("this node ends".to_owned())) {
            Ok(taken) => (StatusCode::OK, Bytes::from(taken.encode(snapshot))),
            Err(reason) => refused(StatusCode::SERVICE_UNAVAILABLE, &reason),
        }
    }

    async fn pages(&self, request: Bytes) -> Answer {
        let (wanted, class) = match decode_wanted(&request) {
            Ok(wanted) => wanted,
            Err(error) => return refused(StatusCode::BAD_REQUEST, &error),
        };
        // An answer is held twice: as it is read, and until it is sent.
        let share = self.answers.lease(class, wanted.pages() * 2 * 4096).await;
        let node = Arc::clone(&self.node);
        let read = tokio::task::spawn_blocking(move || read(node.engine(), &wanted, class, &request));
        let (status, body) =
            read.await.unwrap_or_else(|_| refused(StatusCode::SERVICE_UNAVAILABLE, &"this node ends"));
        (status, Bytes::from_owner(Leased { body, _share: share }))
    }
}

/// Reads pages from the snapshot's live view; waits for those that are not on this node.
fn read(engine: &Engine, wanted: &WantedPages, class: Class, request: &[u8]) -> Answer {
    let Some(snapshot) = engine.snapshot(wanted.snapshot) else {
        return refused(StatusCode::NOT_FOUND, &"it is not here");
    };
    let Some(volume) = snapshot.volumes().get(usize::from(wanted.volume)) else {
        return refused(StatusCode::BAD_REQUEST, &"the snapshot has no such volume");
    };
    if wanted.runs.iter().any(|run| run.end().number() > volume.view.pages()) {
        return refused(StatusCode::BAD_REQUEST, &"the volume ends before these pages");
    }
    let pages: u32 = wanted.runs.iter().map(|run| run.count()).sum();
    let mut bytes = vec![0; usize_of(pages) * PAGE_BYTES];
    let fetcher = engine.fetcher().of_class(class);
    let mut left = bytes.as_mut_slice();
    for run in &wanted.runs {
        let (here, after) = left.split_at_mut(usize_of(run.count()) * PAGE_BYTES);
        left = after;
        if let Err(error) = ReadPlan::new(&volume.view, *run).read(&fetcher, here) {
            return refused(StatusCode::SERVICE_UNAVAILABLE, &error);
        }
    }
    (StatusCode::OK, Bytes::from(encode_pages(request, &bytes)))
}
