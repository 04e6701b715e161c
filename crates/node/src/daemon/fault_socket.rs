//! One socket at which a VMM that others start is served, from its first wait to its end.

use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use anyhow::Context as _;
use rekindle_api::control::Answer;
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::{FaultSocket, FaultSocketState, WriteTracking};
use rekindle_engine::catalog::{Change, Kind};
use rekindle_engine::fetch::Fetcher;
use rekindle_engine::run_roots::RunsFrom;
use rekindle_engine::serve::{
    EndReason, Epoch, EpochFacts, FaultServer, KeptEpoch, Neighbours, NotServed, Placement, ServeOptions,
    ServeStatus,
};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::tracking::Tracking;
use rekindle_keeper::{KeeperClient, KeeperIdentity};
use rekindle_kernel::Features;
use rekindle_kernel::wakeup::{Wakeup, wait_readable};
use serde_json::Value;
use uuid::Uuid;

use super::epochs::put_epoch;
use super::guest_watch::served_pages;
use super::hindrance::HandedOver;
use super::keys::socket_key;
use super::socket_record::{RECORD, SocketRecord};

/// The listening descriptor's name at the keeper.
pub(super) const LISTENER: &str = "listener";
/// One of them.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) id: Uuid,
    pub(super) path: PathBuf,
    pub(super) runs_from: RunsFrom,
    pub(super) tracking: WriteTracking,
    /// The reason that its VMM cannot be captured, once that was found.
    hindrance: OnceLock<String>,
    standing: Mutex<Standing>,
    /// Waits for a VMM and its hand-over, and looks at what it handed over; then ends.
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Standing {
    state: State,
    /// The keeper that was given what the state lives by.
    kept_by: Option<KeeperIdentity>,
}

#[derive(Debug)]
pub(super) enum State {
    /// A thread waits for a VMM to connect; the wakeup ends that wait.
    Listening {
        listener: UnixListener,
        cancelled: Arc<Wakeup>,
    },
    /// The thread takes a VMM over, whose connection this is.
    HandingOver {
        stream: UnixStream,
    },
    Serving {
        server: FaultServer,
    },
    /// Its VMM stands while its memory is captured.
    Capturing,
    /// Its VMM is served no more. The epoch is held until the socket is closed: without any userfaultfd the VMM's
    /// faults would read zeroes.
    Unserved {
        epoch: Box<Epoch>,
        reason: String,
    },
    /// A final state, also for work still under way.
    Ended {
        reason: String,
    },
}

/// Descriptors that a state depends on.
enum Lifeline {
    Listener(UnixListener),
    Epoch(KeptEpoch),
    /// Nothing that could be given to a keeper.
    None,
    /// An operation has it for a moment.
    Away,
}

impl Socket {
    /// A socket of which `kept_by`, if any keeper, was given what `state` lives by.
    pub(super) fn new(
        (id, path): (Uuid, PathBuf),
        runs_from: RunsFrom,
        tracking: WriteTracking,
        state: State,
        kept_by: Option<KeeperIdentity>,
    ) -> Arc<Self> {
        let standing = Mutex::new(Standing { state, kept_by });
        let (hindrance, thread) = (OnceLock::new(), Mutex::default());
        Arc::new(Self { id, path, runs_from, tracking, hindrance, standing, thread })
    }

    /// Says from now on why the VMM that it serves cannot be captured, if that is so.
    pub(super) fn look_for_hindrance(&self, handed_over: &HandedOver, keeper: u32) {
        if let Some(why) = handed_over.hindrance(keeper) {
            tracing::warn!(socket = %self.id, why, "a VMM at a fault socket cannot be captured as things are");
            // It serves one VMM, which is looked at once.
            self.hindrance.set(why).ok();
        }
    }

    /// The thread that works for it from now on.
    pub(super) fn is_worked_for_by(&self, thread: JoinHandle<()>) {
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
    }

    /// The socket as the API shows it.
    pub(super) fn show(&self) -> FaultSocket {
        let standing = self.standing();
        let (shown, reason, server) = match &standing.state {
            State::Listening { .. } | State::HandingOver { .. } => (FaultSocketState::Listening, None, None),
            State::Capturing => {
                (FaultSocketState::Running, Some("its memory is being captured".to_owned()), None)
            }
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
            snapshot: self.runs_from.snapshot().id().uuid(),
            path: self.path.display().to_string(),
            pid: server.map(|server| server.kept().facts.pid),
            state: shown,
            reason,
            capture_hindrance: self.hindrance.get().cloned(),
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
        let mut standing = self.standing();
        let before = std::mem::replace(&mut standing.state, State::Capturing);
        let State::Serving { server } = before else {
            standing.state = before;
            drop(standing);
            let why = format!("fault socket {} serves no VMM: there is nothing to capture", self.id);
            return Err(Problem::new(Code::WrongState, why));
        };
        drop(standing);
        let epoch = server.end_epoch();
        let (taken, next) = match take(&epoch) {
            Ok(taken) => {
                let reason = "its VMM was captured".to_owned();
                (Ok(taken), State::Unserved { epoch: Box::new(epoch), reason })
            }
            Err(error) => {
                (Err(super::problems::guest_failed(error)), served(self.runs_from.snapshot(), epoch, fetcher))
            }
        };
        self.replace(next, |state| matches!(state, State::Capturing));
        taken
    }

    /// Waits for a VMM to connect; `None` when the socket was closed.
    pub(super) fn accept(&self) -> anyhow::Result<Option<UnixStream>> {
        let mut woken: Option<Arc<Wakeup>> = None;
        loop {
            let (listener, cancelled) = match &self.standing().state {
                State::Listening { listener, cancelled, .. } => {
                    (listener.try_clone()?, Arc::clone(cancelled))
                }
                State::HandingOver { .. }
                | State::Serving { .. }
                | State::Capturing
                | State::Unserved { .. }
                | State::Ended { .. } => return Ok(None),
            };
            // Woken without another socket to wait at: it is over.
            if woken.is_some_and(|woken| Arc::ptr_eq(&woken, &cancelled)) {
                return Ok(None);
            }
            let waited_for = [Some(listener.as_fd()), Some(cancelled.as_fd())];
            let [connected, is_cancelled] = wait_readable(waited_for, None)?;
            woken = is_cancelled.readable.then_some(cancelled);
            if connected.readable && woken.is_none() {
                let stream = listener.accept()?.0;
                let next = State::HandingOver { stream: stream.try_clone()? };
                let is_listening = |state: &State| matches!(state, State::Listening { .. });
                return Ok(self.replace(next, is_listening).then_some(stream));
            }
        }
    }

    /// Listens again where no VMM came yet and the socket's file was removed; whether it had to.
    pub(super) fn stay(&self) -> anyhow::Result<bool> {
        let is_listening = |state: &State| matches!(state, State::Listening { .. });
        if !is_listening(&self.standing().state) || self.path.exists() {
            return Ok(false);
        }
        let next = State::Listening { listener: listen(&self.path)?, cancelled: Arc::new(Wakeup::new()?) };
        let mut standing = self.standing();
        if !is_listening(&standing.state) {
            return Ok(false);
        }
        let before = std::mem::replace(&mut standing.state, next);
        standing.kept_by = None;
        drop(standing);
        if let State::Listening { cancelled, .. } = before {
            cancelled.wake();
        }
        Ok(true)
    }

    /// The hand-over has come to its end.
    pub(super) fn taken_over(&self, state: State, kept_by: Option<KeeperIdentity>) {
        if self.replace(state, |state| matches!(state, State::HandingOver { .. })) {
            self.standing().kept_by = kept_by;
        }
        std::fs::remove_file(&self.path).ok();
    }

    /// Puts `next` in the place of the state, if it is still one of those that are `expected`.
    fn replace(&self, next: State, expected: impl FnOnce(&State) -> bool) -> bool {
        let mut standing = self.standing();
        let is_expected = expected(&standing.state);
        let over = if is_expected { std::mem::replace(&mut standing.state, next) } else { next };
        drop(standing);
        // The wait for a server's end is without the lock.
        drop(over);
        is_expected
    }

    pub(super) fn end(&self, reason: &str) {
        self.interrupt();
        self.replace(State::Ended { reason: reason.to_owned() }, |_| true);
        std::fs::remove_file(&self.path).ok();
    }

    /// Ends it where no VMM was taken over yet, and with it what its thread does.
    pub(super) fn give_up_waiting(&self) {
        self.interrupt();
        let next = State::Ended { reason: "it was closed".to_owned() };
        self.replace(next, |state| matches!(state, State::Listening { .. } | State::HandingOver { .. }));
    }

    /// Ends what its thread waits for.
    pub(super) fn interrupt(&self) {
        match &self.standing().state {
            State::Listening { cancelled, .. } => cancelled.wake(),
            // An error says that the VMM has hung up.
            State::HandingOver { stream } => drop(stream.shutdown(Shutdown::Both)),
            State::Serving { .. } | State::Capturing | State::Unserved { .. } | State::Ended { .. } => {}
        }
    }

    /// Waits for the end of its thread.
    pub(super) fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(socket = %self.id, "the thread of a fault socket panicked");
        }
    }

    /// Hands its descriptors to `keeper`, unless it has them.
    pub(super) fn keep(&self, keeper: &KeeperClient) -> anyhow::Result<()> {
        let (lifeline, identity) = (self.lifeline(keeper.identity())?, keeper.identity());
        let key = socket_key(self.id);
        match &lifeline {
            Lifeline::Listener(listener) => {
                keeper.put(&key, &Value::Null, &[(LISTENER, listener.as_fd())])?;
            }
            Lifeline::Epoch(kept) => put_epoch(keeper, &key, kept)?,
            Lifeline::None | Lifeline::Away => return Ok(()),
        }
        let mut standing = self.standing();
        let is_the_same = match &standing.state {
            State::Listening { .. } => matches!(lifeline, Lifeline::Listener(_)),
            State::Serving { .. } | State::Unserved { .. } => matches!(lifeline, Lifeline::Epoch(_)),
            State::HandingOver { .. } | State::Capturing | State::Ended { .. } => false,
        };
        if is_the_same {
            standing.kept_by = Some(identity);
        }
        Ok(())
    }

    /// The descriptors it depends on, unless `keeper` was given them.
    fn lifeline(&self, keeper: KeeperIdentity) -> std::io::Result<Lifeline> {
        let standing = self.standing();
        if standing.kept_by == Some(keeper) {
            return Ok(Lifeline::None);
        }
        Ok(match &standing.state {
            State::Listening { listener, .. } => Lifeline::Listener(listener.try_clone()?),
            State::Serving { server } => Lifeline::Epoch(server.kept().try_clone()?),
            State::Unserved { epoch, .. } => Lifeline::Epoch(epoch.kept()?),
            State::HandingOver { .. } | State::Capturing => Lifeline::Away,
            State::Ended { .. } => Lifeline::None,
        })
    }

    pub(super) fn put(&self, facts: Option<EpochFacts>) -> Change {
        let record = SocketRecord {
            id: self.id,
            path: self.path.clone(),
            snapshot: self.runs_from.snapshot().id().uuid(),
            tracking: self.tracking,
            facts,
        };
        let value = serde_json::to_vec(&record).expect("a record is plain data");
        Change::Put { kind: Kind::Meta, key: self.record_key(), value }
    }

    pub(super) fn record_key(&self) -> Vec<u8> {
        format!("{RECORD}{}", self.id).into_bytes()
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A VMM whose faults are served from `snapshot`, or which waits until the socket is closed, if they cannot be.
pub(super) fn served(snapshot: &Arc<Snapshot>, epoch: Epoch, fetcher: &Fetcher) -> State {
    match FaultServer::resume(Arc::clone(snapshot.memory()), epoch, fetcher.clone(), options()) {
        Ok(server) => State::Serving { server },
        Err(NotServed { epoch, error }) => {
            State::Unserved { epoch, reason: format!("it could not be served: {error}") }
        }
    }
}

pub(super) fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let listener = UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))?;
    if let Err(error) = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)) {
        std::fs::remove_file(path).ok();
        return Err(error).with_context(|| format!("closing {} to others", path.display()));
    }
    Ok(listener)
}

/// The tracking of a VMM's writes with a userfaultfd that has the features `granted`.
pub(super) fn tracking(wanted: WriteTracking, granted: Features) -> Tracking {
    match (wanted, granted.contains(Features::WP_ASYNC)) {
        (WriteTracking::WhenFree | WriteTracking::Always, true) => Tracking::Scan,
        (WriteTracking::Always, false) => Tracking::Events,
        (WriteTracking::WhenFree, false) => Tracking::Resident,
    }
}

/// Options for VMMs that others manage; the tracking is that of their epoch.
fn options() -> ServeOptions {
    ServeOptions {
        tracking: Tracking::Resident,
        placement: Placement::FollowFaults,
        neighbours: Neighbours::Adaptive,
    }
}

fn words(why: EndReason) -> String {
    match why {
        EndReason::EpochEnded => "it was ended for a pause".to_owned(),
        EndReason::HungUp => "its VMM hung up".to_owned(),
        EndReason::MemoryGone => "its VMM's memory is gone".to_owned(),
        EndReason::Failed { reason } => format!("serving it failed: {reason}"),
    }
}
