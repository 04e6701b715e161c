//! A daemon that has what it is given and does what it is told at once; nothing runs under it.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rekindle::api::control::{Answer, Asked, Control};
use rekindle::api::problem::{Code, Problem};
use rekindle::api::types::*;
use rekindle::api::types::{Name, NameOfSeveral, Reference};
use rekindle::api::{ListenError, ListenOptions, Listeners};
use rekindle::settings::CONNECTIONS_DEFAULT;
use tokio::runtime::Runtime;
use tokio::sync::{broadcast, oneshot};
use uuid::Uuid;

use crate::program::Place;

/// Number of tries for a socket that the last daemon in a place may still have, and the time between.
const BIND_TRIES: usize = 1000;
const ASK_EVERY: Duration = Duration::from_millis(10);

/// A daemon that listens in a place until it is dropped.
pub(crate) struct FakeDaemon {
    runtime: Option<Runtime>,
    end: Option<oneshot::Sender<()>>,
}

/// State of the daemon.
#[derive(Debug)]
struct Fake {
    things: Mutex<Things>,
    events: broadcast::Sender<Event>,
    first_event: u64,
}

#[derive(Debug, Default)]
struct Things {
    sandboxes: Vec<Sandbox>,
    snapshots: Vec<Snapshot>,
    made: u128,
}

impl FakeDaemon {
    /// Listens where the program looks for a daemon in this place.
    pub(crate) fn start(place: &Place) -> Self {
        Self::start_at(place, 1)
    }

    /// The same with events whose ids begin with this one.
    pub(crate) fn start_at(place: &Place, first_event: u64) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let socket = place.path("run/api.sock");
        std::fs::create_dir_all(socket.parent().expect("a directory")).expect("it can be made");
        let inside = runtime.enter();
        let options = ListenOptions {
            socket,
            allowed_uids: Vec::new(),
            connections_max: CONNECTIONS_DEFAULT,
            tcp: None,
        };
        // Programs that other tests fork meanwhile may have the last daemon's socket until they are executed.
        let listeners = std::iter::repeat_with(|| Listeners::bind(&options))
            .take(BIND_TRIES)
            .find(|bound| {
                let is_taken = matches!(bound, Err(ListenError::Taken { .. }));
                is_taken.then(|| std::thread::park_timeout(ASK_EVERY));
                !is_taken
            })
            .expect("the last daemon here lets go of its socket")
            .expect("the place is empty");
        drop(inside);
        let (end, ended) = oneshot::channel();
        let control =
            Arc::new(Fake { things: Mutex::default(), events: broadcast::channel(16).0, first_event });
        runtime.spawn(rekindle::api::serve(control, listeners, async { ended.await.unwrap_or_default() }));
        Self { runtime: Some(runtime), end: Some(end) }
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(10));
        }
    }
}

impl Things {
    /// Ids as a daemon of long ago would have made them, a millisecond apart.
    fn next_id(&mut self) -> Uuid {
        self.made += 1;
        let tail = self.made * 0x9e37_79b1 % (1 << 32);
        Uuid::from_u128(0x019a_0000_0000_7000_8000_0000_0000_0000 + (self.made << 80) + tail)
    }

    fn sandbox(&mut self, reference: &str) -> Answer<&mut Sandbox> {
        let found =
            self.sandboxes.iter_mut().find(|sandbox| is(reference, &sandbox.id, sandbox.name.as_deref()));
        found.ok_or_else(|| Problem::new(Code::NotFound, format!("there is no sandbox {reference}")))
    }

    fn snapshot(&mut self, reference: &str) -> Answer<&mut Snapshot> {
        let found =
            self.snapshots.iter_mut().find(|snapshot| is(reference, &snapshot.id, snapshot.name.as_deref()));
        found.ok_or_else(|| Problem::new(Code::NotFound, format!("there is no snapshot {reference}")))
    }

    fn make(
        &mut self,
        name: Option<Name>,
        labels: Labels,
        memory_bytes: u64,
        backing: MemoryBacking,
    ) -> Answer<Sandbox> {
        if name.is_some() && self.sandboxes.iter().any(|sandbox| sandbox.name == name) {
            return Err(Problem::new(
                Code::NameTaken,
                format!("a sandbox is named {} already", name.as_deref().unwrap_or_default()),
            ));
        }
        let sandbox = Sandbox {
            id: self.next_id(),
            name,
            labels,
            state: SandboxState::Running,
            reason: None,
            vmm: VmmKind::Process,
            memory_bytes,
            backing,
            machine: None,
            pid: Some(4711),
            origin: None,
            snapshot: None,
            created_unix_ms: two_hours_ago(),
            served: None,
        };
        self.sandboxes.push(sandbox.clone());
        Ok(sandbox)
    }
}

fn is(reference: &str, id: &Uuid, name: Option<&str>) -> bool {
    let id = id.to_string();
    name == Some(reference) || reference.len() >= 4 && (id.starts_with(reference) || id.ends_with(reference))
}

fn two_hours_ago() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    u64::try_from((now - Duration::from_secs(7230)).as_millis()).expect("it is before the end")
}

impl Fake {
    fn things(&self) -> MutexGuard<'_, Things> {
        self.things.lock().expect("no test panics with it")
    }

    fn several(
        &self,
        count: u32,
        name: Option<&NameOfSeveral>,
        labels: &Labels,
        of: &Snapshot,
    ) -> Answer<SandboxList> {
        let mut things = self.things();
        let names = name.map(|name| name.numbered(count));
        let made = (0..usize::try_from(count).expect("a few")).map(|at| {
            let name = names.as_ref().map(|names| names[at].clone());
            let mut sandbox =
                things.make(name, labels.clone(), of.volumes[0].bytes, MemoryBacking::Shared)?;
            sandbox.origin = Some(of.id);
            things.sandboxes.last_mut().expect("it was made").origin = Some(of.id);
            Ok(sandbox)
        });
        Ok(SandboxList { sandboxes: made.collect::<Answer<_>>()?, next: None })
    }
}

impl Control for Fake {
    fn create_sandbox(&self, _: Asked, wanted: CreateSandbox) -> Answer<Sandbox> {
        self.things().make(wanted.name, wanted.labels, wanted.memory_bytes, wanted.backing)
    }

    fn sandboxes(&self, query: &ListQuery) -> Answer<SandboxList> {
        let things = self.things();
        let wanted = |sandbox: &&Sandbox| query.labels.iter().all(|label| label.is_in(&sandbox.labels));
        Ok(SandboxList { sandboxes: things.sandboxes.iter().filter(wanted).cloned().collect(), next: None })
    }

    fn sandbox(&self, reference: &Reference) -> Answer<Sandbox> {
        self.things().sandbox(reference).cloned()
    }

    fn pause_sandbox(&self, reference: &Reference, _: Asked, how: PauseSandbox) -> Answer<Snapshot> {
        let mut things = self.things();
        let id = things.next_id();
        let sandbox = things.sandbox(reference)?;
        if sandbox.state != SandboxState::Running {
            let detail = format!("sandbox {reference} is paused already: resume it first");
            return Err(Problem::new(Code::WrongState, detail).sandbox(sandbox.id));
        }
        let snapshot = Snapshot {
            id,
            name: how.name,
            labels: how.labels,
            state: SnapshotState::Captured,
            reason: None,
            parent: sandbox.snapshot,
            sandbox: Some(sandbox.id),
            generation: u64::from(sandbox.snapshot.is_some()),
            created_unix_ms: two_hours_ago(),
            volumes: vec![Volume {
                name: "memory".to_owned(),
                bytes: sandbox.memory_bytes,
                page_bytes: 4096,
            }],
            classes: None,
            seal_seconds: None,
        };
        sandbox.state = SandboxState::Paused;
        sandbox.snapshot = Some(id);
        sandbox.pid = None;
        things.snapshots.push(snapshot.clone());
        Ok(snapshot)
    }

    fn resume_sandbox(&self, reference: &Reference, _: Asked, _: ResumeSandbox) -> Answer<Sandbox> {
        let mut things = self.things();
        let sandbox = things.sandbox(reference)?;
        sandbox.state = SandboxState::Running;
        sandbox.origin = sandbox.snapshot;
        sandbox.pid = Some(4712);
        Ok(sandbox.clone())
    }

    fn fork_sandbox(&self, reference: &Reference, _: Asked, how: ForkSandbox) -> Answer<SandboxList> {
        let snapshot = self.things().sandbox(reference)?.snapshot.expect("tests fork paused ones");
        let of = self.snapshot(&snapshot.into())?;
        self.several(how.count, how.name.as_ref(), &how.labels, &of)
    }

    fn stop_sandbox(&self, reference: &Reference, _: Asked) -> Answer<Sandbox> {
        let mut things = self.things();
        let sandbox = things.sandbox(reference)?;
        sandbox.state = SandboxState::Stopped;
        sandbox.pid = None;
        Ok(sandbox.clone())
    }

    fn remove_sandbox(&self, reference: &Reference, _: Asked) -> Answer<Uuid> {
        let mut things = self.things();
        let id = things.sandbox(reference)?.id;
        things.sandboxes.retain(|sandbox| sandbox.id != id);
        Ok(id)
    }

    fn tell_guest(
        &self,
        reference: &Reference,
        _: Asked,
        command: serde_json::Value,
    ) -> Answer<serde_json::Value> {
        self.things().sandbox(reference)?;
        let wrong = u32::from(command["pages"] == 13);
        let verified = serde_json::json!({
            "pages": 65_536, "mismatches": wrong, "first_mismatch": null, "nanoseconds": 20_000_000,
        });
        Ok(match command["command"].as_str() {
            Some("fill") => serde_json::json!({
                "new_pages": 65_536, "zero_pages": 0, "same_pages": 0, "nanoseconds": 30_000_000,
            }),
            Some("rewrite") => serde_json::json!({
                "new_pages": 26_000, "zero_pages": 3_300, "same_pages": 3_200, "nanoseconds": 30_000_000,
            }),
            Some("discard") => serde_json::json!({ "pages": 100, "nanoseconds": 40_000 }),
            Some("tick") => serde_json::json!({ "count": 3, "verified": verified }),
            Some("state") => serde_json::json!({ "count": 3, "history": [{ "fill": { "seed": 1 } }] }),
            _ => verified,
        })
    }

    fn console(&self, reference: &Reference, from: Option<u64>, _: Duration) -> Answer<ConsoleOutput> {
        self.things().sandbox(reference)?;
        let from = from.unwrap_or(0).min(6);
        let bytes = BASE64_STANDARD.encode(&b"tick 1"[usize::try_from(from).expect("6 at most")..]);
        Ok(ConsoleOutput { from, next: 6, bytes })
    }

    fn type_console(&self, reference: &Reference, _: &[u8]) -> Answer<()> {
        self.things().sandbox(reference)?;
        Ok(())
    }

    fn snapshots(&self, query: &ListQuery) -> Answer<SnapshotList> {
        let things = self.things();
        let wanted = |snapshot: &&Snapshot| query.labels.iter().all(|label| label.is_in(&snapshot.labels));
        Ok(SnapshotList { snapshots: things.snapshots.iter().filter(wanted).cloned().collect(), next: None })
    }

    fn stored_snapshots(&self) -> Answer<StoredSnapshotList> {
        let things = self.things();
        let published = things.snapshots.iter().filter(|snapshot| snapshot.state == SnapshotState::Published);
        let mut stored: Vec<_> = published
            .map(|snapshot| StoredSnapshot {
                id: snapshot.id,
                name: snapshot.name.clone(),
                is_known: true,
                stored_unix_ms: snapshot.created_unix_ms,
            })
            .collect();
        let id = Uuid::from_u128(0x0193_2f5e_7c00_7000_8000_0000_00e1_5e00);
        let elsewhere = StoredSnapshot { id, name: None, is_known: false, stored_unix_ms: 1_700_000_000_000 };
        stored.insert(0, elsewhere);
        Ok(StoredSnapshotList { snapshots: stored })
    }

    fn snapshot(&self, reference: &Reference) -> Answer<Snapshot> {
        self.things().snapshot(reference).cloned()
    }

    fn wait_snapshot(
        &self,
        reference: &Reference,
        state: SnapshotState,
        limit: Duration,
    ) -> Answer<Snapshot> {
        let mut things = self.things();
        let snapshot = things.snapshot(reference)?;
        if limit.is_zero() {
            return Err(Problem::new(Code::NotYet, format!("snapshot {reference} is not published yet")));
        }
        snapshot.state = state;
        snapshot.seal_seconds = Some(1.25);
        snapshot.classes = Some(PageClasses { dirty: 65_536, zero: 100, equal: 400, kept: 65_036 });
        Ok(snapshot.clone())
    }

    fn delete_snapshot(&self, reference: &Reference) -> Answer<Uuid> {
        let mut things = self.things();
        let id = things.snapshot(reference)?.id;
        let is_paused_in =
            |sandbox: &Sandbox| sandbox.state == SandboxState::Paused && sandbox.snapshot == Some(id);
        if things.sandboxes.iter().any(is_paused_in) {
            return Err(Problem::new(Code::WrongState, "a sandbox is paused in it").snapshot(id.into()));
        }
        things.snapshots.retain(|snapshot| snapshot.id != id);
        Ok(id)
    }

    fn verify_snapshot(&self, reference: &Reference, _: Asked) -> Answer<Verification> {
        let snapshot = self.things().snapshot(reference)?.clone();
        let wrong = snapshot.name.as_deref() == Some("damaged");
        Ok(Verification {
            snapshot: snapshot.id,
            pages: 65_536,
            wrong_pages: u64::from(wrong),
            first: wrong.then(|| "page 7 of memory: frame 0 of layer a7a7 has another digest".to_owned()),
            store: stored(&snapshot, wrong),
        })
    }

    fn placement(&self, reference: &Reference) -> Answer<Placement> {
        let snapshot = self.things().snapshot(reference)?.clone();
        let layer =
            PlacedLayer { id: "a7".repeat(32), bytes: 1 << 28, local_bytes: 1 << 27, stored_bytes: None };
        let layers = if snapshot.state == SnapshotState::Captured { Vec::new() } else { vec![layer] };
        Ok(Placement { snapshot: snapshot.id, state: snapshot.state, origin: None, layers })
    }

    fn resume_snapshot(&self, reference: &Reference, _: Asked, how: ResumeSnapshot) -> Answer<SandboxList> {
        let of = self.snapshot(reference)?;
        self.several(how.count, how.name.as_ref(), &how.labels, &of)
    }

    fn open_fault_socket(&self, _: Asked, _: OpenFaultSocket) -> Answer<FaultSocket> {
        Err(no_fault_sockets())
    }

    fn fault_sockets(&self) -> Answer<Vec<FaultSocket>> {
        Ok(Vec::new())
    }

    fn fault_socket(&self, _: Uuid) -> Answer<FaultSocket> {
        Err(no_fault_sockets())
    }

    fn close_fault_socket(&self, _: Uuid) -> Answer<()> {
        Err(no_fault_sockets())
    }

    fn capture_memory(&self, _: Asked, _: CaptureMemory) -> Answer<Snapshot> {
        Err(no_fault_sockets())
    }

    fn events(&self, after: Option<u64>) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let event = |number: u64, kind: &str, sandbox| Event {
            id: self.first_event + number - 1,
            unix_ms: 1_763_850_000_000 + number,
            kind: kind.to_owned(),
            sandbox,
            snapshot: None,
            detail: (number == 1).then(|| "version 0.1.0".to_owned()),
        };
        let id = self.things().sandboxes.first().map(|sandbox| sandbox.id);
        let all = [
            event(1, "daemon.started", None),
            event(2, "sandbox.created", id),
            event(3, "sandbox.paused", id),
        ];
        (
            all.into_iter().filter(|event| after.is_some_and(|after| event.id > after)).collect(),
            self.events.subscribe(),
        )
    }

    fn version(&self) -> Version {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Version { version, api: "1.0".to_owned(), pid: 4700, started_unix_ms: two_hours_ago() }
    }

    fn readiness(&self) -> Readiness {
        Readiness { ready: true, reasons: Vec::new() }
    }

    fn metrics(&self) -> String {
        String::new()
    }
}

fn no_fault_sockets() -> Problem {
    Problem::new(Code::NotFound, "there are no fault sockets here")
}

/// Findings in the store about a snapshot; of a damaged one an object is missing there too.
fn stored(snapshot: &Snapshot, damaged: bool) -> StoreVerification {
    if snapshot.state != SnapshotState::Published {
        let state = StoreVerificationState::NotPublished;
        return StoreVerification { state, objects: 0, wrong_objects: 0, reason: None };
    }
    StoreVerification {
        state: StoreVerificationState::Asked,
        objects: 3,
        wrong_objects: u64::from(damaged),
        reason: damaged.then(|| "layers/a7a7/0199 is not in the store".to_owned()),
    }
}
