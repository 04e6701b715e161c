//! State of the daemon without an engine.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rekindle_api::control::{Answer, IdempotencyKey};
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::{
    CreateSandbox, DeletedSnapshot, Drain, DrainedSandbox, Event, FaultSocket, Labels, ListQuery,
    MemoryBacking, Name, NameOfSeveral, PageLimit, PeriodicCheckpoints, Reference, Sandbox, SandboxCount,
    SandboxList, SandboxState, Snapshot, SnapshotState, VmmKind, Volume,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

use super::answers;

/// Process of a guest from its beginning, and after it was resumed.
const FIRST_PID: u32 = 4711;
pub(super) const RESUMED_PID: u32 = 4712;

/// Reason of a sandbox that a drain has paused.
pub(super) const DRAINED: &str = "a drain of this node paused it";

#[derive(Debug, Default)]
pub(super) struct Kept {
    /// Deleted snapshots that can be brought back.
    pub(super) withdrawn: BTreeMap<Uuid, Snapshot>,
    pub(super) sandboxes: BTreeMap<Uuid, Sandbox>,
    pub(super) snapshots: BTreeMap<Uuid, Snapshot>,
    pub(super) sockets: BTreeMap<Uuid, FaultSocket>,
    pub(super) ids_made: u128,
    /// The answer under a key, and its request.
    pub(super) answered: BTreeMap<IdempotencyKey, (Value, Value)>,
    pub(super) events: Vec<Event>,
    pub(super) first_event: u64,
    /// Number of pauses that have begun; with it, whether they may go on.
    pub(super) pauses_begun: usize,
    pub(super) pauses_held: bool,
    pub(super) verifications_held: bool,
    pub(super) verifications_begun: usize,
    pub(super) verifications_over: usize,
    /// The problem every request meets.
    pub(super) problem: Option<Problem>,
    /// Events that come between a subscription and the first look at it.
    pub(super) burst: u64,
    pub(super) not_ready: Vec<String>,
    pub(super) saves_when_waited_for: bool,
    pub(super) panics: bool,
    pub(super) is_drained: bool,
    /// Sandboxes that a drain has moved.
    pub(super) moved: Vec<DrainedSandbox>,
}

impl Kept {
    /// Deletes a snapshot that no sandbox is paused in.
    pub(super) fn delete_snapshot(&mut self, reference: &Reference) -> Answer<DeletedSnapshot> {
        let id = self.snapshot(reference)?.id;
        let is_paused_in =
            |sandbox: &Sandbox| sandbox.state == SandboxState::Paused && sandbox.snapshot == Some(id);
        if self.sandboxes.values().any(is_paused_in) {
            return Err(Problem::new(Code::WrongState, "a sandbox is paused in it").snapshot(id.into()));
        }
        let deleted = self.snapshots.remove(&id).filter(|of| of.state == SnapshotState::Published);
        let undelete_seconds = deleted.is_some().then_some(answers::UNDELETE_SECONDS);
        self.withdrawn.extend(deleted.map(|deleted| (id, deleted)));
        Ok(DeletedSnapshot { snapshot: id, used_by: Vec::new(), undelete_seconds })
    }

    /// Brings a deleted snapshot back.
    pub(super) fn undelete_snapshot(&mut self, reference: &Reference) -> Answer<Snapshot> {
        let id = Uuid::try_parse(reference).ok().filter(|id| self.withdrawn.contains_key(id));
        let id = id.ok_or_else(|| Problem::new(Code::NotFound, format!("{reference} is not deleted")))?;
        let back = self.withdrawn.remove(&id).expect("it was just there");
        self.snapshots.insert(id, back.clone());
        Ok(back)
    }

    /// Ids as a daemon of long ago would have made them, a millisecond apart.
    pub(super) fn next_id(&mut self) -> Uuid {
        self.ids_made += 1;
        let tail = self.ids_made * 0x9e37_79b1 % (1 << 32);
        Uuid::from_u128(0x019a_0000_0000_7000_8000_0000_0000_0000 + (self.ids_made << 80) + tail)
    }

    pub(super) fn sandbox(&self, reference: &str) -> Answer<Sandbox> {
        one("sandbox", reference, &self.sandboxes, |sandbox| sandbox.name.as_deref())
    }

    pub(super) fn snapshot(&self, reference: &str) -> Answer<Snapshot> {
        one("snapshot", reference, &self.snapshots, |snapshot| snapshot.name.as_deref())
    }

    pub(super) fn drain(&self) -> Drain {
        let is_drained = |sandbox: &&Sandbox| sandbox.reason.as_deref() == Some(DRAINED);
        let shown = |sandbox: &Sandbox| DrainedSandbox {
            sandbox: sandbox.id,
            name: sandbox.name.clone(),
            snapshot: sandbox.snapshot,
            moved: None,
            not_moved: None,
            problem: None,
        };
        let paused = self.sandboxes.values().filter(is_drained).map(shown);
        Drain {
            closed: self.is_drained,
            sandboxes: paused.chain(self.moved.clone()).collect(),
            fault_sockets: Vec::new(),
        }
    }

    pub(super) fn add_sandbox(&mut self, wanted: CreateSandbox, origin: Option<Uuid>) -> Answer<Sandbox> {
        if self.is_drained {
            return Err(Problem::new(Code::Drained, "this node is drained"));
        }
        let taken = self.sandboxes.values().find(|other| other.name.is_some() && other.name == wanted.name);
        if let (Some(other), Some(name)) = (taken, &wanted.name) {
            let detail = format!("a sandbox is named {name} already");
            return Err(Problem::new(Code::NameTaken, detail).sandbox(other.id));
        }
        let made = Sandbox {
            id: self.next_id(),
            name: wanted.name,
            labels: wanted.labels,
            domain: wanted.domain.or_else(|| "default".parse().ok()),
            state: SandboxState::Running,
            reason: None,
            vmm: wanted.vmm,
            memory_bytes: wanted.memory_bytes,
            backing: wanted.backing,
            machine: None,
            pid: Some(FIRST_PID),
            origin,
            snapshot: None,
            checkpoints: PeriodicCheckpoints::after(None, wanted.checkpoints),
            created_unix_ms: two_hours_ago(),
            served: None,
        };
        self.sandboxes.insert(made.id, made.clone());
        Ok(made)
    }

    /// A snapshot of a sandbox, or of memory of this many bytes that no sandbox has.
    pub(super) fn add_snapshot(
        &mut self,
        (sandbox, parent, bytes): (Option<Uuid>, Option<Uuid>, u64),
        name: Option<Name>,
        labels: Labels,
    ) -> Answer<Snapshot> {
        if let Some(other) = self.snapshots.values().find(|other| name.is_some() && other.name == name) {
            let problem = Problem::new(Code::NameTaken, "another snapshot has this name");
            return Err(problem.snapshot(other.id.into()));
        }
        let made = Snapshot {
            id: self.next_id(),
            name,
            labels,
            domain: "default".to_owned(),
            state: SnapshotState::Captured,
            reason: None,
            parent,
            sandbox,
            generation: u64::from(parent.is_some()),
            created_unix_ms: two_hours_ago(),
            volumes: vec![Volume { name: "memory".to_owned(), bytes, page_bytes: 4096 }],
            origin: None,
            missing_bytes: None,
            classes: None,
            seal_seconds: None,
        };
        self.snapshots.insert(made.id, made.clone());
        Ok(made)
    }

    /// Several sandboxes that go on from a snapshot.
    pub(super) fn add_several(
        &mut self,
        origin: &Snapshot,
        (count, name, labels): (SandboxCount, Option<NameOfSeveral>, Labels),
        checkpoints: Option<PeriodicCheckpoints>,
    ) -> Answer<SandboxList> {
        let names = name.map(|name| name.numbered(count));
        let several = (0..usize::try_from(count.get()).expect("a few")).map(|at| {
            let wanted = CreateSandbox {
                domain: None,
                name: names.as_ref().map(|names| names[at].clone()),
                labels: labels.clone(),
                vmm: VmmKind::Process,
                memory_bytes: origin.volumes[0].bytes,
                backing: MemoryBacking::Shared,
                machine: None,
                checkpoints,
            };
            self.add_sandbox(wanted, Some(origin.id))
        });
        Ok(SandboxList { sandboxes: several.collect::<Answer<_>>()?, next: None })
    }

    /// Notes an event about a sandbox, a snapshot, both or neither.
    pub(super) fn add_event(&mut self, kind: &str, about: (Option<Uuid>, Option<Uuid>)) -> Event {
        let before = u64::try_from(self.events.len()).expect("usize is 64 bits");
        let id = self.first_event + before;
        let (sandbox, snapshot) = about;
        let unix_ms = 1_763_850_000_000 + id;
        let detail = (kind == "daemon.started").then(|| "version 0.1.0".to_owned());
        let event = Event { id, unix_ms, kind: kind.to_owned(), sandbox, snapshot, detail };
        self.events.push(event.clone());
        event
    }

    /// The earlier answer under this key.
    pub(super) fn answered<T: DeserializeOwned>(
        &self,
        key: Option<&IdempotencyKey>,
        request: &impl Serialize,
    ) -> Answer<Option<T>> {
        let Some((before, answer)) = key.and_then(|key| self.answered.get(key)) else { return Ok(None) };
        if *before == plain(request) {
            Ok(Some(serde_json::from_value(answer.clone()).expect("it was such an answer")))
        } else {
            Err(Problem::new(Code::IdempotencyMismatch, "this key came with another request"))
        }
    }

    pub(super) fn note(
        &mut self,
        key: Option<IdempotencyKey>,
        request: &impl Serialize,
        answer: &impl Serialize,
    ) {
        if let Some(key) = key {
            self.answered.insert(key, (plain(request), plain(answer)));
        }
    }
}

fn plain(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("requests and answers are plain data")
}

/// The one thing that is named so, or whose id begins or ends so.
fn one<T: Clone>(
    what: &str,
    reference: &str,
    all: &BTreeMap<Uuid, T>,
    name: impl Fn(&T) -> Option<&str>,
) -> Answer<T> {
    if let Some(named) = all.values().find(|one| name(one) == Some(reference)) {
        return Ok(named.clone());
    }
    let is_part = |id: &Uuid| {
        let id = id.to_string();
        reference.len() >= 4 && (id.starts_with(reference) || id.ends_with(reference))
    };
    let mut found = all.iter().filter(|(id, _)| is_part(id));
    match (found.next(), found.next()) {
        (Some((_, only)), None) => Ok(only.clone()),
        (None, _) => Err(Problem::new(Code::NotFound, format!("there is no {what} {reference}"))),
        (Some(_), Some(_)) => {
            let detail = format!("several {what} ids begin or end with {reference}");
            Err(Problem::new(Code::AmbiguousReference, detail))
        }
    }
}

/// A page of what is asked for.
pub(super) fn page<T: Clone>(
    all: &BTreeMap<Uuid, T>,
    query: &ListQuery,
    labels: impl Fn(&T) -> &Labels,
) -> (Vec<T>, Option<Uuid>) {
    let limit = usize::try_from(query.limit.map_or(100, PageLimit::get)).expect("a page");
    let mut matching = all
        .iter()
        .filter(|(id, _)| query.after.is_none_or(|after| **id > after))
        .filter(|(_, one)| query.labels.iter().all(|label| label.is_in(labels(one))))
        .peekable();
    let taken: Vec<_> = matching.by_ref().take(limit).collect();
    let next = matching.peek().and(taken.last()).map(|(id, _)| **id);
    (taken.into_iter().map(|(_, one)| one.clone()).collect(), next)
}

pub(super) fn two_hours_ago() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    u64::try_from((now - Duration::from_secs(7230)).as_millis()).expect("it is before the end")
}
