//! Sockets at which VMMs that others start are served with a snapshot's memory.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use rekindle_engine::catalog::{Catalog, Change, Kind, WriteError};
use rekindle_engine::fetch::Fetcher;
use rekindle_engine::handover::Handover;
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::learning::Learner;
use rekindle_engine::precedence::Precedence;
use rekindle_engine::serve::{
    EndReason, Epoch, EpochFacts, FaultServer, Neighbours, NotServed, Placement, ServeOptions, ServeStatus,
};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::tracking::Tracking;
use rekindle_kernel::wakeup::{Wakeup, wait_readable};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::Daemon;
use super::entry::served_pages;
use super::keeping::{Keeping, socket_key, take_fd};
use super::live::put_epoch;
use crate::api::control::{Answer, Asked};
use crate::api::problem::{Code, Problem};
use crate::api::types::{FaultSocket, FaultSocketState, OpenFaultSocket};
use crate::keeper::HeldEntry;
use crate::metrics::Metrics;

/// How long a VMM that has connected may take to hand its memory over.
const HANDOVER_LIMIT: Duration = Duration::from_secs(30);
/// Fault sockets at once, at most.
const SOCKETS_MAX: usize = 4096;
/// The listening descriptor's name at the keeper.
const LISTENER: &str = "listener";
/// Where a socket's record is in the catalog.
const RECORD: &str = "fault-socket/";

/// The fault sockets of this node.
#[derive(Debug, Default)]
pub(super) struct FaultSockets(Mutex<BTreeMap<Uuid, Arc<Socket>>>);

/// One of them.
#[derive(Debug)]
pub(super) struct Socket {
    id: Uuid,
    pub(super) path: PathBuf,
    pub(super) snapshot: Arc<Snapshot>,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// A thread waits for somebody to connect; dropping the wakeup's other end ends it.
    Listening {
        listener: UnixListener,
        cancelled: Arc<Wakeup>,
    },
    Serving {
        server: FaultServer,
    },
    /// Nobody serves its VMM any more. The epoch is held until the socket is closed: without any userfaultfd the VMM's
    /// faults would read zeroes.
    Unserved {
        epoch: Box<Epoch>,
        reason: String,
    },
    Ended {
        reason: String,
    },
}

/// What the catalog knows of a socket.
#[derive(Debug, Serialize, Deserialize)]
struct SocketRecord {
    id: Uuid,
    path: PathBuf,
    snapshot: Uuid,
    /// Where the memory of its VMM is, once one has handed it over.
    facts: Option<EpochFacts>,
}

impl FaultSockets {
    pub(super) fn all(&self) -> Vec<Arc<Socket>> {
        self.lock().values().cloned().collect()
    }

    pub(super) fn find(&self, id: Uuid) -> Answer<Arc<Socket>> {
        let found = self.lock().get(&id).cloned();
        found.ok_or_else(|| Problem::new(Code::NotFound, format!("there is no fault socket {id}")))
    }

    /// Hands everything to a keeper that holds nothing yet.
    pub(super) fn keep_again(&self, keeping: &Keeping) {
        for socket in self.all() {
            if let Err(error) = socket.keep(keeping) {
                tracing::error!(socket = %socket.id, error = format!("{error:#}"), "a served VMM would not outlive this daemon");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Arc<Socket>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Daemon {
    pub(super) fn open_socket(&self, asked: &Asked, wanted: &OpenFaultSocket) -> Answer<FaultSocket> {
        let known = self.readable_snapshot(&wanted.snapshot)?;
        self.wait_if_asked(&known, asked, wanted.serve_before_seal)?;
        asked.check()?;
        if self.fault_sockets.lock().len() >= SOCKETS_MAX {
            return Err(Problem::new(Code::TooMany, format!("{SOCKETS_MAX} fault sockets are open already")));
        }
        let id = Uuid::now_v7();
        let path = self.run_directory.join(format!("faults-{id}.sock"));
        let listener = listen(&path).map_err(super::problems::guest_failed)?;
        let cancelled = Arc::new(Wakeup::new().map_err(|error| super::problems::guest_failed(error.into()))?);
        let socket = Arc::new(Socket {
            id,
            path,
            snapshot: known.snapshot,
            state: Mutex::new(State::Listening { listener, cancelled }),
        });
        socket.keep(&self.keeping).map_err(super::problems::guest_failed)?;
        if let Err(problem) = self.write_socket(&socket, None) {
            // A start that finds it recorded all the same finds that the keeper holds nothing of it.
            socket.end("it could not be recorded");
            self.keeping.client().forget(&socket_key(id))?;
            return Err(problem);
        }
        self.fault_sockets.lock().insert(id, Arc::clone(&socket));
        self.accept_in_background(&socket)?;
        Ok(socket.show())
    }

    pub(super) fn close_socket(&self, id: Uuid) -> Answer<()> {
        let socket = self.fault_sockets.find(id)?;
        let key = socket.record_key();
        self.catalog.write(&[Change::Remove { kind: Kind::Meta, key }]).map_err(WriteError::either_way)?;
        self.fault_sockets.lock().remove(&id);
        socket.end("it was closed");
        self.keeping.client().forget(&socket_key(id))?;
        Ok(())
    }

    /// Waits for a VMM in a thread of its own, which ends with the hand-over, whatever comes of it.
    fn accept_in_background(&self, socket: &Arc<Socket>) -> Answer<()> {
        let host = Host {
            keeping: Arc::clone(&self.keeping),
            catalog: self.catalog.clone(),
            fetcher: self.engine.fetcher().clone(),
            learner: self.engine.learner(),
            precedence: self.engine.precedence().clone(),
            metrics: Arc::clone(&self.metrics),
            socket: Arc::clone(socket),
        };
        let name = "hand-over".to_owned();
        std::thread::Builder::new().name(name).spawn(move || host.wait_for_vmm()).map(drop).map_err(|error| {
            Problem::new(Code::TooMany, format!("no thread for another fault socket: {error}"))
        })
    }

    fn write_socket(&self, socket: &Socket, facts: Option<EpochFacts>) -> Answer<()> {
        Ok(self.catalog.write(&[socket.put(facts)]).map_err(WriteError::either_way)?)
    }

    /// Takes over the sockets that an earlier daemon left.
    pub(super) fn recover_sockets(&self, held: &HashMap<String, HeldEntry>) -> anyhow::Result<()> {
        for (key, value) in self.catalog.all(Kind::Meta)? {
            if !key.starts_with(RECORD.as_bytes()) {
                continue;
            }
            let record: SocketRecord = serde_json::from_slice(&value)?;
            let (id, snapshot) = (record.id, self.engine.origin(SnapshotId::from(record.snapshot)));
            let taken = match snapshot {
                Some(snapshot) if held.contains_key(&socket_key(id)) => {
                    self.recover_socket(&record, snapshot)
                }
                Some(_) => Err(anyhow::anyhow!("the keeper that held it is gone")),
                None => Err(anyhow::anyhow!("there is no snapshot {} any more", record.snapshot)),
            };
            if let Err(error) = taken {
                tracing::error!(socket = %id, error = format!("{error:#}"), "a fault socket is lost");
                let removal = Change::Remove { kind: Kind::Meta, key };
                self.catalog.write(&[removal]).map_err(WriteError::either_way)?;
                self.keeping.client().forget(&socket_key(id))?;
            }
        }
        Ok(())
    }

    fn recover_socket(&self, record: &SocketRecord, snapshot: Arc<Snapshot>) -> anyhow::Result<()> {
        let held = self.keeping.client().get(&socket_key(record.id))?;
        let mut held = held.context("the keeper holds nothing of it any more")?;
        let state = match &record.facts {
            None => {
                let listener = UnixListener::from(take_fd(&mut held, LISTENER)?);
                State::Listening { listener, cancelled: Arc::new(Wakeup::new()?) }
            }
            Some(facts) => {
                let epoch = Epoch::recover(super::live::kept_epoch(&mut held, facts.clone())?)?;
                let view = Arc::clone(snapshot.memory());
                let server = FaultServer::resume(view, epoch, self.engine.fetcher().clone(), options())?;
                self.metrics.serving(snapshot.id(), server.watch());
                State::Serving { server }
            }
        };
        let socket =
            Arc::new(Socket { id: record.id, path: record.path.clone(), snapshot, state: Mutex::new(state) });
        self.fault_sockets.lock().insert(record.id, Arc::clone(&socket));
        if record.facts.is_none() {
            self.accept_in_background(&socket).map_err(anyhow::Error::from)?;
        }
        Ok(())
    }
}

/// What a thread that waits for a VMM works with.
struct Host {
    keeping: Arc<Keeping>,
    catalog: Catalog,
    fetcher: Fetcher,
    learner: Learner,
    precedence: Precedence,
    metrics: Arc<Metrics>,
    socket: Arc<Socket>,
}

impl Host {
    fn wait_for_vmm(&self) {
        let accepted = self.socket.accept();
        let Some(stream) = accepted.transpose() else { return };
        let served = stream.and_then(|stream| self.serve(stream));
        if let Err(error) = served {
            tracing::warn!(socket = %self.socket.id, error = format!("{error:#}"), "a hand-over failed");
            self.socket.end(&format!("{error:#}"));
        }
    }

    fn serve(&self, stream: UnixStream) -> anyhow::Result<()> {
        let pages = self.socket.snapshot.memory().pages();
        let handover = Handover::receive(stream, pages, HANDOVER_LIMIT)?;
        let _first = self.precedence.bring_up();
        let epoch = Epoch::begin(handover, options().tracking).context("beginning to serve the VMM")?;
        let kept = epoch.kept().context("duplicating the VMM's descriptors")?;
        put_epoch(&self.keeping, &socket_key(self.socket.id), &kept)?;
        self.catalog.write(&[self.socket.put(Some(kept.facts))]).map_err(WriteError::either_way)?;
        let snapshot = &self.socket.snapshot;
        let view = Arc::clone(snapshot.memory());
        let server = FaultServer::resume(view, epoch, self.fetcher.clone(), options())?;
        self.metrics.serving(snapshot.id(), server.watch());
        self.learner.learn(snapshot, &server);
        self.socket.serve(server);
        Ok(())
    }
}

impl Socket {
    /// The socket as the API shows it.
    pub(super) fn show(&self) -> FaultSocket {
        let state = self.lock();
        let (shown, reason, server) = match &*state {
            State::Listening { .. } => (FaultSocketState::Listening, None, None),
            State::Serving { server, .. } => match server.status() {
                ServeStatus::Running => (FaultSocketState::Running, None, Some(server)),
                ServeStatus::Stalled { page, reason } => {
                    (FaultSocketState::Stalled, Some(format!("page {page}: {reason}")), Some(server))
                }
                ServeStatus::Ended { why } => (FaultSocketState::Ended, Some(words(why)), Some(server)),
            },
            State::Unserved { reason, .. } | State::Ended { reason } => {
                (FaultSocketState::Ended, Some(reason.clone()), None)
            }
        };
        FaultSocket {
            id: self.id,
            snapshot: self.snapshot.id().uuid(),
            path: self.path.display().to_string(),
            pid: server.map(|server| server.kept().facts.pid),
            state: shown,
            reason,
            served: server.map(|server| served_pages(&server.stats())),
        }
    }

    /// Takes the epoch of the served VMM, which the caller stopped, makes something of it by `take`, and serves it on if
    /// that fails.
    pub(super) fn take_epoch<T>(
        &self,
        fetcher: &Fetcher,
        take: impl FnOnce(&Epoch) -> anyhow::Result<T>,
    ) -> Answer<T> {
        let mut state = self.lock();
        let before =
            std::mem::replace(&mut *state, State::Ended { reason: "its VMM is being captured".to_owned() });
        let State::Serving { server } = before else {
            *state = before;
            drop(state);
            let why = format!("fault socket {} serves nobody: there is nothing to capture", self.id);
            return Err(Problem::new(Code::WrongState, why));
        };
        drop(state);
        let epoch = server.end_epoch();
        match take(&epoch) {
            Ok(taken) => {
                let reason = "its VMM was captured".to_owned();
                *self.lock() = State::Unserved { epoch: Box::new(epoch), reason };
                Ok(taken)
            }
            Err(error) => {
                let view = Arc::clone(self.snapshot.memory());
                *self.lock() = match FaultServer::resume(view, epoch, fetcher.clone(), options()) {
                    Ok(server) => State::Serving { server },
                    Err(NotServed { epoch, error }) => {
                        State::Unserved { epoch, reason: format!("it could not be served on: {error}") }
                    }
                };
                Err(super::problems::guest_failed(error))
            }
        }
    }

    /// Waits for a VMM to connect; `None` when the socket was closed.
    fn accept(&self) -> anyhow::Result<Option<UnixStream>> {
        let (listener, cancelled) = match &*self.lock() {
            State::Listening { listener, cancelled, .. } => (listener.try_clone()?, Arc::clone(cancelled)),
            State::Serving { .. } | State::Unserved { .. } | State::Ended { .. } => return Ok(None),
        };
        let [connected, cancelled] = wait_readable([Some(listener.as_fd()), Some(cancelled.as_fd())], None)?;
        if cancelled.readable || !connected.readable {
            return Ok(None);
        }
        Ok(Some(listener.accept()?.0))
    }

    fn serve(&self, server: FaultServer) {
        let mut state = self.lock();
        let before = std::mem::replace(&mut *state, State::Ended { reason: "it was closed".to_owned() });
        if matches!(before, State::Listening { .. }) {
            *state = State::Serving { server };
        }
        std::fs::remove_file(&self.path).ok();
    }

    fn end(&self, reason: &str) {
        let before = std::mem::replace(&mut *self.lock(), State::Ended { reason: reason.to_owned() });
        if let State::Listening { cancelled, .. } = &before {
            cancelled.wake();
        }
        std::fs::remove_file(&self.path).ok();
        drop(before);
    }

    /// Hands its descriptors to the keeper.
    fn keep(&self, keeping: &Keeping) -> anyhow::Result<()> {
        let key = socket_key(self.id);
        match &*self.lock() {
            State::Listening { listener, .. } => {
                Ok(keeping.client().put(&key, &Value::Null, &[(LISTENER, listener.as_fd())])?)
            }
            State::Serving { server, .. } => put_epoch(keeping, &key, server.kept()),
            State::Unserved { epoch, .. } => put_epoch(keeping, &key, &epoch.kept()?),
            State::Ended { .. } => Ok(()),
        }
    }

    fn put(&self, facts: Option<EpochFacts>) -> Change {
        let record =
            SocketRecord { id: self.id, path: self.path.clone(), snapshot: self.snapshot.id().uuid(), facts };
        let value = serde_json::to_vec(&record).expect("a record is plain data");
        Change::Put { kind: Kind::Meta, key: self.record_key(), value }
    }

    fn record_key(&self) -> Vec<u8> {
        format!("{RECORD}{}", self.id).into_bytes()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let listener = UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// How VMMs of others are served: their writes are noticed as well as their userfaultfd allows.
fn options() -> ServeOptions {
    ServeOptions {
        tracking: Tracking::Scan,
        placement: Placement::FollowFaults,
        neighbours: Neighbours::Adaptive,
    }
}

fn words(why: EndReason) -> String {
    match why {
        EndReason::EpochEnded => "it was ended for a pause",
        EndReason::HungUp => "its VMM hung up",
        EndReason::MemoryGone => "its VMM's memory is gone",
        EndReason::Failed => "serving it failed; the daemon's log says why",
    }
    .to_owned()
}
