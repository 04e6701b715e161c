//! Sockets at which VMMs that others start are served with a snapshot's memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use rekindle_api::control::{Answer, Asked};
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::{FaultSocket, OpenFaultSocket};
use rekindle_engine::catalog::{Catalog, Change, Kind, WriteError};
use rekindle_engine::fetch::Fetcher;
use rekindle_engine::handover::Handover;
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::learning::{Prefault, Prefaulter};
use rekindle_engine::precedence::Precedence;
use rekindle_engine::serve::Epoch;
use rekindle_engine::snapshot::Snapshot;
use rekindle_keeper::{HeldEntry, KeeperClient};
use rekindle_kernel::wakeup::Wakeup;
use rekindle_metrics::Metrics;
use uuid::Uuid;

use super::epochs::{kept_epoch, put_epoch};
use super::fault_socket::{LISTENER, Socket, State, listen, served, tracking};
use super::hindrance::HandedOver;
use super::host::Host;
use super::keeping::{Keeping, take_fd};
use super::keys::socket_key;
use super::moment::is_of_the_moment;
use super::problems::guest_failed;
use super::room::Room;
use super::room_promises::Needed;
use super::snapshots::Snapshots;
use super::socket_record::{RECORD, SocketRecord};

/// Longest time for a VMM that has connected to hand its memory over.
const HANDOVER_LIMIT: Duration = Duration::from_secs(30);
/// Fault sockets at once, at most.
const SOCKETS_MAX: usize = 4096;

/// The fault sockets of this node.
#[derive(Debug)]
pub(super) struct FaultSockets {
    sockets: Mutex<BTreeMap<Uuid, Arc<Socket>>>,
    /// Those that could not be taken over yet.
    undecided: Mutex<BTreeSet<Uuid>>,
    catalog: Catalog,
    snapshots: Arc<Snapshots>,
    room: Arc<Room>,
    host: Arc<Host>,
}

impl FaultSockets {
    /// The owner of the fault sockets whose records are in `catalog`; none is there yet.
    pub(super) fn new(catalog: Catalog, snapshots: Arc<Snapshots>, room: Arc<Room>, host: Arc<Host>) -> Self {
        let (sockets, undecided) = (Mutex::default(), Mutex::default());
        Self { sockets, undecided, catalog, snapshots, room, host }
    }

    pub(super) fn all(&self) -> Vec<Arc<Socket>> {
        self.lock().values().cloned().collect()
    }

    pub(super) fn find(&self, id: Uuid) -> Answer<Arc<Socket>> {
        let found = self.lock().get(&id).cloned();
        found.ok_or_else(|| Problem::new(Code::NotFound, format!("there is no fault socket {id}")))
    }

    /// Hands what `keeper` was not given of any of them to it; the answer is why that failed, by socket.
    pub(super) fn keep_again(&self, keeper: &KeeperClient) -> Vec<(Uuid, anyhow::Error)> {
        let keep = |socket: Arc<Socket>| Some((socket.id, socket.keep(keeper).err()?));
        self.all().into_iter().filter_map(keep).collect()
    }

    /// Listens again where sockets that wait for a VMM were removed; why that failed, by socket.
    pub(super) fn stay(&self) -> Vec<(Uuid, anyhow::Error)> {
        let stay = |socket: Arc<Socket>| match socket.stay() {
            Ok(false) => None,
            Ok(true) => {
                tracing::warn!(path = %socket.path.display(), "a fault socket was removed; it was made again");
                None
            }
            Err(error) => Some((socket.id, error)),
        };
        self.all().into_iter().filter_map(stay).collect()
    }

    /// Ends the waits for VMMs, whose sockets stay for the next daemon.
    pub(super) fn finish(&self) {
        let sockets = self.all();
        sockets.iter().for_each(|socket| socket.interrupt());
        sockets.iter().for_each(|socket| socket.join());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Arc<Socket>>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that could not be taken over yet.
    pub(super) fn undecided(&self) -> BTreeSet<Uuid> {
        self.undecided.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_undecided(&self, id: Uuid, is_undecided: bool) {
        let mut undecided = self.undecided.lock().unwrap_or_else(PoisonError::into_inner);
        if is_undecided {
            undecided.insert(id);
        } else {
            undecided.remove(&id);
        }
    }
}

impl FaultSockets {
    pub(super) fn open(&self, asked: &Asked, wanted: &OpenFaultSocket) -> Answer<FaultSocket> {
        let known = self.snapshots.readable(&wanted.snapshot)?;
        self.snapshots.wait_to_serve(&known, asked, wanted.serve_before_seal)?;
        asked.check()?;
        if self.lock().len() >= SOCKETS_MAX {
            return Err(Problem::new(Code::TooMany, format!("{SOCKETS_MAX} fault sockets are open already")));
        }
        let room = self.room.promise(&Needed::to_serve_another_ones())?;
        let id = Uuid::now_v7();
        let path = self.path_of(id);
        let cancelled = Arc::new(Wakeup::new().map_err(|error| guest_failed(error.into()))?);
        let listener = listen(&path).map_err(guest_failed)?;
        let waiting = State::Listening { listener, cancelled };
        let socket = Socket::new(
            (id, path),
            self.host.engine.runs_from(&known.snapshot),
            wanted.tracking,
            waiting,
            None,
        );
        if let Err(problem) = self.begin_to_listen(&socket) {
            socket.end("it could not be opened");
            socket.join();
            // A start that finds it recorded all the same finds that the keeper holds nothing of it, and one that finds it
            // held lets go of it.
            self.host.keeping.let_go(&socket_key(id));
            return Err(problem);
        }
        drop(room);
        Ok(socket.show())
    }

    /// Path of a fault socket.
    pub(super) fn path_of(&self, id: Uuid) -> PathBuf {
        self.host.run_directory.join(format!("faults-{id}.sock"))
    }

    fn begin_to_listen(&self, socket: &Arc<Socket>) -> Answer<()> {
        socket.keep(&self.host.keeping.client()).map_err(guest_failed)?;
        let waiting = self.wait_in_background(socket)?;
        // Nothing that can fail comes after it.
        self.catalog.write(&[socket.put(None)]).map_err(WriteError::either_way)?;
        self.lock().insert(socket.id, Arc::clone(socket));
        waiting.begin();
        Ok(())
    }

    pub(super) fn close(&self, id: Uuid) -> Answer<()> {
        let socket = self.find(id)?;
        // A hand-over writes record and descriptors: it is over before these go.
        socket.give_up_waiting();
        socket.join();
        self.let_go_of_socket(&socket)
    }

    /// Removes what is written down and kept of a socket that no thread works for, and ends it.
    fn let_go_of_socket(&self, socket: &Socket) -> Answer<()> {
        self.catalog
            .write_with_last_room(&[Change::Remove { kind: Kind::Meta, key: socket.record_key() }])
            .map_err(WriteError::either_way)?;
        self.lock().remove(&socket.id);
        socket.end("it was closed");
        self.host.keeping.client().forget(&socket_key(socket.id)).map_err(|error| guest_failed(error.into()))
    }

    /// A thread of its own that will wait for a VMM, and ends with the hand-over or its failure.
    fn wait_in_background(&self, socket: &Arc<Socket>) -> Answer<Waiting> {
        let services = SocketServices {
            keeping: Arc::clone(&self.host.keeping),
            catalog: self.catalog.clone(),
            fetcher: self.host.engine.fetcher().clone(),
            prefaulter: self.host.engine.prefaulter(),
            prefault: self.host.settings().prefault,
            precedence: self.host.engine.precedence().clone(),
            metrics: Arc::clone(&self.host.metrics),
            socket: Arc::clone(socket),
        };
        let (begin, begun) = channel();
        let work = move || {
            // An error says that the socket was not opened.
            if begun.recv().is_ok() {
                services.wait_for_vmm();
            }
        };
        let thread = std::thread::Builder::new().name("hand-over".to_owned());
        let thread = thread.spawn(work).map_err(|error| {
            Problem::new(Code::TooMany, format!("no thread for another fault socket: {error}"))
        })?;
        socket.is_worked_for_by(thread);
        Ok(Waiting(begin))
    }

    /// Takes over the sockets that an earlier daemon left; gives those whose records cannot be read.
    pub(super) fn recover(&self, held: &HashMap<String, HeldEntry>) -> anyhow::Result<BTreeSet<Uuid>> {
        let mut unreadable = BTreeSet::new();
        for (key, value) in self.catalog.all(Kind::Meta)? {
            if !key.starts_with(RECORD.as_bytes()) {
                continue;
            }
            match serde_json::from_slice(&value) {
                Ok(record) => self.take_socket_over(&record, held)?,
                Err(error) => {
                    let name = String::from_utf8_lossy(&key[RECORD.len()..]).into_owned();
                    tracing::error!(socket = name, %error, "the record of a fault socket cannot be read; it is left as it is");
                    unreadable.extend(Uuid::try_parse(&name));
                }
            }
        }
        Ok(unreadable)
    }

    /// Tries again to take over those that could not be; whether none is left.
    pub(super) fn decide(&self) -> anyhow::Result<bool> {
        let undecided = self.undecided();
        if undecided.is_empty() {
            return Ok(true);
        }
        let held =
            self.host.keeping.client().list()?.into_iter().map(|held| (held.key.clone(), held)).collect();
        for id in undecided {
            let key = format!("{RECORD}{id}");
            match self.catalog.get(Kind::Meta, key.as_bytes())? {
                Some(value) => self.take_socket_over(&serde_json::from_slice(&value)?, &held)?,
                None => self.set_undecided(id, false),
            }
        }
        Ok(self.undecided().is_empty())
    }

    fn take_socket_over(
        &self,
        record: &SocketRecord,
        held: &HashMap<String, HeldEntry>,
    ) -> anyhow::Result<()> {
        let (id, snapshot) = (record.id, self.host.engine.origin(SnapshotId::from(record.snapshot)));
        let taken = match snapshot {
            Some(snapshot) if held.contains_key(&socket_key(id)) => self.recover_socket(record, &snapshot),
            Some(_) => Err(anyhow::anyhow!("the keeper that held it is gone")),
            None => Err(anyhow::anyhow!("there is no snapshot {} any more", record.snapshot)),
        };
        let Err(error) = taken else {
            self.set_undecided(id, false);
            return Ok(());
        };
        let reason = format!("{error:#}");
        if is_of_the_moment(&error) {
            tracing::error!(socket = %id, reason, "a fault socket cannot be served now; it is tried again");
            self.set_undecided(id, true);
            return Ok(());
        }
        tracing::error!(socket = %id, reason, "a fault socket is lost");
        let removal = Change::Remove { kind: Kind::Meta, key: format!("{RECORD}{id}").into_bytes() };
        self.catalog.write_with_last_room(&[removal]).map_err(WriteError::either_way)?;
        self.set_undecided(id, false);
        Ok(self.host.keeping.client().forget(&socket_key(id))?)
    }

    fn recover_socket(&self, record: &SocketRecord, snapshot: &Arc<Snapshot>) -> anyhow::Result<()> {
        let keeper = self.host.keeping.client();
        let (held, kept_by) = (keeper.get(&socket_key(record.id))?, keeper.identity());
        let mut held = held.context("the keeper holds nothing of it any more")?;
        let mut handed_over = None;
        let state = match &record.facts {
            None => {
                let listener = UnixListener::from(take_fd(&mut held, LISTENER)?);
                State::Listening { listener, cancelled: Arc::new(Wakeup::new()?) }
            }
            Some(facts) => {
                let epoch = Epoch::recover(kept_epoch(&mut held, facts.clone())?)?;
                let state = served(snapshot, epoch, self.host.engine.fetcher());
                if let State::Serving { server } = &state {
                    self.host.metrics.serving(snapshot.id(), server.watch());
                    handed_over = Some(HandedOver::of(server.kept())?);
                }
                state
            }
        };
        let names = (record.id, record.path.clone());
        let socket =
            Socket::new(names, self.host.engine.runs_from(snapshot), record.tracking, state, Some(kept_by));
        self.lock().insert(record.id, Arc::clone(&socket));
        if record.facts.is_none() {
            self.wait_in_background(&socket).map_err(anyhow::Error::from)?.begin();
        }
        if let Some(handed_over) = handed_over {
            look_in_background(&socket, handed_over, kept_by.pid);
        }
        Ok(())
    }
}

/// Looks for what is in the way of a capture while the daemon's start goes on: that goes through all processes.
fn look_in_background(socket: &Arc<Socket>, handed_over: HandedOver, keeper: u32) {
    let looked_at = Arc::clone(socket);
    let thread = std::thread::Builder::new().name("hindrance".to_owned());
    match thread.spawn(move || looked_at.look_for_hindrance(&handed_over, keeper)) {
        Ok(thread) => socket.is_worked_for_by(thread),
        Err(error) => tracing::warn!(socket = %socket.id, %error, "a VMM's memory is not looked at"),
    }
}

/// A thread that is about to wait for a VMM; dropped, it ends.
struct Waiting(Sender<()>);

impl Waiting {
    fn begin(self) {
        // An error says that the thread has ended.
        self.0.send(()).ok();
    }
}

/// Parts for the thread that waits for a VMM.
struct SocketServices {
    keeping: Arc<Keeping>,
    catalog: Catalog,
    fetcher: Fetcher,
    prefaulter: Prefaulter,
    prefault: Prefault,
    precedence: Precedence,
    metrics: Arc<Metrics>,
    socket: Arc<Socket>,
}

impl SocketServices {
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
        let pages = self.socket.runs_from.snapshot().memory().pages();
        let handover = Handover::receive(stream, pages, HANDOVER_LIMIT)?;
        let _first = self.precedence.bring_up();
        let granted = handover.userfaultfd.granted().context("asking what the VMM's userfaultfd can do")?;
        let tracking = tracking(self.socket.tracking, granted);
        let epoch = Epoch::begin(handover, tracking).context("beginning to serve the VMM")?;
        let kept = epoch.kept().context("duplicating the VMM's descriptors")?;
        let keeper = self.keeping.client();
        // Without a keeper its VMM is served on all the same; the next one is given the epoch.
        let given = put_epoch(&keeper, &socket_key(self.socket.id), &kept);
        if let Err(error) = &given {
            tracing::warn!(socket = %self.socket.id, %error, "the keeper was not given a VMM's memory yet");
        }
        let handed_over = HandedOver::of(&kept)?;
        let snapshot = self.socket.runs_from.snapshot();
        let recorded = self.catalog.write(&[self.socket.put(Some(kept.facts))]);
        let state = match recorded.map_err(WriteError::either_way) {
            Ok(()) => served(snapshot, epoch, &self.fetcher),
            Err(error) => State::Unserved {
                epoch: Box::new(epoch),
                reason: format!("it could not be recorded: {error}"),
            },
        };
        if let State::Serving { server } = &state {
            self.metrics.serving(snapshot.id(), server.watch());
            self.prefaulter.begin(snapshot, server, self.prefault);
        }
        self.socket.taken_over(state, given.ok().map(|()| keeper.identity()));
        // Only now: the VMM waits for its first pages until it is served.
        self.socket.look_for_hindrance(&handed_over, keeper.identity().pid);
        Ok(())
    }
}
