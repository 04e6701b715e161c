//! Serves requests on the listening sockets until the daemon ends.

use std::future::{Future, pending};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::Body;
use http_body_util::BodyExt as _;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use super::admission::{Admission, AllowedUsers};
use super::answer;
use super::audit::Caller;
use super::bounded::{BoundedControl, Ending};
use super::control::Control;
use super::limits;
use super::listen::{Listeners, LocalListener, ReadSecrets, Secrets, SocketFile};
use super::patient::Patient;
use super::routes;
use super::upgrade::Afterwards;

/// Answers requests from `control` until `end` comes; then takes no more connections, ends event streams and waits, and
/// gives requests that came whole [`limits::ANSWERED_WITHIN_AT_END`]. Half a request is not waited for.
///
/// Runs on a runtime with I/O and time. Each request that is worked on takes one of its threads for blocking calls;
/// the runtime must have more of them than [`limits`] allows requests, as it has by default. Work whose client is gone
/// may outlast this: the runtime waits for it when it is dropped.
pub async fn serve(
    control: Arc<dyn Control>,
    listeners: Listeners,
    end: impl Future<Output = ()>,
) -> io::Result<()> {
    let (ends, ending) = watch::channel(false);
    let ending = Ending::new(ending);
    let router = routes::router(BoundedControl::new(control, ending.clone()));
    let Listeners { socket: LocalListener { listener, allowed, file }, tcp, connections_max } = listeners;
    let refusing =
        Router::new().fallback(move || async move { answer::too_many_connections(connections_max) });
    let answering = Answering { router, refusing, ending, connections_max };
    let socket = Listening { listener: UnixListener::from_std(listener)?, file, is_lost: false };
    let mut accepting = JoinSet::new();
    if let Some(tcp) = tcp {
        let listener = TcpListener::from_std(tcp.listener)?;
        accepting.spawn(answering.clone().over_tcp(listener, tcp.secrets));
    }
    accepting.spawn(answering.on_socket(socket, allowed));
    end.await;
    ends.send_replace(true);
    if timeout(limits::ANSWERED_WITHIN_AT_END, all_joined(&mut accepting)).await.is_err() {
        tracing::warn!("some requests were not answered before the daemon ended");
    }
    Ok(())
}

/// Parts that answer every connection.
#[derive(Clone, Debug)]
struct Answering {
    router: Router,
    /// Answers connections beyond the bound.
    refusing: Router,
    ending: Ending,
    connections_max: usize,
}

/// The place of a connection; free again when this is dropped.
#[derive(Debug)]
struct Seat {
    kind: SeatKind,
    _taken: OwnedSemaphorePermit,
}

#[derive(Clone, Copy, Debug)]
enum SeatKind {
    /// Its requests are answered.
    Place,
    /// There was no place: it is told so.
    Refusal,
}

impl Answering {
    async fn on_socket(mut self, mut socket: Listening, allowed: AllowedUsers) {
        let mut connections = Connections::new(self.connections_max);
        loop {
            let next = tokio::select! {
                next = connections.next(&mut self.ending, &socket.listener) => next,
                () = socket.is_gone() => {
                    socket.listen_again();
                    continue;
                }
            };
            let Some((stream, seat)) = next else { break };
            match stream.peer_cred() {
                Ok(peer) => {
                    let admission = allowed.admission(peer.uid());
                    let caller = Caller::Local { uid: peer.uid(), pid: peer.pid() };
                    connections.tasks.spawn(self.clone().answer(stream, admission, caller, seat));
                }
                Err(error) => tracing::warn!(%error, "the kernel does not say who connected"),
            }
        }
        // Connecting fails from here on, instead of waiting for an answer that does not come.
        drop(socket);
        all_joined(&mut connections.tasks).await;
    }

    async fn over_tcp(mut self, listener: TcpListener, secrets: Secrets) {
        let mut connections = Connections::new(self.connections_max);
        while let Some((stream, seat)) = connections.next(&mut self.ending, &listener).await {
            let ReadSecrets { tls, token } = secrets.now();
            let (acceptor, admission) = (TlsAcceptor::from(tls), Admission::ByToken(token));
            connections.tasks.spawn(self.clone().shake_hands(stream, acceptor, admission, seat));
        }
        drop(listener);
        all_joined(&mut connections.tasks).await;
    }

    async fn shake_hands(
        mut self,
        stream: TcpStream,
        acceptor: TlsAcceptor,
        admission: Admission,
        seat: Seat,
    ) {
        let caller = Caller::Remote { address: stream.peer_addr().ok() };
        let shaken = tokio::select! {
            shaken = timeout(limits::HANDSHAKE_WITHIN, acceptor.accept(stream)) => shaken,
            () = self.ending.comes() => return,
        };
        match shaken {
            Ok(Ok(stream)) => self.answer(stream, admission, caller, seat).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_elapsed) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    async fn answer<C>(mut self, connection: C, admission: Admission, caller: Caller, seat: Seat)
    where
        C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let ending = self.ending.clone();
        let (router, head_within) = match seat.kind {
            SeatKind::Place => (self.router, limits::HEAD_WITHIN),
            SeatKind::Refusal => (self.refusing, limits::REFUSED_HEAD_WITHIN),
        };
        let working = Arc::new(AtomicBool::new(false));
        let works = Arc::clone(&working);
        let afterwards = Afterwards::default();
        let put_afterwards = afterwards.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(admission.clone());
            request.extensions_mut().insert(caller);
            request.extensions_mut().insert(ending.clone());
            request.extensions_mut().insert(put_afterwards.clone());
            let (router, work) = (router.clone(), Working::begin(&works));
            async move {
                let answer = router.oneshot(request).await;
                // Its last bytes are with the connection once the body is dropped.
                answer.map(|answer| {
                    answer.map(|body| {
                        Body::new(body.map_frame(move |frame| {
                            let _work = &work;
                            frame
                        }))
                    })
                })
            }
        });
        let patient = Patient::new(connection, limits::ANSWER_TAKEN_WITHIN);
        let answering = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head_within)
            .max_buf_size(limits::HEAD_BYTES_MAX)
            .max_headers(limits::HEAD_FIELDS_MAX)
            .serve_connection(TokioIo::new(patient), service)
            .with_upgrades();
        tokio::pin!(answering);
        let ended = tokio::select! {
            ended = answering.as_mut() => ended,
            () = self.ending.comes() => {
                answering.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = answering.as_mut() => ended,
                    () = unless_working(&working) => Ok(()),
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection broke");
        }
        if let Some(work) = afterwards.take() {
            work.await;
        }
        drop(seat);
    }
}

/// A request that is worked on until this is dropped, one at a time on a connection.
struct Working(Arc<AtomicBool>);

impl Working {
    fn begin(working: &Arc<AtomicBool>) -> Self {
        working.store(true, Ordering::Relaxed);
        Self(Arc::clone(working))
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Returns, once a connection has had time to send what was answered, if no request is being worked on: only half a
/// request may still come.
async fn unless_working(working: &AtomicBool) {
    sleep(limits::ANSWER_SENT_WITHIN_AT_END).await;
    if working.load(Ordering::Relaxed) {
        pending::<()>().await;
    }
}

/// The local socket while it is answered on.
#[derive(Debug)]
struct Listening {
    listener: UnixListener,
    file: SocketFile,
    /// Its file is gone, and could not be made again.
    is_lost: bool,
}

impl Listening {
    /// Waits until clients cannot find the socket any more: its directory was removed, or another file is in its place.
    async fn is_gone(&self) {
        if self.is_lost {
            sleep(limits::SOCKET_MADE_AGAIN_AFTER).await;
        }
        while self.file.is_there() {
            sleep(limits::SOCKET_LOOKED_FOR_EVERY).await;
        }
    }

    /// Listens at the same path again; where that fails, a later look finds it gone still.
    fn listen_again(&mut self) {
        let path = self.file.path().to_owned();
        let made = self.file.make_again().map_err(io::Error::other);
        let listening = made.and_then(|(listener, file)| Ok((UnixListener::from_std(listener)?, file)));
        match listening {
            Ok((listener, file)) => {
                tracing::warn!(path = %path.display(), "the API's socket was removed; it was made again");
                *self = Self { listener, file, is_lost: false };
            }
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the API's socket was removed, and cannot be made again yet");
                self.is_lost = true;
            }
        }
    }
}

/// Something that connections come from.
trait Accept: Sync {
    /// A connection.
    type Connection: Send;

    /// The next one.
    fn connection(&self) -> impl Future<Output = io::Result<Self::Connection>> + Send;
}

impl Accept for UnixListener {
    type Connection = UnixStream;

    async fn connection(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Accept for TcpListener {
    type Connection = TcpStream;

    async fn connection(&self) -> io::Result<TcpStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

/// The connections of one listener.
#[derive(Debug)]
struct Connections {
    tasks: JoinSet<()>,
    places: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
}

impl Connections {
    fn new(connections_max: usize) -> Self {
        let places = Arc::new(Semaphore::new(connections_max));
        Self { tasks: JoinSet::new(), places, refusals: Arc::new(Semaphore::new(limits::REFUSALS_MAX)) }
    }

    /// The next connection with a seat for it; none when the daemon ends.
    async fn next<A: Accept>(&mut self, ending: &mut Ending, listener: &A) -> Option<(A::Connection, Seat)> {
        loop {
            let free = Arc::clone(&self.refusals).acquire_owned();
            let refusal = tokio::select! {
                refusal = free => refusal.expect("the seats are never closed"),
                () = ending.comes() => return None,
            };
            tokio::select! {
                accepted = listener.connection() => match accepted {
                    Ok(connection) => {
                        let place = Arc::clone(&self.places).try_acquire_owned();
                        let seat = match place {
                            Ok(place) => Seat { kind: SeatKind::Place, _taken: place },
                            Err(_full) => Seat { kind: SeatKind::Refusal, _taken: refusal },
                        };
                        return Some((connection, seat));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be taken");
                        sleep(limits::ACCEPT_AGAIN_AFTER).await;
                    }
                },
                () = ending.comes() => return None,
                Some(joined) = self.tasks.join_next() => report(joined),
            }
        }
    }
}

async fn all_joined(tasks: &mut JoinSet<()>) {
    while let Some(joined) = tasks.join_next().await {
        report(joined);
    }
}

fn report(joined: Result<(), JoinError>) {
    if let Err(error) = joined {
        tracing::error!(%error, "a connection met a bug");
    }
}
