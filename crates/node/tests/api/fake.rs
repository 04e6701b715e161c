//! A daemon without an engine: it keeps sandboxes and snapshots in a list, and does what the tests tell it to.

mod kept;

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kept::{Kept, page};
use rekindle::api::control::{Answer, Asked, Control};
use rekindle::api::problem::{Code, Problem};
use rekindle::api::types::{
    CaptureMemory, CaptureSource, ConsoleOutput, CreateSandbox, Event, FaultSocket, FaultSocketState,
    ForkSandbox, Labels, ListQuery, MemoryBacking, OpenFaultSocket, PauseSandbox, PlacedLayer, Placement,
    Readiness, Reference, ResumeSandbox, ResumeSnapshot, Sandbox, SandboxList, SandboxState, Snapshot,
    SnapshotList, SnapshotState, StoreVerification, StoreVerificationState, StoredSnapshot,
    StoredSnapshotList, Verification, Version, VmmKind,
};
use serde_json::Value;
use tokio::sync::broadcast;
use uuid::Uuid;

/// Longest time a test waits for an event that must come.
const HAPPENS_WITHIN: Duration = Duration::from_secs(60);

/// Time between two looks whether an asker is gone.
const LOOKS_EVERY: Duration = Duration::from_millis(10);

/// The daemon.
#[derive(Debug)]
pub(crate) struct Fake {
    kept: Mutex<Kept>,
    changed: Condvar,
    events: broadcast::Sender<Event>,
}

impl Fake {
    pub(crate) fn new() -> Self {
        Self { kept: Mutex::default(), changed: Condvar::new(), events: broadcast::channel(8).0 }
    }

    /// One whose snapshots are in the store as soon as they are made.
    pub(crate) fn that_saves_at_once() -> Self {
        let fake = Self::new();
        fake.kept().saves_at_once = true;
        fake
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes pauses wait from now on.
    pub(crate) fn hold_pauses(&self) {
        self.kept().pauses_held = true;
    }

    /// Lets pauses go on.
    pub(crate) fn release_pauses(&self) {
        self.kept().pauses_held = false;
        self.changed.notify_all();
    }

    /// Makes verifications wait until their askers are gone.
    pub(crate) fn hold_verifications(&self) {
        self.kept().verifications_held = true;
    }

    /// Returns when this many verifications have begun since the start.
    pub(crate) fn until_verifications_begun(&self, count: usize) {
        self.until(|kept| kept.verifications_begun >= count);
    }

    /// Returns when this many verifications are over.
    pub(crate) fn until_verifications_over(&self, count: usize) {
        self.until(|kept| kept.verifications_over >= count);
    }

    /// Returns when this many pauses have begun since the start.
    pub(crate) fn until_pauses_begun(&self, count: usize) {
        self.until(|kept| kept.pauses_begun >= count);
    }

    /// Returns when a sandbox is in a state.
    pub(crate) fn until_sandbox(&self, id: Uuid, state: SandboxState) {
        self.until(|kept| kept.sandboxes[&id].state == state);
    }

    fn until(&self, happened: impl Fn(&Kept) -> bool) {
        let waited = self.changed.wait_timeout_while(self.kept(), HAPPENS_WITHIN, |kept| !happened(kept));
        let (_kept, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!waited.timed_out(), "it did not happen");
    }

    /// Makes every request meet a problem.
    pub(crate) fn meet(&self, problem: Option<Problem>) {
        self.kept().problem = problem;
    }

    /// Makes asking for a version a bug.
    pub(crate) fn panic_on_version(&self) {
        self.kept().panics = true;
    }

    /// Makes this many events come at the instant of each subscription.
    pub(crate) fn burst(&self, events: u64) {
        self.kept().burst = events;
    }

    pub(crate) fn not_ready(&self, reasons: &[&str]) {
        self.kept().not_ready = reasons.iter().map(|&reason| reason.to_owned()).collect();
    }

    /// Brings a snapshot on.
    pub(crate) fn advance(&self, id: Uuid, state: SnapshotState) {
        let mut kept = self.kept();
        kept.snapshots.get_mut(&id).unwrap().state = state;
        self.tell(&mut kept, "snapshot.sealed", None, Some(id));
        drop(kept);
        self.changed.notify_all();
    }

    /// Tells of something.
    pub(crate) fn say(&self, kind: &str) {
        self.tell(&mut self.kept(), kind, None, None);
    }

    fn tell(&self, kept: &mut Kept, kind: &str, sandbox: Option<Uuid>, snapshot: Option<Uuid>) {
        let id = u64::try_from(kept.events.len()).unwrap() + 1;
        let event = Event { id, unix_ms: 1, kind: kind.to_owned(), sandbox, snapshot, detail: None };
        kept.events.push(event.clone());
        // A listener is not needed.
        drop(self.events.send(event));
    }

    /// The kept state, for a request that meets no problem.
    fn asked(&self) -> Answer<MutexGuard<'_, Kept>> {
        let kept = self.kept();
        match &kept.problem {
            Some(problem) => Err(problem.clone()),
            None => Ok(kept),
        }
    }
}

fn wrong_state(sandbox: &Sandbox) -> Problem {
    Problem::new(Code::WrongState, format!("sandbox {} is {:?}", sandbox.id, sandbox.state))
        .sandbox(sandbox.id)
}

impl Control for Fake {
    fn create_sandbox(&self, asked: Asked, wanted: CreateSandbox) -> Answer<Sandbox> {
        let mut kept = self.asked()?;
        if let Some(answer) = kept.answered(asked.key.as_ref(), &wanted)? {
            return Ok(answer);
        }
        let request = wanted.clone();
        let made = kept.add_sandbox(Sandbox {
            id: Uuid::now_v7(),
            name: wanted.name,
            labels: wanted.labels,
            state: SandboxState::Running,
            reason: None,
            vmm: wanted.vmm,
            memory_bytes: wanted.memory_bytes,
            backing: wanted.backing,
            machine: None,
            pid: Some(1),
            origin: None,
            snapshot: None,
            created_unix_ms: 1,
            served: None,
        })?;
        kept.note(asked.key, &request, &made);
        self.tell(&mut kept, "sandbox.created", Some(made.id), None);
        Ok(made)
    }

    fn sandboxes(&self, query: &ListQuery) -> Answer<SandboxList> {
        let kept = self.asked()?;
        let (sandboxes, next) = page(&kept.sandboxes, query, |sandbox| &sandbox.labels);
        Ok(SandboxList { sandboxes, next })
    }

    fn sandbox(&self, reference: &Reference) -> Answer<Sandbox> {
        self.asked()?.sandbox(reference)
    }

    fn pause_sandbox(&self, reference: &Reference, asked: Asked, how: PauseSandbox) -> Answer<Snapshot> {
        let mut kept = self.asked()?;
        if let Some(answer) = kept.answered(asked.key.as_ref(), &how)? {
            return Ok(answer);
        }
        let sandbox = kept.sandbox(reference)?;
        kept.pauses_begun += 1;
        self.changed.notify_all();
        kept = self.changed.wait_while(kept, |kept| kept.pauses_held).unwrap();
        if sandbox.state != SandboxState::Running {
            return Err(wrong_state(&sandbox));
        }
        let request = how.clone();
        let made = kept.add_snapshot(&sandbox, how.name, how.labels)?;
        let paused = Sandbox { state: SandboxState::Paused, pid: None, snapshot: Some(made.id), ..sandbox };
        kept.sandboxes.insert(paused.id, paused);
        kept.note(asked.key, &request, &made);
        self.tell(&mut kept, "sandbox.paused", made.sandbox, Some(made.id));
        self.changed.notify_all();
        Ok(made)
    }

    fn resume_sandbox(&self, reference: &Reference, _: Asked, _how: ResumeSandbox) -> Answer<Sandbox> {
        let mut kept = self.asked()?;
        let sandbox = kept.sandbox(reference)?;
        if sandbox.state != SandboxState::Paused {
            return Err(wrong_state(&sandbox));
        }
        let resumed = Sandbox { state: SandboxState::Running, pid: Some(1), ..sandbox };
        kept.sandboxes.insert(resumed.id, resumed.clone());
        Ok(resumed)
    }

    fn fork_sandbox(&self, reference: &Reference, asked: Asked, how: ForkSandbox) -> Answer<SandboxList> {
        let mut kept = self.asked()?;
        if let Some(answer) = kept.answered(asked.key.as_ref(), &how)? {
            return Ok(answer);
        }
        let sandbox = kept.sandbox(reference)?;
        let request = how.clone();
        let origin = kept.add_snapshot(&sandbox, None, Labels::new())?.id;
        let made = kept.add_several(&sandbox, origin, (how.count, how.name, how.labels))?;
        kept.note(asked.key, &request, &made);
        Ok(made)
    }

    fn stop_sandbox(&self, reference: &Reference, _: Asked) -> Answer<Sandbox> {
        let mut kept = self.asked()?;
        let sandbox = kept.sandbox(reference)?;
        let stopped = Sandbox { state: SandboxState::Stopped, pid: None, ..sandbox };
        kept.sandboxes.insert(stopped.id, stopped.clone());
        Ok(stopped)
    }

    fn remove_sandbox(&self, reference: &Reference, _: Asked) -> Answer<Uuid> {
        let mut kept = self.asked()?;
        let id = kept.sandbox(reference)?.id;
        kept.sandboxes.remove(&id);
        Ok(id)
    }

    fn tell_guest(&self, reference: &Reference, _: Asked, command: Value) -> Answer<Value> {
        let sandbox = self.asked()?.sandbox(reference)?;
        Ok(serde_json::json!({ "sandbox": sandbox.id, "told": command }))
    }

    fn console(&self, reference: &Reference, from: Option<u64>, _: Duration) -> Answer<ConsoleOutput> {
        self.sandbox(reference)?;
        let from = from.unwrap_or(0).min(6);
        let bytes = BASE64_STANDARD.encode(&b"tick 1"[usize::try_from(from).expect("6 at most")..]);
        Ok(ConsoleOutput { from, next: 6, bytes })
    }

    fn type_console(&self, reference: &Reference, _: &[u8]) -> Answer<()> {
        self.sandbox(reference)?;
        Ok(())
    }

    fn snapshots(&self, query: &ListQuery) -> Answer<SnapshotList> {
        let kept = self.asked()?;
        let (snapshots, next) = page(&kept.snapshots, query, |snapshot| &snapshot.labels);
        Ok(SnapshotList { snapshots, next })
    }

    fn stored_snapshots(&self) -> Answer<StoredSnapshotList> {
        let kept = self.asked()?;
        let published = kept.snapshots.values().filter(|snapshot| snapshot.state == SnapshotState::Published);
        let stored = published.map(|snapshot| StoredSnapshot {
            id: snapshot.id,
            name: snapshot.name.clone(),
            is_known: true,
            stored_unix_ms: snapshot.created_unix_ms,
        });
        Ok(StoredSnapshotList { snapshots: stored.collect() })
    }

    fn snapshot(&self, reference: &Reference) -> Answer<Snapshot> {
        self.asked()?.snapshot(reference)
    }

    fn wait_snapshot(
        &self,
        reference: &Reference,
        state: SnapshotState,
        limit: Duration,
    ) -> Answer<Snapshot> {
        let until = Instant::now() + limit;
        let mut kept = self.asked()?;
        loop {
            let snapshot = kept.snapshot(reference)?;
            if snapshot.state >= state {
                return Ok(snapshot);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let detail = format!("it is {:?}", snapshot.state);
                let mut problem = Problem::new(Code::NotYet, detail);
                problem.snapshots.push(snapshot.id);
                return Err(problem);
            }
            kept = self.changed.wait_timeout(kept, left).unwrap().0;
        }
    }

    fn delete_snapshot(&self, reference: &Reference) -> Answer<Uuid> {
        let mut kept = self.asked()?;
        let id = kept.snapshot(reference)?.id;
        kept.snapshots.remove(&id);
        Ok(id)
    }

    fn verify_snapshot(&self, reference: &Reference, asked: Asked) -> Answer<Verification> {
        let mut kept = self.asked()?;
        let snapshot = kept.snapshot(reference)?.id;
        kept.verifications_begun += 1;
        self.changed.notify_all();
        while kept.verifications_held && !asked.asker.is_gone() {
            kept = self.changed.wait_timeout(kept, LOOKS_EVERY).unwrap_or_else(PoisonError::into_inner).0;
        }
        kept.verifications_over += 1;
        self.changed.notify_all();
        let state = StoreVerificationState::NotPublished;
        let store = StoreVerification { state, objects: 0, wrong_objects: 0, reason: None };
        Ok(Verification { snapshot, pages: 1, wrong_pages: 0, first: None, store })
    }

    fn placement(&self, reference: &Reference) -> Answer<Placement> {
        let snapshot = self.asked()?.snapshot(reference)?;
        let layer = PlacedLayer { id: "00".repeat(32), bytes: 4096, local_bytes: 4096, stored_bytes: None };
        let layers = if snapshot.state == SnapshotState::Captured { Vec::new() } else { vec![layer] };
        Ok(Placement {
            snapshot: snapshot.id,
            state: snapshot.state,
            origin: Some("here".to_owned()),
            layers,
        })
    }

    fn resume_snapshot(
        &self,
        reference: &Reference,
        asked: Asked,
        how: ResumeSnapshot,
    ) -> Answer<SandboxList> {
        let mut kept = self.asked()?;
        if let Some(answer) = kept.answered(asked.key.as_ref(), &how)? {
            return Ok(answer);
        }
        let snapshot = kept.snapshot(reference)?;
        let of = snapshot.sandbox.and_then(|id| kept.sandboxes.get(&id)).cloned();
        let of = of.ok_or_else(|| Problem::new(Code::WrongState, "its sandbox is gone"))?;
        let request = how.clone();
        let made = kept.add_several(&of, snapshot.id, (how.count, how.name, how.labels))?;
        kept.note(asked.key, &request, &made);
        Ok(made)
    }

    fn open_fault_socket(&self, _: Asked, wanted: OpenFaultSocket) -> Answer<FaultSocket> {
        let mut kept = self.asked()?;
        let snapshot = kept.snapshot(&wanted.snapshot)?.id;
        let (id, state) = (Uuid::now_v7(), FaultSocketState::Listening);
        let path = format!("/run/rekindle/{id}.sock");
        let made = FaultSocket {
            id,
            snapshot,
            path,
            pid: None,
            state,
            reason: None,
            capture_hindrance: None,
            served: None,
        };
        kept.sockets.insert(id, made.clone());
        Ok(made)
    }

    fn fault_sockets(&self) -> Answer<Vec<FaultSocket>> {
        Ok(self.asked()?.sockets.values().cloned().collect())
    }

    fn fault_socket(&self, id: Uuid) -> Answer<FaultSocket> {
        let kept = self.asked()?;
        kept.sockets.get(&id).cloned().ok_or_else(|| Problem::new(Code::NotFound, "there is no such socket"))
    }

    fn close_fault_socket(&self, id: Uuid) -> Answer<()> {
        self.fault_socket(id)?;
        self.kept().sockets.remove(&id);
        Ok(())
    }

    fn capture_memory(&self, _: Asked, wanted: CaptureMemory) -> Answer<Snapshot> {
        let mut kept = self.asked()?;
        let origin = match wanted.source {
            CaptureSource::FaultSocket { id } => {
                let socket = kept.sockets.get(&id).cloned();
                Some(socket.ok_or_else(|| Problem::new(Code::NotFound, "there is no such socket"))?.snapshot)
            }
            CaptureSource::Memfd { .. } | CaptureSource::Process { .. } => None,
        };
        let of = Sandbox {
            id: Uuid::now_v7(),
            name: None,
            labels: Labels::new(),
            state: SandboxState::Running,
            reason: None,
            vmm: VmmKind::Process,
            memory_bytes: 4096,
            backing: MemoryBacking::Shared,
            machine: None,
            pid: None,
            origin,
            snapshot: None,
            created_unix_ms: 1,
            served: None,
        };
        kept.add_snapshot(&of, wanted.name, wanted.labels)
    }

    fn events(&self, after: Option<u64>) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let mut kept = self.kept();
        let coming = self.events.subscribe();
        let known =
            kept.events.iter().filter(|event| after.is_some_and(|after| event.id > after)).cloned().collect();
        for _ in 0..kept.burst {
            self.tell(&mut kept, "sandbox.running", None, None);
        }
        (known, coming)
    }

    fn version(&self) -> Version {
        let panics = self.kept().panics;
        assert!(!panics, "a bug");
        Version { version: "0.1.0".to_owned(), api: "1.0".to_owned(), pid: 1, started_unix_ms: 1 }
    }

    fn readiness(&self) -> Readiness {
        let reasons = self.kept().not_ready.clone();
        Readiness { ready: reasons.is_empty(), reasons }
    }

    fn metrics(&self) -> String {
        "# TYPE rekindle_pauses counter\nrekindle_pauses_total 1\n# EOF\n".to_owned()
    }
}
