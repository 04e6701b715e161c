//! The reading end: one connection to each node, kept as long as somebody reads from it.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rekindle_engine::identity::{LayerId, SnapshotId};
use rekindle_engine::origin::Origin;
use rekindle_engine::peer::{Described, HeldLayers, Peer, PeerError, Peers, WantedLayer, WantedPages};
use rekindle_engine::sources::Class;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::layers::{
    FRAMES_ANSWER_BYTES_MAX, HELD_BYTES_MAX, decode_frames, decode_held, encode_layers, encode_wanted_frames,
};
use crate::limits;
use crate::message::{Question, VERSION_FIELD, answer_bytes_max, decode_pages, encode_wanted};
use crate::taking::{TakeError, Taken, Taking};
use crate::tls::{TlsFiles, node_name};

/// The nodes that this one reads from.
#[derive(Debug)]
pub struct PeerClients {
    files: TlsFiles,
    nodes: KnownNodes,
    clients: Mutex<HashMap<String, Weak<PeerClient>>>,
}

/// The nodes that are in the settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownNodes {
    /// Hosts with ports, by the names of their nodes.
    pub named: HashMap<String, String>,
    /// Hosts with ports that mean several nodes: each address that DNS has for the host is one.
    pub found: Vec<String>,
}

/// One of them.
#[derive(Debug)]
struct PeerClient {
    node: String,
    address: String,
    files: TlsFiles,
    /// Held while a connection is made, so that all who need one wait for the same.
    connection: tokio::sync::Mutex<Connection>,
}

#[derive(Debug, Default)]
struct Connection {
    sender: Option<SendRequest<Full<Bytes>>>,
    failed: Option<(Instant, PeerError)>,
}

impl PeerClients {
    /// Reads from these nodes with these certificates.
    #[must_use]
    pub fn new(files: TlsFiles, nodes: KnownNodes) -> Self {
        Self { files, nodes, clients: Mutex::default() }
    }

    fn client_of(&self, node: &str) -> Result<Arc<PeerClient>, PeerError> {
        let is_address = || {
            node.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        let unconfigured = || PeerError::Unconfigured {
            node: node.to_owned(),
            reason: "it is neither a name in the setting peers.static nor an address with a port".to_owned(),
        };
        let address = self.nodes.named.get(node).cloned().or_else(|| is_address().then(|| node.to_owned()));
        let address = address.ok_or_else(unconfigured)?;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|_, client| client.strong_count() > 0);
        if let Some(known) = clients.get(node).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let client = Arc::new(PeerClient {
            node: node.to_owned(),
            address,
            files: self.files.clone(),
            connection: tokio::sync::Mutex::default(),
        });
        clients.insert(node.to_owned(), Arc::downgrade(&client));
        Ok(client)
    }

    /// Connects to a node, if there is no connection. It lasts as long as the returned node is held.
    pub async fn reach(&self, node: &str) -> Result<Arc<dyn Peer>, PeerError> {
        let client = self.client_of(node)?;
        client.connected().await?;
        Ok(client)
    }

    /// Asks a node to go on with a sandbox. Asking again is harmless: it goes on with it once.
    pub async fn take(&self, node: &str, taking: &Taking) -> Result<Taken, TakeError> {
        let client = self.client_of(node).map_err(TakeError::NotAsked)?;
        client.connected().await.map_err(TakeError::NotAsked)?;
        let body = Bytes::from(taking.encode());
        let (question, snapshot) = (Question::Take, taking.snapshot);
        let asked = Asked { question, snapshot, body, answer_bytes: Taken::BYTES_MAX };
        match client.ask(asked, limits::TAKEN_WITHIN).await {
            Ok(answer) => {
                Taken::decode(snapshot, &answer).map_err(|error| TakeError::Unanswered(client.wrong(&error)))
            }
            // Neither has such a request.
            Err(error @ (PeerError::NotUnderstood { .. } | PeerError::Version { .. })) => {
                Err(TakeError::NotAsked(error))
            }
            Err(error) => Err(TakeError::Unanswered(error)),
        }
    }

    /// The name or address of a node of the settings that is at this address.
    async fn at_address(&self, address: &str) -> Option<String> {
        let KnownNodes { named, found } = &self.nodes;
        let is_said = |said: &str| said == address;
        if let Some((name, _)) = named.iter().find(|(_, said)| is_said(said)) {
            return Some(name.clone());
        }
        if found.iter().any(|said| is_said(said)) {
            return Some(address.to_owned());
        }
        // Only hosts of the settings are looked up: a record may say any.
        let wanted: SocketAddr = address.parse().ok()?;
        let named = named.iter().map(|(name, said)| (name.as_str(), said));
        for (name, said) in named.chain(found.iter().map(|said| (address, said))) {
            let looked_up = timeout(limits::LOOKED_UP_WITHIN, lookup_host(said)).await;
            if let Ok(Ok(mut addresses)) = looked_up
                && addresses.any(|address| address == wanted)
            {
                return Some(name.to_owned());
            }
        }
        None
    }
}

impl Peers for PeerClients {
    fn at(&self, node: &str) -> Result<Arc<dyn Peer>, PeerError> {
        Ok(self.client_of(node)?)
    }

    fn all(&self) -> BoxFuture<'_, Vec<String>> {
        let found = async move {
            let mut nodes: Vec<String> = self.nodes.named.keys().cloned().collect();
            for said in &self.nodes.found {
                let looked_up = timeout(limits::LOOKED_UP_WITHIN, lookup_host(said)).await;
                let addresses = looked_up.ok().and_then(Result::ok).into_iter().flatten();
                nodes.extend(addresses.map(|address| address.to_string()));
            }
            nodes
        };
        found.boxed()
    }

    fn named_by<'a>(&'a self, origin: &'a Origin) -> BoxFuture<'a, Result<String, PeerError>> {
        let named = async move {
            let Origin { node, address } = origin;
            if self.nodes.named.contains_key(node) {
                return Ok(node.clone());
            }
            self.at_address(address).await.ok_or_else(|| PeerError::Unconfigured {
                node: format!("{node} ({address})"),
                reason: "it is none of the nodes in the settings peers.static and peers.dns".to_owned(),
            })
        };
        named.boxed()
    }
}

impl Peer for PeerClient {
    fn node(&self) -> &str {
        &self.node
    }

    fn describe(&self, snapshot: SnapshotId) -> BoxFuture<'_, Result<Described, PeerError>> {
        let asked = async move {
            let body = Bytes::copy_from_slice(snapshot.as_bytes());
            let asked =
                Asked { question: Question::Describe, snapshot, body, answer_bytes: Described::BYTES_MAX };
            let answer = self.ask(asked, limits::ANSWERED_WITHIN).await?;
            Described::decode(&answer).map_err(|error| self.wrong(&error))
        };
        asked.boxed()
    }

    fn pages(&self, wanted: WantedPages, class: Class) -> BoxFuture<'_, Result<Vec<u8>, PeerError>> {
        let within = match class {
            Class::Fault => limits::FAULT_ANSWERED_WITHIN,
            Class::Ahead | Class::Background => limits::ANSWERED_WITHIN,
        };
        let asked = async move {
            let body = Bytes::from(encode_wanted(&wanted, class));
            let pages = u32::try_from(wanted.pages()).unwrap_or(u32::MAX);
            assert!(
                pages <= limits::PAGES_MAX && wanted.runs.len() <= limits::RUNS_MAX,
                "a request is within its limits"
            );
            let (snapshot, answer_bytes) = (wanted.snapshot, answer_bytes_max(pages));
            let asked = Asked { question: Question::Pages, snapshot, body: body.clone(), answer_bytes };
            let answer = self.ask(asked, within).await?;
            decode_pages(&answer, &body, pages).map_err(|error| self.wrong(&error))
        };
        asked.boxed()
    }

    fn layers(&self, layers: Vec<LayerId>) -> BoxFuture<'_, Result<HeldLayers, PeerError>> {
        let asked = async move {
            let body = Bytes::from(encode_layers(&layers));
            let (question, answer_bytes) = (Question::Layers, HELD_BYTES_MAX);
            let asked = Asked { question, snapshot: NONE, body, answer_bytes };
            let answer = self.ask(asked, limits::FAULT_ANSWERED_WITHIN).await?;
            decode_held(&answer).map_err(|error| self.wrong(&error))
        };
        asked.boxed()
    }

    fn frames(
        &self,
        wanted: WantedLayer,
        class: Class,
    ) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, PeerError>> {
        let asked = async move {
            let body = Bytes::from(encode_wanted_frames(&wanted, class));
            let (question, answer_bytes) = (Question::Frames, FRAMES_ANSWER_BYTES_MAX);
            let asked = Asked { question, snapshot: NONE, body: body.clone(), answer_bytes };
            let answer = self.ask(asked, limits::FAULT_ANSWERED_WITHIN).await?;
            decode_frames(&answer, &body, &wanted).map_err(|error| self.wrong(&error))
        };
        asked.boxed()
    }

    fn published(&self, snapshot: SnapshotId) -> BoxFuture<'_, Result<bool, PeerError>> {
        let asked = async move {
            let body = Bytes::copy_from_slice(snapshot.as_bytes());
            let asked = Asked { question: Question::Published, snapshot, body, answer_bytes: 1 };
            match *self.ask(asked, limits::PUBLISHED_WAIT + limits::FAULT_ANSWERED_WITHIN).await? {
                [0] => Ok(false),
                [1] => Ok(true),
                _ => Err(self.wrong(&"it says neither that the snapshot is published nor that it is not")),
            }
        };
        asked.boxed()
    }
}

/// The snapshot of a request that is about none.
const NONE: SnapshotId = SnapshotId::from_bytes([0; 16]);

/// A request, and the bounds of its answer.
struct Asked {
    question: Question,
    snapshot: SnapshotId,
    body: Bytes,
    answer_bytes: usize,
}

impl PeerClient {
    async fn ask(&self, asked: Asked, within: Duration) -> Result<Bytes, PeerError> {
        let answer = timeout(within, self.ask_in_time(asked)).await;
        answer.unwrap_or_else(|_elapsed| {
            Err(self.away(format!("it has not answered for {} s", within.as_secs())))
        })
    }

    async fn ask_in_time(&self, asked: Asked) -> Result<Bytes, PeerError> {
        let Asked { question, snapshot, body, answer_bytes } = asked;
        let mut sender = self.connected().await?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("https://{}{}", crate::tls::NODE, question.path()))
            .body(Full::new(body))
            .expect("a request of legal parts");
        let answer = sender.send_request(request).await.map_err(|error| self.away(told(&error)))?;
        let version =
            answer.headers().get(VERSION_FIELD).and_then(|version| version.to_str().ok()?.parse().ok());
        match version {
            Some(limits::VERSION) => {}
            Some(theirs) => {
                return Err(PeerError::Version { node: self.node.clone(), theirs, ours: limits::VERSION });
            }
            None => return Err(self.wrong(&"it names no version of the protocol")),
        }
        let status = answer.status();
        let bytes_max = if status == StatusCode::OK { answer_bytes } else { limits::ERROR_BYTES_MAX };
        let body = Limited::new(answer.into_body(), bytes_max).collect().await;
        let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => self.away(told(&*error)),
            Err(_) => self.wrong(&format!("it is longer than {bytes_max} bytes")),
        })?;
        let body = body.to_bytes();
        let words = || String::from_utf8_lossy(&body).into_owned();
        match status {
            StatusCode::OK => Ok(body),
            StatusCode::BAD_REQUEST => {
                Err(PeerError::NotUnderstood { node: self.node.clone(), reason: words() })
            }
            StatusCode::NOT_FOUND => Err(PeerError::Unknown { node: self.node.clone(), snapshot }),
            _ => Err(PeerError::Refused { node: self.node.clone(), reason: words() }),
        }
    }

    /// The connection, which is made if there is none.
    async fn connected(&self) -> Result<SendRequest<Full<Bytes>>, PeerError> {
        let mut connection = self.connection.lock().await;
        if let Some(sender) = connection.sender.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        connection.sender = None;
        if let Some((at, error)) = &connection.failed
            && at.elapsed() < limits::AWAY_FOR
        {
            return Err(error.clone());
        }
        let made = timeout(limits::CONNECTED_WITHIN, self.connect()).await;
        let made = made.unwrap_or_else(|_elapsed| {
            Err(self.away(format!("no connection within {} s", limits::CONNECTED_WITHIN.as_secs())))
        });
        match made {
            Ok(sender) => {
                *connection = Connection { sender: Some(sender.clone()), failed: None };
                Ok(sender)
            }
            Err(error) => {
                connection.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, PeerError> {
        let tls = self.files.client().map_err(|error| PeerError::Unconfigured {
            node: self.node.clone(),
            reason: error.to_string(),
        })?;
        let stream = TcpStream::connect(&self.address).await.map_err(|error| self.away(error.to_string()))?;
        stream.set_nodelay(true).map_err(|error| self.away(error.to_string()))?;
        let shaken = TlsConnector::from(tls).connect(node_name(), stream).await;
        let stream = shaken.map_err(|error| self.not_shaken(&error))?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(limits::WINDOW_BYTES)
            .initial_connection_window_size(limits::WINDOW_BYTES)
            .max_frame_size(limits::FRAME_BYTES)
            .keep_alive_interval(limits::SIGN_EVERY)
            .keep_alive_timeout(limits::SIGN_EVERY)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.away(told(&error)))?;
        let node = self.node.clone();
        // It ends with the last sender, or when the other end goes.
        drop(tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%node, error = %told(&error), "a connection to a node broke");
            }
        }));
        Ok(sender)
    }

    fn not_shaken(&self, error: &io::Error) -> PeerError {
        match error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
            Some(error) => PeerError::Untrusted { node: self.node.clone(), reason: error.to_string() },
            None => self.away(error.to_string()),
        }
    }

    fn away(&self, reason: String) -> PeerError {
        PeerError::Away { node: self.node.clone(), reason }
    }

    fn wrong(&self, reason: &dyn std::fmt::Display) -> PeerError {
        PeerError::Wrong { node: self.node.clone(), reason: reason.to_string() }
    }
}

/// An error with its causes, which hyper does not tell by itself.
fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |told, cause| format!("{told}: {cause}"))
}
