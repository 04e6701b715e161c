//! The daemon's operations, method by method; the work is in the modules beside this one.

use std::time::{Duration, Instant};

use tokio::sync::broadcast;
use uuid::Uuid;

use super::Daemon;
use super::problems::with_setting;
use crate::api::control::{Answer, Asked, Control};
use crate::api::types::{
    CaptureMemory, ConsoleOutput, CreateSandbox, Event, FaultSocket, ForkSandbox, ListQuery, OpenFaultSocket,
    PauseSandbox, Placement, Readiness, ResumeSandbox, ResumeSnapshot, Sandbox, SandboxList, Snapshot,
    SnapshotList, SnapshotState, Verification, Version,
};

/// The version of the control API.
const API_VERSION: &str = "v1";

impl Control for Daemon {
    fn create_sandbox(&self, asked: Asked, wanted: CreateSandbox) -> Answer<Sandbox> {
        self.counted(self.create(&asked, wanted))
    }

    fn sandboxes(&self, query: &ListQuery) -> Answer<SandboxList> {
        let (entries, next) = self.counted(self.sandboxes.page(query))?;
        Ok(SandboxList { sandboxes: entries.iter().map(|entry| entry.show()).collect(), next })
    }

    fn sandbox(&self, reference: &str) -> Answer<Sandbox> {
        self.counted(self.sandboxes.find(reference).map(|entry| entry.show()))
    }

    fn pause_sandbox(&self, reference: &str, asked: Asked, how: PauseSandbox) -> Answer<Snapshot> {
        self.counted(self.pause(reference, &asked, how))
    }

    fn resume_sandbox(&self, reference: &str, asked: Asked, how: ResumeSandbox) -> Answer<Sandbox> {
        self.timed(|| self.resume(reference, &asked, &how))
    }

    fn fork_sandbox(&self, reference: &str, asked: Asked, how: ForkSandbox) -> Answer<SandboxList> {
        self.timed(|| self.fork(reference, &asked, &how))
    }

    fn stop_sandbox(&self, reference: &str, asked: Asked) -> Answer<Sandbox> {
        self.counted(self.stop(reference, &asked))
    }

    fn remove_sandbox(&self, reference: &str, asked: Asked) -> Answer<Uuid> {
        self.counted(self.remove(reference, &asked))
    }

    fn tell_guest(
        &self,
        reference: &str,
        asked: Asked,
        command: serde_json::Value,
    ) -> Answer<serde_json::Value> {
        self.counted(self.tell(reference, &asked, command))
    }

    fn console(&self, reference: &str, from: Option<u64>, limit: Duration) -> Answer<ConsoleOutput> {
        self.read_console(reference, from, limit)
    }

    fn type_console(&self, reference: &str, bytes: &[u8]) -> Answer<()> {
        self.type_at(reference, bytes)
    }

    fn snapshots(&self, query: &ListQuery) -> Answer<SnapshotList> {
        self.counted(self.list_snapshots(query))
    }

    fn snapshot(&self, reference: &str) -> Answer<Snapshot> {
        self.counted(self.find_snapshot(reference).map(|known| known.show()))
    }

    fn wait_snapshot(&self, reference: &str, state: SnapshotState, limit: Duration) -> Answer<Snapshot> {
        self.counted(self.wait_for_snapshot(reference, state, limit))
    }

    fn delete_snapshot(&self, reference: &str) -> Answer<Uuid> {
        self.counted(self.delete(reference))
    }

    fn verify_snapshot(&self, reference: &str, asked: Asked) -> Answer<Verification> {
        self.counted(self.verify(reference, &asked))
    }

    fn placement(&self, reference: &str) -> Answer<Placement> {
        self.counted(self.place(reference))
    }

    fn resume_snapshot(&self, reference: &str, asked: Asked, how: ResumeSnapshot) -> Answer<SandboxList> {
        self.timed(|| self.resume_from(reference, &asked, &how))
    }

    fn open_fault_socket(&self, asked: Asked, wanted: OpenFaultSocket) -> Answer<FaultSocket> {
        self.counted(self.open_socket(&asked, &wanted))
    }

    fn fault_sockets(&self) -> Answer<Vec<FaultSocket>> {
        Ok(self.fault_sockets.all().iter().map(|socket| socket.show()).collect())
    }

    fn fault_socket(&self, id: Uuid) -> Answer<FaultSocket> {
        self.counted(self.fault_sockets.find(id).map(|socket| socket.show()))
    }

    fn close_fault_socket(&self, id: Uuid) -> Answer<()> {
        self.counted(self.close_socket(id))
    }

    fn capture_memory(&self, asked: Asked, wanted: CaptureMemory) -> Answer<Snapshot> {
        self.counted(self.capture(&asked, wanted))
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
