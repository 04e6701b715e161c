//! The requests that the daemon without an engine does.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use rekindle_api::control::{Answer, Asked, Connected, Control};
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::{
    CaptureMemory, CaptureSource, CheckpointSandbox, Collect, Collection, ConnectSandbox, ConsoleOutput,
    CreateSandbox, DeletedSnapshot, Drain, DrainNode, Event, FaultSocket, FaultSocketState, ForkSandbox,
    KeptSnapshot, Labels, ListQuery, MoveSandbox, MovedSandbox, NodePlacement, OpenFaultSocket, PauseSandbox,
    Placement, PlacementQuery, Readiness, Reference, ResumeSandbox, ResumeSnapshot, Sandbox, SandboxList,
    SandboxState, Snapshot, SnapshotList, SnapshotState, SnapshotUsage, StoredSnapshot, StoredSnapshotList,
    Usage, Verification, Version, WithdrawnSnapshotList,
};
use serde_json::Value;
use tokio::sync::broadcast;
use uuid::Uuid;

use super::FakeDaemon;
use super::answers::{self, wrong_state};
use super::kept::{page, two_hours_ago};

/// Time between two looks whether an asker is gone.
const LOOKS_EVERY: Duration = Duration::from_millis(10);

/// Bytes of memory that a VMM of somebody else captures.
const CAPTURED_BYTES: u64 = 4096;

fn no_socket() -> Problem {
    Problem::new(Code::NotFound, "there is no such fault socket")
}

impl Control for FakeDaemon {
    fn create_sandbox(&self, asked: Asked, wanted: CreateSandbox) -> Answer<Sandbox> {
        let mut kept = self.asked()?;
        if let Some(answer) = kept.answered(asked.key.as_ref(), &wanted)? {
            return Ok(answer);
        }
        let made = kept.add_sandbox(wanted.clone(), None)?;
        kept.note(asked.key, &wanted, &made);
        self.tell(&mut kept, "sandbox.created", (Some(made.id), None));
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
        let released = self.changed.wait_while(kept, |kept| kept.pauses_held);
        kept = released.unwrap_or_else(PoisonError::into_inner);
        if sandbox.state != SandboxState::Running {
            return Err(wrong_state(&sandbox, "is paused already: resume it first"));
        }
        let request = how.clone();
        let of = (Some(sandbox.id), sandbox.snapshot.or(sandbox.origin), sandbox.memory_bytes);
        let made = kept.add_snapshot(of, how.name, how.labels)?;
        let paused = Sandbox { state: SandboxState::Paused, pid: None, snapshot: Some(made.id), ..sandbox };
        kept.sandboxes.insert(paused.id, paused);
        kept.note(asked.key, &request, &made);
        self.tell(&mut kept, "sandbox.paused", (made.sandbox, Some(made.id)));
        self.changed.notify_all();
        Ok(made)
    }

    fn checkpoint_sandbox(
        &self,
        reference: &Reference,
        asked: Asked,
        how: CheckpointSandbox,
    ) -> Answer<Snapshot> {
        self.checkpointed(reference, asked, how)
    }

    fn move_sandbox(&self, reference: &Reference, asked: Asked, how: MoveSandbox) -> Answer<MovedSandbox> {
        self.moved(reference, asked, &how)
    }

    fn resume_sandbox(&self, reference: &Reference, _: Asked, how: ResumeSandbox) -> Answer<Sandbox> {
        self.resumed(reference, &how)
    }

    fn fork_sandbox(&self, reference: &Reference, asked: Asked, how: ForkSandbox) -> Answer<SandboxList> {
        let mut kept = self.asked()?;
        if let Some(answer) = kept.answered(asked.key.as_ref(), &how)? {
            return Ok(answer);
        }
        let sandbox = kept.sandbox(reference)?;
        let request = how.clone();
        let origin = match sandbox.snapshot {
            Some(paused) if sandbox.state == SandboxState::Paused => kept.snapshots[&paused].clone(),
            Some(_) | None => {
                let of = (Some(sandbox.id), sandbox.snapshot.or(sandbox.origin), sandbox.memory_bytes);
                kept.add_snapshot(of, None, Labels::new())?
            }
        };
        let made = kept.add_several(&origin, (how.count, how.name, how.labels), how.checkpoints)?;
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
        self.asked()?.sandbox(reference)?;
        Ok(answers::of_guest(&command))
    }

    fn console(&self, reference: &Reference, from: Option<u64>, _: Duration) -> Answer<ConsoleOutput> {
        self.asked()?.sandbox(reference)?;
        Ok(answers::of_console(from.unwrap_or(0)))
    }

    fn type_console(&self, reference: &Reference, _: &[u8]) -> Answer<()> {
        self.asked()?.sandbox(reference).map(drop)
    }

    fn connect_sandbox(&self, reference: &Reference, how: ConnectSandbox) -> Answer<Connected> {
        let sandbox = self.asked()?.sandbox(reference)?;
        if how.take_over == Some(false) {
            return Err(wrong_state(&sandbox, "has a connection to its channel"));
        }
        let stream = answers::echo().map_err(|error| Problem::new(Code::GuestFailed, error.to_string()))?;
        Ok(Connected { sandbox: sandbox.id, stream })
    }

    fn snapshots(&self, query: &ListQuery) -> Answer<SnapshotList> {
        let kept = self.asked()?;
        let (snapshots, next) = page(&kept.snapshots, query, |snapshot| &snapshot.labels);
        Ok(SnapshotList { snapshots, next })
    }

    fn stored_snapshots(&self) -> Answer<StoredSnapshotList> {
        let kept = self.asked()?;
        let published = kept.snapshots.values().filter(|snapshot| snapshot.state == SnapshotState::Published);
        let known = published.map(|snapshot| StoredSnapshot {
            id: snapshot.id,
            name: snapshot.name.clone(),
            is_known: true,
            stored_unix_ms: snapshot.created_unix_ms,
        });
        let snapshots = [answers::published_elsewhere()].into_iter().chain(known).collect();
        Ok(StoredSnapshotList { snapshots })
    }

    fn withdrawn_snapshots(&self) -> Answer<WithdrawnSnapshotList> {
        let kept = self.asked()?;
        Ok(WithdrawnSnapshotList { snapshots: kept.withdrawn.values().map(answers::withdrawn).collect() })
    }

    fn kept_snapshots(&self) -> Answer<Vec<KeptSnapshot>> {
        let kept = self.asked()?;
        let verdict = |snapshot: &Snapshot| KeptSnapshot {
            snapshot: snapshot.id,
            kept: snapshot.name.is_some(),
            reason: if snapshot.name.is_some() { "no rule is for it" } else { "no rule keeps it" }.to_owned(),
        };
        Ok(kept.snapshots.values().map(verdict).collect())
    }

    fn usage(&self) -> Answer<Usage> {
        let kept = self.asked()?;
        let largest: Vec<_> = kept.snapshots.values().map(answers::usage_of).collect();
        let sum = |part: fn(&SnapshotUsage) -> u64| largest.iter().map(part).sum::<u64>();
        let (own_bytes, unique_bytes) = (sum(|of| of.own_bytes), sum(|of| of.unique_bytes));
        Ok(Usage {
            stored_objects: 2 * u64::try_from(largest.len()).unwrap_or(u64::MAX) + 1,
            stored_bytes: own_bytes + unique_bytes + answers::BOOKKEEPING_BYTES,
            own_bytes,
            unique_bytes,
            shared_bytes: 0,
            unnamed_bytes: 0,
            bookkeeping_bytes: answers::BOOKKEEPING_BYTES,
            snapshots: u64::try_from(largest.len()).unwrap_or(u64::MAX),
            unread_snapshots: 0,
            local_bytes: sum(|of| of.local_bytes),
            only_here_bytes: 0,
            largest,
        })
    }

    fn snapshot_usage(&self, reference: &Reference) -> Answer<SnapshotUsage> {
        self.asked()?.snapshot(reference).map(|snapshot| answers::usage_of(&snapshot))
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
                let detail = format!("snapshot {reference} is not {} yet", word(state));
                return Err(Problem::new(Code::NotYet, detail).snapshot(snapshot.id.into()));
            }
            if kept.saves_when_waited_for {
                let (classes, seal_seconds) = (Some(answers::CLASSES), Some(1.25));
                kept.snapshots.insert(snapshot.id, Snapshot { state, classes, seal_seconds, ..snapshot });
            } else {
                kept = self.changed.wait_timeout(kept, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    fn delete_snapshot(&self, reference: &Reference) -> Answer<DeletedSnapshot> {
        self.asked()?.delete_snapshot(reference)
    }

    fn undelete_snapshot(&self, reference: &Reference) -> Answer<Snapshot> {
        self.asked()?.undelete_snapshot(reference)
    }

    fn forget_snapshot(&self, reference: &Reference) -> Answer<Uuid> {
        let mut kept = self.asked()?;
        let snapshot = kept.snapshot(reference)?;
        if snapshot.state != SnapshotState::Published {
            return Err(Problem::new(Code::WrongState, "it is only here").snapshot(snapshot.id.into()));
        }
        kept.snapshots.remove(&snapshot.id);
        Ok(snapshot.id)
    }

    fn verify_snapshot(&self, reference: &Reference, asked: Asked) -> Answer<Verification> {
        let mut kept = self.asked()?;
        let snapshot = kept.snapshot(reference)?;
        kept.verifications_begun += 1;
        self.changed.notify_all();
        while kept.verifications_held && !asked.asker.is_gone() {
            kept = self.changed.wait_timeout(kept, LOOKS_EVERY).unwrap_or_else(PoisonError::into_inner).0;
        }
        kept.verifications_over += 1;
        self.changed.notify_all();
        Ok(answers::of_verification(&snapshot))
    }

    fn node_placement(&self, query: &PlacementQuery) -> Answer<NodePlacement> {
        Ok(self.asked()?.node_placement(&query.snapshots))
    }

    fn placement(&self, reference: &Reference) -> Answer<Placement> {
        let snapshot = self.asked()?.snapshot(reference)?;
        let layers = answers::layers(&snapshot);
        Ok(Placement { snapshot: snapshot.id, state: snapshot.state, origin: None, layers })
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
        let origin = kept.snapshot(reference)?;
        let request = how.clone();
        let made = kept.add_several(&origin, (how.count, how.name, how.labels), how.checkpoints)?;
        kept.note(asked.key, &request, &made);
        Ok(made)
    }

    fn drain(&self, how: &DrainNode) -> Answer<Drain> {
        self.drained_by(how)
    }

    fn drained(&self) -> Answer<Drain> {
        Ok(self.asked()?.drain())
    }

    fn collect(&self, _how: &Collect) -> Answer<Collection> {
        self.asked().map(|_| Collection::default())
    }

    fn undo_drain(&self) -> Answer<Drain> {
        self.undrained()
    }

    fn open_fault_socket(&self, _: Asked, wanted: OpenFaultSocket) -> Answer<FaultSocket> {
        let mut kept = self.asked()?;
        let snapshot = kept.snapshot(&wanted.snapshot)?.id;
        let id = kept.next_id();
        let made = FaultSocket {
            id,
            snapshot,
            path: format!("/run/rekindle/{id}.sock"),
            pid: None,
            state: FaultSocketState::Listening,
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
        self.asked()?.sockets.get(&id).cloned().ok_or_else(no_socket)
    }

    fn close_fault_socket(&self, id: Uuid) -> Answer<()> {
        self.asked()?.sockets.remove(&id).map(drop).ok_or_else(no_socket)
    }

    fn capture_memory(&self, _: Asked, wanted: CaptureMemory) -> Answer<Snapshot> {
        let mut kept = self.asked()?;
        let parent = match wanted.source {
            CaptureSource::FaultSocket { id } => Some(kept.sockets.get(&id).ok_or_else(no_socket)?.snapshot),
            CaptureSource::Memfd { .. } | CaptureSource::Process { .. } => None,
        };
        kept.add_snapshot((None, parent, CAPTURED_BYTES), wanted.name, wanted.labels)
    }

    fn events(&self, after: Option<u64>) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let mut kept = self.kept();
        let coming = self.events.subscribe();
        let known =
            kept.events.iter().filter(|event| after.is_some_and(|after| event.id > after)).cloned().collect();
        for _ in 0..kept.burst {
            self.tell(&mut kept, "sandbox.running", (None, None));
        }
        (known, coming)
    }

    fn version(&self) -> Version {
        let panics = self.kept().panics;
        assert!(!panics, "a bug");
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Version { version, api: "1.0".to_owned(), pid: 4700, started_unix_ms: two_hours_ago() }
    }

    fn readiness(&self) -> Readiness {
        let reasons = self.kept().not_ready.clone();
        Readiness { ready: reasons.is_empty(), reasons }
    }

    fn metrics(&self) -> String {
        "# TYPE rekindle_pauses counter\nrekindle_pauses_total 1\n# EOF\n".to_owned()
    }
}

fn word(state: SnapshotState) -> String {
    serde_json::to_value(state).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}
