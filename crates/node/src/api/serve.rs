//! Answering on listening sockets until the daemon ends.

use std::future::Future;
use std::io;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
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
use super::bounded::{BoundedControl, Ending};
use super::control::Control;
use super::limits;
use super::listen::{Listeners, LocalListener, ReadSecrets, Secrets};
use super::patient::Patient;
use super::routes;

/// Answers what is asked of `control` until `end` comes; then takes no more connections, ends event streams and waits,
/// and gives requests that are being answered [`limits::ANSWERED_WITHIN_AT_END`].
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
    let answering = Answering { router, ending };
    let Listeners { socket: LocalListener { listener, allowed, file }, tcp } = listeners;
    let mut accepting = JoinSet::new();
    if let Some(tcp) = tcp {
        let listener = TcpListener::from_std(tcp.listener)?;
        accepting.spawn(answering.clone().over_tcp(listener, tcp.secrets));
    }
    accepting.spawn(answering.on_socket(UnixListener::from_std(listener)?, allowed));
    end.await;
    ends.send_replace(true);
    // Connecting fails from here on, instead of waiting for an answer that does not come.
    drop(file);
    if timeout(limits::ANSWERED_WITHIN_AT_END, all_joined(&mut accepting)).await.is_err() {
        tracing::warn!("some requests were not answered before the daemon ended");
    }
    Ok(())
}

/// What every connection is answered with.
#[derive(Clone, Debug)]
struct Answering {
    router: Router,
    ending: Ending,
}

impl Answering {
    async fn on_socket(mut self, listener: UnixListener, allowed: AllowedUsers) {
        let mut connections = Connections::new();
        while let Some((stream, place)) = connections.next(&mut self.ending, &listener).await {
            match stream.peer_cred() {
                Ok(peer) => {
                    let admission = allowed.admission(peer.uid());
                    connections.tasks.spawn(self.clone().answer(stream, admission, place));
                }
                Err(error) => tracing::warn!(%error, "the kernel does not say who connected"),
            }
        }
        drop(listener);
        all_joined(&mut connections.tasks).await;
    }

    async fn over_tcp(mut self, listener: TcpListener, secrets: Secrets) {
        let mut connections = Connections::new();
        while let Some((stream, place)) = connections.next(&mut self.ending, &listener).await {
            let ReadSecrets { tls, token } = secrets.now();
            let (acceptor, admission) = (TlsAcceptor::from(tls), Admission::ByToken(token));
            connections.tasks.spawn(self.clone().shake_hands(stream, acceptor, admission, place));
        }
        drop(listener);
        all_joined(&mut connections.tasks).await;
    }

    async fn shake_hands(
        mut self,
        stream: TcpStream,
        acceptor: TlsAcceptor,
        admission: Admission,
        place: OwnedSemaphorePermit,
    ) {
        let shaken = tokio::select! {
            shaken = timeout(limits::HANDSHAKE_WITHIN, acceptor.accept(stream)) => shaken,
            () = self.ending.comes() => return,
        };
        match shaken {
            Ok(Ok(stream)) => self.answer(stream, admission, place).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_elapsed) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    async fn answer<C>(mut self, connection: C, admission: Admission, place: OwnedSemaphorePermit)
    where
        C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let router = self.router;
        let service = service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(admission.clone());
            router.clone().oneshot(request)
        });
        let patient = Patient::new(connection, limits::ANSWER_TAKEN_WITHIN);
        let answering = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits::HEAD_WITHIN)
            .max_buf_size(limits::HEAD_BYTES_MAX)
            .max_headers(limits::HEAD_FIELDS_MAX)
            .serve_connection(TokioIo::new(patient), service);
        tokio::pin!(answering);
        let ended = tokio::select! {
            ended = answering.as_mut() => ended,
            () = self.ending.comes() => {
                answering.as_mut().graceful_shutdown();
                answering.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection broke");
        }
        drop(place);
    }
}

/// Something that connections come from.
trait Accept: Sync {
    /// What comes.
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
}

impl Connections {
    fn new() -> Self {
        Self { tasks: JoinSet::new(), places: Arc::new(Semaphore::new(limits::CONNECTIONS_MAX)) }
    }

    /// The next connection with a place for it; none when the daemon ends.
    async fn next<A: Accept>(
        &mut self,
        ending: &mut Ending,
        listener: &A,
    ) -> Option<(A::Connection, OwnedSemaphorePermit)> {
        loop {
            let free = Arc::clone(&self.places).acquire_owned();
            let place = tokio::select! {
                place = free => place.expect("the places are never closed"),
                () = ending.comes() => return None,
            };
            tokio::select! {
                accepted = listener.connection() => match accepted {
                    Ok(connection) => return Some((connection, place)),
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
