//! The daemon's operations, as the routes call them. All of them may block.

use std::fmt::Debug;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rekindle_input::asker::Asker;
use tokio::sync::broadcast;
use uuid::Uuid;

use super::problem::{Code, Problem};
use super::types::{
    CaptureMemory, CheckpointSandbox, Collect, Collection, ConnectSandbox, ConsoleOutput, CreateSandbox,
    DeletedSnapshot, Drain, DrainNode, Event, FaultSocket, ForkSandbox, KeptSnapshot, ListQuery, MoveSandbox,
    MovedSandbox, NodePlacement, OpenFaultSocket, PauseSandbox, Placement, PlacementQuery, Readiness,
    Reference, ResumeSandbox, ResumeSnapshot, Sandbox, SandboxList, Snapshot, SnapshotList, SnapshotState,
    SnapshotUsage, StoredSnapshotList, Usage, Verification, Version, WithdrawnSnapshotList,
};

/// Result of a request, or the problem that stopped it.
pub type Answer<T> = Result<T, Problem>;

/// A name for a request, chosen by who makes it: the same request under the same key is done once, also over a restart.
pub type IdempotencyKey = String;

/// Circumstances of a request: its key, and a way to see if its client still waits for the answer.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The key it came with.
    pub key: Option<IdempotencyKey>,
    /// The client that waits for its answer.
    pub asker: Asker,
}

impl Asked {
    /// The problem of a request whose client went away before any of it was done: nothing of it is begun, whether it has
    /// a key or not.
    pub fn check_before_it_begins(&self) -> Answer<()> {
        if !self.asker.is_gone() {
            return Ok(());
        }
        let why = "the client went away before its turn came: nothing was done";
        Err(Problem::new(Code::Abandoned, why))
    }

    /// The problem of a request whose client went away before anything was acknowledged: the things it made must be
    /// undone. One with a key that has begun is done to its end, as its client can ask for the answer again.
    pub fn check(&self) -> Answer<()> {
        if self.key.is_some() || !self.asker.is_gone() {
            return Ok(());
        }
        let why = "the client went away before it was answered, and the request has no idempotency key: it is undone";
        Err(Problem::new(Code::Abandoned, why))
    }
}

/// A connection to the agent of a sandbox's guest.
#[derive(Debug)]
pub struct Connected {
    /// The sandbox.
    pub sandbox: Uuid,
    /// The guest's bytes; dropped, the connection ends.
    pub stream: UnixStream,
}

/// The daemon as its interfaces see it. References are ids, unique prefixes of at least four letters of one, or names.
pub trait Control: Debug + Send + Sync + 'static {
    /// Starts a sandbox on empty memory. Files are no longer copied for it once its asker is gone.
    fn create_sandbox(&self, asked: Asked, wanted: CreateSandbox) -> Answer<Sandbox>;
    /// The sandboxes, oldest first.
    fn sandboxes(&self, query: &ListQuery) -> Answer<SandboxList>;
    /// One sandbox.
    fn sandbox(&self, reference: &Reference) -> Answer<Sandbox>;
    /// Pauses a sandbox into a snapshot.
    fn pause_sandbox(&self, reference: &Reference, asked: Asked, how: PauseSandbox) -> Answer<Snapshot>;
    /// Takes a snapshot of a running sandbox, which goes on.
    fn checkpoint_sandbox(
        &self,
        reference: &Reference,
        asked: Asked,
        how: CheckpointSandbox,
    ) -> Answer<Snapshot>;
    /// Resumes a paused sandbox from its last snapshot.
    fn resume_sandbox(&self, reference: &Reference, asked: Asked, how: ResumeSandbox) -> Answer<Sandbox>;
    /// Makes new sandboxes that go on from this one's present state.
    fn fork_sandbox(&self, reference: &Reference, asked: Asked, how: ForkSandbox) -> Answer<SandboxList>;
    /// Pauses a sandbox here and has it go on at another node.
    fn move_sandbox(&self, reference: &Reference, asked: Asked, how: MoveSandbox) -> Answer<MovedSandbox>;
    /// Ends a sandbox's guest; its work since its last snapshot is gone.
    fn stop_sandbox(&self, reference: &Reference, asked: Asked) -> Answer<Sandbox>;
    /// Ends a sandbox's guest if it runs and forgets the sandbox, of which it gives the id; its snapshots stay.
    fn remove_sandbox(&self, reference: &Reference, asked: Asked) -> Answer<Uuid>;
    /// Tells a process guest to do something, and gives its answer, which is not waited for once its asker is gone.
    fn tell_guest(
        &self,
        reference: &Reference,
        asked: Asked,
        command: serde_json::Value,
    ) -> Answer<serde_json::Value>;
    /// The output of the sandbox's guests at their console, from `from` on; waits for it at most `limit`. A long wait
    /// is asked for in short turns.
    fn console(&self, reference: &Reference, from: Option<u64>, limit: Duration) -> Answer<ConsoleOutput>;
    /// Types at the console of a sandbox's guest.
    fn type_console(&self, reference: &Reference, bytes: &[u8]) -> Answer<()>;
    /// Connects to the agent of a sandbox's guest: the other end of what it gives is the guest's channel, until either
    /// side ends.
    fn connect_sandbox(&self, reference: &Reference, how: ConnectSandbox) -> Answer<Connected>;
    /// The snapshots, oldest first.
    fn snapshots(&self, query: &ListQuery) -> Answer<SnapshotList>;
    /// The snapshots in the store, oldest first.
    fn stored_snapshots(&self) -> Answer<StoredSnapshotList>;
    /// The deleted snapshots of the store that can be brought back, oldest first.
    fn withdrawn_snapshots(&self) -> Answer<WithdrawnSnapshotList>;
    /// The verdict of the setting `keep` on each snapshot, oldest first; nothing where it has no rules.
    fn kept_snapshots(&self) -> Answer<Vec<KeptSnapshot>>;
    /// Everything in the store, and this node's disk, in bytes.
    fn usage(&self) -> Answer<Usage>;
    /// One snapshot in bytes.
    fn snapshot_usage(&self, reference: &Reference) -> Answer<SnapshotUsage>;
    /// One snapshot.
    fn snapshot(&self, reference: &Reference) -> Answer<Snapshot>;
    /// Waits until a snapshot has come as far as `state`. A long wait is asked for in short turns.
    fn wait_snapshot(&self, reference: &Reference, state: SnapshotState, limit: Duration)
    -> Answer<Snapshot>;
    /// Deletes a snapshot, of which it gives the id; sandboxes that run from it and its children go on.
    fn delete_snapshot(&self, reference: &Reference) -> Answer<DeletedSnapshot>;
    /// Brings a deleted snapshot back.
    fn undelete_snapshot(&self, reference: &Reference) -> Answer<Snapshot>;
    /// Forgets a snapshot on this node, of which it gives the id; it stays in the store.
    fn forget_snapshot(&self, reference: &Reference) -> Answer<Uuid>;
    /// Reads every page of a snapshot and checks it, as long as its asker waits.
    fn verify_snapshot(&self, reference: &Reference, asked: Asked) -> Answer<Verification>;
    /// The content of this node, and how near resumes of snapshots are here; asks neither the store nor the disk.
    fn node_placement(&self, query: &PlacementQuery) -> Answer<NodePlacement>;
    /// The layers a snapshot is made of and their places; never waits for a seal, and asks no store.
    fn placement(&self, reference: &Reference) -> Answer<Placement>;
    /// Makes new sandboxes of a snapshot.
    fn resume_snapshot(
        &self,
        reference: &Reference,
        asked: Asked,
        how: ResumeSnapshot,
    ) -> Answer<SandboxList>;
    /// Pauses the sandboxes of this node, or those with labels, until the drain is undone or the next daemon starts. It
    /// is done to its end, also when its asker is gone.
    fn drain(&self, how: &DrainNode) -> Answer<Drain>;
    /// The drain as it is.
    fn drained(&self) -> Answer<Drain>;
    /// Takes new guests again, and resumes the sandboxes that a drain has paused.
    fn undo_drain(&self) -> Answer<Drain>;
    /// Deletes from the store what nobody needs, or tells what that would be.
    fn collect(&self, how: &Collect) -> Answer<Collection>;
    /// Opens a socket at which a VMM is served with a snapshot's memory.
    fn open_fault_socket(&self, asked: Asked, wanted: OpenFaultSocket) -> Answer<FaultSocket>;
    /// The fault sockets.
    fn fault_sockets(&self) -> Answer<Vec<FaultSocket>>;
    /// One fault socket.
    fn fault_socket(&self, id: Uuid) -> Answer<FaultSocket>;
    /// Closes a fault socket and ends its serving; the caller has ended the VMM.
    fn close_fault_socket(&self, id: Uuid) -> Answer<()>;
    /// Captures memory of a process that others manage.
    fn capture_memory(&self, asked: Asked, wanted: CaptureMemory) -> Answer<Snapshot>;
    /// Events after `after` that are still known, oldest first, and a receiver of new ones; without it only new ones. An
    /// id before the oldest known one is answered from the oldest on.
    fn events(&self, after: Option<u64>) -> (Vec<Event>, broadcast::Receiver<Event>);
    /// The version of this daemon.
    fn version(&self) -> Version;
    /// Tells if requests can be done.
    fn readiness(&self) -> Readiness;
    /// Measurements in Prometheus' text form.
    fn metrics(&self) -> String;
}
