//! A client of the control API: each operation as a call that blocks until it is answered.

mod channel;
mod endpoint;
mod error;
mod events;
mod exchange;
mod placement;
mod talking;
mod trust;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use hyper::Method;
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

use crate::limits;
use crate::operation::{Input, Operation, Output, Subject};
use crate::operations::*;
use crate::problem::Code;
use crate::types::{
    CaptureMemory, CheckpointSandbox, Collect, Collection, CreateSandbox, DeletedSnapshot, Drain, DrainNode,
    EventsQuery, FaultSocket, ForkSandbox, Health, KeptSnapshot, LabelFilter, ListQuery, MoveSandbox,
    MovedSandbox, OpenFaultSocket, PageLimit, PauseSandbox, Readiness, ResumeSandbox, ResumeSnapshot,
    Sandbox, SandboxList, Snapshot, SnapshotList, SnapshotState, SnapshotUsage, StoredSnapshot, Usage,
    Verification, Version, WaitQuery, WithdrawnSnapshot,
};
pub use channel::Channel;
pub use endpoint::{Endpoint, RemoteOptions};
pub use error::ClientError;
pub use events::Events;
use exchange::{Call, Reply};

/// Result of a call.
pub type Result<T> = std::result::Result<T, ClientError>;

/// Longest wait for an answer: longer than the daemon itself waits for anything.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20 * 60);

/// Longest wait for the answer of a wait, beyond its own limit.
const WAIT_ANSWERED_WITHIN: Duration = Duration::from_secs(60);

/// A client of one daemon; every call connects anew, so that a daemon that was started again is found.
///
/// Calls block their thread and must not be made on a thread of an asynchronous runtime.
#[derive(Clone, Debug)]
pub struct Client {
    endpoint: Endpoint,
    answered_within: Duration,
}

impl Client {
    /// A client of the daemon at `endpoint`.
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, answered_within: ANSWERED_WITHIN }
    }

    /// A client of the daemon that listens on a socket of this machine.
    pub fn of_socket(path: impl Into<PathBuf>) -> Self {
        Self::new(Endpoint::Socket(path.into()))
    }

    /// The same client, for which an answer that takes longer is an error.
    #[must_use]
    pub fn answered_within(self, answered_within: Duration) -> Self {
        Self { answered_within, ..self }
    }

    /// The daemon's address.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Starts a sandbox on empty memory.
    pub fn create_sandbox(&self, key: Option<&str>, wanted: &CreateSandbox) -> Result<Sandbox> {
        self.ask_once(&CREATE_SANDBOX, &(), key, wanted)
    }

    /// A page of the sandboxes, oldest first.
    pub fn sandboxes(&self, query: &ListQuery) -> Result<SandboxList> {
        self.ask(&LIST_SANDBOXES, &(), query)
    }

    /// All sandboxes that have all of these labels; oldest first.
    pub fn all_sandboxes(&self, labels: &[LabelFilter]) -> Result<Vec<Sandbox>> {
        all(labels, |query| self.sandboxes(query).map(|page| (page.sandboxes, page.next)))
    }

    /// One sandbox.
    pub fn sandbox(&self, reference: &str) -> Result<Sandbox> {
        self.ask(&SHOW_SANDBOX, reference, &())
    }

    /// Pauses a sandbox into a snapshot.
    pub fn pause_sandbox(&self, reference: &str, key: Option<&str>, how: &PauseSandbox) -> Result<Snapshot> {
        self.ask_once(&PAUSE_SANDBOX, reference, key, how)
    }

    /// Takes a snapshot of a running sandbox, which goes on.
    pub fn checkpoint_sandbox(
        &self,
        reference: &str,
        key: Option<&str>,
        how: &CheckpointSandbox,
    ) -> Result<Snapshot> {
        self.ask_once(&CHECKPOINT_SANDBOX, reference, key, how)
    }

    /// Resumes a paused sandbox from its last snapshot.
    pub fn resume_sandbox(&self, reference: &str, how: &ResumeSandbox) -> Result<Sandbox> {
        self.ask(&RESUME_SANDBOX, reference, how)
    }

    /// Makes new sandboxes that go on from this one's present state.
    pub fn fork_sandbox(
        &self,
        reference: &str,
        key: Option<&str>,
        how: &ForkSandbox,
    ) -> Result<Vec<Sandbox>> {
        self.ask_once(&FORK_SANDBOX, reference, key, how).map(|made| made.sandboxes)
    }

    /// Pauses a sandbox and has it go on at another node.
    pub fn move_sandbox(&self, of: &str, key: Option<&str>, how: &MoveSandbox) -> Result<MovedSandbox> {
        self.ask_once(&MOVE_SANDBOX, of, key, how)
    }

    /// Ends a sandbox's guest; its work since its last snapshot is gone.
    pub fn stop_sandbox(&self, reference: &str) -> Result<Sandbox> {
        self.ask(&STOP_SANDBOX, reference, &())
    }

    /// Ends a sandbox's guest if it runs and forgets the sandbox; its snapshots stay.
    pub fn remove_sandbox(&self, reference: &str) -> Result<()> {
        self.ask(&REMOVE_SANDBOX, reference, &()).map(drop)
    }

    /// A page of the snapshots, oldest first.
    pub fn snapshots(&self, query: &ListQuery) -> Result<SnapshotList> {
        self.ask(&LIST_SNAPSHOTS, &(), query)
    }

    /// All snapshots that have all of these labels; oldest first.
    pub fn all_snapshots(&self, labels: &[LabelFilter]) -> Result<Vec<Snapshot>> {
        all(labels, |query| self.snapshots(query).map(|page| (page.snapshots, page.next)))
    }

    /// The snapshots in the store, oldest first.
    pub fn stored_snapshots(&self) -> Result<Vec<StoredSnapshot>> {
        self.ask(&LIST_STORED_SNAPSHOTS, &(), &()).map(|list| list.snapshots)
    }

    /// The deleted snapshots of the store that can be brought back, oldest first.
    pub fn withdrawn_snapshots(&self) -> Result<Vec<WithdrawnSnapshot>> {
        self.ask(&LIST_WITHDRAWN_SNAPSHOTS, &(), &()).map(|list| list.snapshots)
    }

    /// The verdict of the setting `keep` on each snapshot of the node.
    pub fn kept_snapshots(&self) -> Result<Vec<KeptSnapshot>> {
        self.ask(&LIST_KEPT, &(), &())
    }

    /// Everything in the store, and the node's disk, in bytes.
    pub fn usage(&self) -> Result<Usage> {
        self.ask(&SHOW_USAGE, &(), &())
    }

    /// One snapshot in bytes.
    pub fn snapshot_usage(&self, reference: &str) -> Result<SnapshotUsage> {
        self.ask(&SHOW_SNAPSHOT_USAGE, reference, &())
    }

    /// One snapshot.
    pub fn snapshot(&self, reference: &str) -> Result<Snapshot> {
        self.ask(&SHOW_SNAPSHOT, reference, &())
    }

    /// Waits until a snapshot has come as far as `state`; the problem `not_yet` says that it has not within `limit`.
    pub fn wait_snapshot(&self, reference: &str, state: SnapshotState, limit: Duration) -> Result<Snapshot> {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let seconds = whole_seconds(left).min(limits::WAIT_SECONDS_MAX);
            let answer = self.wait_once(reference, WaitQuery { state, timeout_seconds: Some(seconds) });
            match answer {
                Err(error) if error.code() == Some(Code::NotYet) && Instant::now() < until => {}
                answer => return answer,
            }
        }
    }

    fn wait_once(&self, reference: &str, query: WaitQuery) -> Result<Snapshot> {
        let seconds = query.timeout_seconds.unwrap_or(limits::WAIT_SECONDS);
        let within = Duration::from_secs(seconds.into()) + WAIT_ANSWERED_WITHIN;
        self.clone().answered_within(within).ask(&WAIT_SNAPSHOT, reference, &query)
    }

    /// Deletes a snapshot; sandboxes that run from it and its children go on.
    pub fn delete_snapshot(&self, reference: &str) -> Result<DeletedSnapshot> {
        self.ask(&DELETE_SNAPSHOT, reference, &())
    }

    /// Brings a deleted snapshot back, for all nodes.
    pub fn undelete_snapshot(&self, reference: &str) -> Result<Snapshot> {
        self.ask(&UNDELETE_SNAPSHOT, reference, &())
    }

    /// Forgets a snapshot on the node; it stays in the store.
    pub fn forget_snapshot(&self, reference: &str) -> Result<()> {
        self.ask(&FORGET_SNAPSHOT, reference, &()).map(drop)
    }

    /// Reads every page of a snapshot and checks it.
    pub fn verify_snapshot(&self, reference: &str) -> Result<Verification> {
        self.ask(&VERIFY_SNAPSHOT, reference, &())
    }

    /// Makes new sandboxes of a snapshot.
    pub fn resume_snapshot(
        &self,
        reference: &str,
        key: Option<&str>,
        how: &ResumeSnapshot,
    ) -> Result<Vec<Sandbox>> {
        self.ask_once(&RESUME_SNAPSHOT, reference, key, how).map(|made| made.sandboxes)
    }

    /// Opens a socket at which a VMM is served with a snapshot's memory.
    pub fn open_fault_socket(&self, wanted: &OpenFaultSocket) -> Result<FaultSocket> {
        self.ask(&OPEN_FAULT_SOCKET, &(), wanted)
    }

    /// The fault sockets.
    pub fn fault_sockets(&self) -> Result<Vec<FaultSocket>> {
        self.ask(&LIST_FAULT_SOCKETS, &(), &())
    }

    /// One fault socket.
    pub fn fault_socket(&self, id: Uuid) -> Result<FaultSocket> {
        self.ask(&SHOW_FAULT_SOCKET, &id, &())
    }

    /// Closes a fault socket and ends its serving; the caller has ended the VMM.
    pub fn close_fault_socket(&self, id: Uuid) -> Result<()> {
        self.ask(&CLOSE_FAULT_SOCKET, &id, &()).map(drop)
    }

    /// Captures memory of a process that others manage.
    pub fn capture_memory(&self, wanted: &CaptureMemory) -> Result<Snapshot> {
        self.ask(&CAPTURE_MEMORY, &(), wanted)
    }

    /// Events after `after` that are still known, and new ones; without `after` only new ones.
    ///
    /// When this returns, the daemon has noted that events are wanted: none from here on is missed.
    pub fn events(&self, after: Option<u64>) -> Result<Events> {
        self.open_events(EventsQuery { after, follow: None })
    }

    /// The events after `after` that are known, and then the end.
    pub fn known_events(&self, after: u64) -> Result<Events> {
        self.open_events(EventsQuery { after: Some(after), follow: Some(false) })
    }

    fn open_events(&self, query: EventsQuery) -> Result<Events> {
        let call = Call::of(&STREAM_EVENTS, &(), &query);
        Events::open(&self.endpoint, call, self.answered_within)
    }

    /// Pauses the sandboxes of the node, or those with labels, until that is undone or the next daemon starts.
    pub fn drain(&self, how: &DrainNode) -> Result<Drain> {
        self.ask(&DRAIN, &(), how)
    }

    /// The drain as it is.
    pub fn drained(&self) -> Result<Drain> {
        self.ask(&SHOW_DRAIN, &(), &())
    }

    /// Takes new guests again, and resumes the sandboxes that a drain has paused.
    pub fn undo_drain(&self) -> Result<Drain> {
        self.ask(&UNDO_DRAIN, &(), &())
    }

    /// Deletes from the store what nobody needs, or tells what that would be.
    pub fn collect(&self, how: &Collect) -> Result<Collection> {
        self.ask(&COLLECT, &(), how)
    }

    /// That the daemon answers.
    pub fn health(&self) -> Result<Health> {
        self.ask(&SHOW_HEALTH, &(), &())
    }

    /// Tells if requests can be done, or the reasons that they cannot.
    pub fn readiness(&self) -> Result<Readiness> {
        let reply = self.exchange(Call::of(&SHOW_READINESS, &(), &()))?;
        match reply.clone().json() {
            // Obstacles come with a status of failure, but are the answer that was asked for.
            Err(error) => reply.any_json().map_err(|_other| error),
            answer => answer,
        }
    }

    /// The version of the daemon.
    pub fn version(&self) -> Result<Version> {
        self.ask(&SHOW_VERSION, &(), &())
    }

    /// Measurements in a form Prometheus reads.
    pub fn metrics(&self) -> Result<String> {
        self.exchange(Call::of(&SHOW_METRICS, &(), &()))?.text()
    }

    /// A request that no call above makes: its answer as JSON, null where it is empty.
    pub fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        self.exchange(Call::any(method, path, body))?.json()
    }

    /// Asks for an operation.
    fn ask<S: Subject, I: Input, O: Output>(
        &self,
        operation: &Operation<S, I, O>,
        of: &S::Name,
        input: &I::Value,
    ) -> Result<O::Value>
    where
        O::Value: DeserializeOwned,
    {
        self.ask_once(operation, of, None, input)
    }

    /// The same under a key, with which it is done once.
    fn ask_once<S: Subject, I: Input, O: Output>(
        &self,
        operation: &Operation<S, I, O>,
        of: &S::Name,
        key: Option<&str>,
        input: &I::Value,
    ) -> Result<O::Value>
    where
        O::Value: DeserializeOwned,
    {
        self.exchange(Call::of(operation, of, input).with_key(key))?.json()
    }

    fn exchange(&self, call: Call) -> Result<Reply> {
        exchange::exchange(&self.endpoint, call, self.answered_within)
    }
}

/// Every entry of a list that comes in pages.
fn all<T>(
    labels: &[LabelFilter],
    page: impl Fn(&ListQuery) -> Result<(Vec<T>, Option<Uuid>)>,
) -> Result<Vec<T>> {
    let mut query = ListQuery { limit: Some(PageLimit::MAX), after: None, labels: labels.to_vec() };
    let mut entries = Vec::new();
    loop {
        let (more, next) = page(&query)?;
        entries.extend(more);
        match next {
            Some(next) if Some(next) != query.after => query.after = Some(next),
            Some(_) | None => return Ok(entries),
        }
    }
}

/// `duration` in seconds, rounded up.
fn whole_seconds(duration: Duration) -> u32 {
    let more = u64::from(duration.subsec_nanos() > 0);
    u32::try_from(duration.as_secs() + more).unwrap_or(u32::MAX)
}
