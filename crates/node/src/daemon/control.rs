//! The daemon's operations, each by its owner: what is refused is counted, and told with the setting behind it.

use std::time::{Duration, Instant};

use rekindle_api::control::{Answer, Asked, Connected, Control};
use rekindle_api::types::{
    CaptureMemory, CheckpointSandbox, Collect, Collection, ConnectSandbox, ConsoleOutput, CreateSandbox,
    DeletedSnapshot, Drain, DrainNode, Event, FaultSocket, ForkSandbox, KeptSnapshot, ListQuery, MoveSandbox,
    MovedSandbox, NodePlacement, OpenFaultSocket, PauseSandbox, Placement, PlacementQuery, Readiness,
    Reference, ResumeSandbox, ResumeSnapshot, Sandbox, SandboxList, Snapshot, SnapshotList, SnapshotState,
    SnapshotUsage, StoredSnapshotList, Usage, Verification, Version, WithdrawnSnapshotList,
};
use tokio::sync::broadcast;
use uuid::Uuid;

use super::Daemon;
use super::collection;
use super::fault_sockets::FaultSockets;
use super::problems::with_setting;
use super::sandboxes::Sandboxes;
use super::usage;

/// The version of the control API.
const API_VERSION: &str = "v1";

impl Control for Daemon {
    fn create_sandbox(&self, asked: Asked, wanted: CreateSandbox) -> Answer<Sandbox> {
        self.counted(self.sandboxes().create(&asked, wanted))
    }

    fn sandboxes(&self, query: &ListQuery) -> Answer<SandboxList> {
        self.counted(Ok(self.sandboxes().list(query)))
    }

    fn sandbox(&self, reference: &Reference) -> Answer<Sandbox> {
        self.counted(self.sandboxes().show(reference))
    }

    fn pause_sandbox(&self, reference: &Reference, asked: Asked, how: PauseSandbox) -> Answer<Snapshot> {
        self.counted(self.sandboxes().pause(reference, &asked, how))
    }

    fn checkpoint_sandbox(
        &self,
        reference: &Reference,
        asked: Asked,
        how: CheckpointSandbox,
    ) -> Answer<Snapshot> {
        self.counted(self.sandboxes().checkpoint(reference, &asked, how))
    }

    fn resume_sandbox(&self, reference: &Reference, asked: Asked, how: ResumeSandbox) -> Answer<Sandbox> {
        self.timed(|| self.sandboxes().resume(reference, &asked, &how))
    }

    fn fork_sandbox(&self, reference: &Reference, asked: Asked, how: ForkSandbox) -> Answer<SandboxList> {
        self.timed(|| self.sandboxes().fork(reference, &asked, &how))
    }

    fn move_sandbox(&self, reference: &Reference, asked: Asked, how: MoveSandbox) -> Answer<MovedSandbox> {
        self.counted(self.sandboxes().move_to(reference, &asked, &how))
    }

    fn stop_sandbox(&self, reference: &Reference, asked: Asked) -> Answer<Sandbox> {
        self.counted(self.sandboxes().stop(reference, &asked))
    }

    fn remove_sandbox(&self, reference: &Reference, asked: Asked) -> Answer<Uuid> {
        self.counted(self.sandboxes().remove(reference, &asked))
    }

    fn tell_guest(
        &self,
        reference: &Reference,
        asked: Asked,
        command: serde_json::Value,
    ) -> Answer<serde_json::Value> {
        self.counted(self.sandboxes().tell(reference, &asked, command))
    }

    fn console(&self, reference: &Reference, from: Option<u64>, limit: Duration) -> Answer<ConsoleOutput> {
        self.sandboxes().read_console(reference, from, limit)
    }

    fn type_console(&self, reference: &Reference, bytes: &[u8]) -> Answer<()> {
        self.sandboxes().type_at(reference, bytes)
    }

    fn connect_sandbox(&self, reference: &Reference, how: ConnectSandbox) -> Answer<Connected> {
        self.counted(self.sandboxes().connect(reference, how))
    }

    fn snapshots(&self, query: &ListQuery) -> Answer<SnapshotList> {
        self.counted(Ok(self.snapshots.list(query)))
    }

    fn stored_snapshots(&self) -> Answer<StoredSnapshotList> {
        self.counted(self.snapshots.list_stored())
    }

    fn withdrawn_snapshots(&self) -> Answer<WithdrawnSnapshotList> {
        self.counted(self.snapshots.list_withdrawn())
    }

    fn kept_snapshots(&self) -> Answer<Vec<KeptSnapshot>> {
        Ok(self.sandboxes().verdicts())
    }

    fn usage(&self) -> Answer<Usage> {
        self.counted(usage::of_all(&self.host))
    }

    fn snapshot_usage(&self, reference: &Reference) -> Answer<SnapshotUsage> {
        self.counted(self.snapshots.find(reference).and_then(|known| usage::of_one(&self.host, &known)))
    }

    fn snapshot(&self, reference: &Reference) -> Answer<Snapshot> {
        self.counted(self.snapshots.find(reference).map(|known| self.snapshots.show(&known)))
    }

    fn wait_snapshot(
        &self,
        reference: &Reference,
        state: SnapshotState,
        limit: Duration,
    ) -> Answer<Snapshot> {
        self.counted(self.snapshots.wait_for(reference, state, limit))
    }

    fn delete_snapshot(&self, reference: &Reference) -> Answer<DeletedSnapshot> {
        let (snapshot, window) = self.counted(self.sandboxes().delete_snapshot(reference))?;
        Ok(DeletedSnapshot {
            snapshot,
            used_by: self.host.engine.runners_elsewhere(snapshot.into()),
            undelete_seconds: window.map(|window| window.as_secs()),
        })
    }

    fn undelete_snapshot(&self, reference: &Reference) -> Answer<Snapshot> {
        self.counted(self.snapshots.undelete(reference))
    }

    fn forget_snapshot(&self, reference: &Reference) -> Answer<Uuid> {
        self.counted(self.sandboxes().forget_snapshot(reference))
    }

    fn verify_snapshot(&self, reference: &Reference, asked: Asked) -> Answer<Verification> {
        self.counted(self.snapshots.verify(reference, &asked))
    }

    fn node_placement(&self, query: &PlacementQuery) -> Answer<NodePlacement> {
        Ok(self.placements.of_node(query))
    }

    fn placement(&self, reference: &Reference) -> Answer<Placement> {
        self.counted(self.snapshots.place(reference))
    }

    fn resume_snapshot(
        &self,
        reference: &Reference,
        asked: Asked,
        how: ResumeSnapshot,
    ) -> Answer<SandboxList> {
        self.timed(|| self.sandboxes().resume_from(reference, &asked, &how))
    }

    fn drain(&self, how: &DrainNode) -> Answer<Drain> {
        self.counted(self.drain_node(how))
    }

    fn drained(&self) -> Answer<Drain> {
        Ok(self.drain_now())
    }

    fn undo_drain(&self) -> Answer<Drain> {
        Ok(self.undo_drain_of_node())
    }

    fn collect(&self, how: &Collect) -> Answer<Collection> {
        self.counted(collection::collect(self.sandboxes(), how))
    }

    fn open_fault_socket(&self, asked: Asked, wanted: OpenFaultSocket) -> Answer<FaultSocket> {
        self.counted(self.fault_sockets().open(&asked, &wanted))
    }

    fn fault_sockets(&self) -> Answer<Vec<FaultSocket>> {
        Ok(self.fault_sockets().all().iter().map(|socket| socket.show()).collect())
    }

    fn fault_socket(&self, id: Uuid) -> Answer<FaultSocket> {
        self.counted(self.fault_sockets().find(id).map(|socket| socket.show()))
    }

    fn close_fault_socket(&self, id: Uuid) -> Answer<()> {
        self.counted(self.fault_sockets().close(id))
    }

    fn capture_memory(&self, asked: Asked, wanted: CaptureMemory) -> Answer<Snapshot> {
        self.counted(self.captures.capture(&asked, wanted))
    }

    fn events(&self, after: Option<u64>) -> (Vec<Event>, broadcast::Receiver<Event>) {
        self.events.since(after)
    }

    fn version(&self) -> Version {
        Version {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            api: API_VERSION.to_owned(),
            pid: std::process::id(),
            started_unix_ms: self.started_unix_ms,
        }
    }

    fn readiness(&self) -> Readiness {
        self.ready()
    }

    fn metrics(&self) -> String {
        self.host.metrics.render(&self.observe())
    }
}

impl Daemon {
    fn sandboxes(&self) -> &Sandboxes {
        &self.guests.sandboxes
    }

    fn fault_sockets(&self) -> &FaultSockets {
        &self.guests.fault_sockets
    }

    /// An answer that is not one is counted, and names the setting behind it.
    fn counted<T>(&self, answer: Answer<T>) -> Answer<T> {
        answer.inspect_err(|problem| self.host.metrics.refused(problem.code)).map_err(with_setting)
    }

    /// The same, and an answer to a resume is timed.
    fn timed<T>(&self, work: impl FnOnce() -> Answer<T>) -> Answer<T> {
        let asked = Instant::now();
        let answer = self.counted(work())?;
        self.host.metrics.resume_answered(asked.elapsed());
        Ok(answer)
    }
}
