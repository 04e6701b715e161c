//! State of the daemon without an engine.

use std::collections::BTreeMap;

use rekindle::api::control::{Answer, IdempotencyKey};
use rekindle::api::problem::{Code, Problem};
use rekindle::api::types::{
    Event, FaultSocket, Labels, ListQuery, Sandbox, SandboxList, SandboxState, Snapshot, SnapshotState,
    Volume,
};
use rekindle::api::types::{Name, NameOfSeveral};
use serde_json::Value;
use uuid::Uuid;

#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) sandboxes: BTreeMap<Uuid, Sandbox>,
    pub(super) snapshots: BTreeMap<Uuid, Snapshot>,
    pub(super) sockets: BTreeMap<Uuid, FaultSocket>,
    /// The answer under a key, and its request.
    pub(super) answered: BTreeMap<IdempotencyKey, (Value, Value)>,
    pub(super) events: Vec<Event>,
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
    pub(super) saves_at_once: bool,
    pub(super) panics: bool,
}

impl Kept {
    pub(super) fn sandbox(&self, reference: &str) -> Answer<Sandbox> {
        let named = |sandbox: &&Sandbox| sandbox.name.as_deref() == Some(reference);
        one(reference, self.sandboxes.values().find(named), &self.sandboxes, "sandbox").cloned()
    }

    pub(super) fn snapshot(&self, reference: &str) -> Answer<Snapshot> {
        let named = |snapshot: &&Snapshot| snapshot.name.as_deref() == Some(reference);
        one(reference, self.snapshots.values().find(named), &self.snapshots, "snapshot").cloned()
    }

    pub(super) fn add_sandbox(&mut self, wanted: Sandbox) -> Answer<Sandbox> {
        let taken = self.sandboxes.values().find(|other| other.name.is_some() && other.name == wanted.name);
        if let Some(other) = taken {
            return Err(Problem::new(Code::NameTaken, "another sandbox has this name").sandbox(other.id));
        }
        self.sandboxes.insert(wanted.id, wanted.clone());
        Ok(wanted)
    }

    pub(super) fn add_snapshot(
        &mut self,
        of: &Sandbox,
        name: Option<Name>,
        labels: Labels,
    ) -> Answer<Snapshot> {
        if let Some(other) = self.snapshots.values().find(|other| name.is_some() && other.name == name) {
            let id = other.id;
            let mut problem = Problem::new(Code::NameTaken, "another snapshot has this name");
            problem.snapshots.push(id);
            return Err(problem);
        }
        let state = if self.saves_at_once { SnapshotState::Published } else { SnapshotState::Captured };
        let volume = Volume { name: "memory".to_owned(), bytes: of.memory_bytes, page_bytes: 4096 };
        let made = Snapshot {
            id: Uuid::now_v7(),
            name,
            labels,
            state,
            reason: None,
            parent: of.origin,
            sandbox: Some(of.id),
            generation: 0,
            created_unix_ms: 1,
            volumes: vec![volume],
            classes: None,
            seal_seconds: None,
        };
        self.snapshots.insert(made.id, made.clone());
        Ok(made)
    }

    /// Several sandboxes that go on from a snapshot.
    pub(super) fn add_several(
        &mut self,
        of: &Sandbox,
        origin: Uuid,
        (count, name, labels): (u32, Option<NameOfSeveral>, Labels),
    ) -> Answer<SandboxList> {
        let names = name.map(|name| name.numbered(count));
        let several = (0..usize::try_from(count).unwrap()).map(|at| {
            let name = names.as_ref().map(|names| names[at].clone());
            let (id, origin, labels) = (Uuid::now_v7(), Some(origin), labels.clone());
            Sandbox { id, name, labels, origin, state: SandboxState::Running, pid: Some(1), ..of.clone() }
        });
        let sandboxes = several.collect::<Vec<_>>();
        let added: Answer<Vec<_>> = sandboxes.into_iter().map(|sandbox| self.add_sandbox(sandbox)).collect();
        Ok(SandboxList { sandboxes: added?, next: None })
    }

    /// The earlier answer under this key.
    pub(super) fn answered<T: serde::de::DeserializeOwned>(
        &self,
        key: Option<&IdempotencyKey>,
        request: &impl serde::Serialize,
    ) -> Answer<Option<T>> {
        let Some((before, answer)) = key.and_then(|key| self.answered.get(key)) else { return Ok(None) };
        match *before == serde_json::to_value(request).unwrap() {
            true => Ok(Some(serde_json::from_value(answer.clone()).unwrap())),
            false => Err(Problem::new(Code::IdempotencyMismatch, "this key came with another request")),
        }
    }

    pub(super) fn note(
        &mut self,
        key: Option<IdempotencyKey>,
        request: &impl serde::Serialize,
        answer: &impl serde::Serialize,
    ) {
        if let Some(key) = key {
            let pair = (serde_json::to_value(request).unwrap(), serde_json::to_value(answer).unwrap());
            self.answered.insert(key, pair);
        }
    }
}

/// The one thing that is named so, or whose id begins so.
fn one<'k, T>(
    reference: &str,
    named: Option<&'k T>,
    all: &'k BTreeMap<Uuid, T>,
    what: &str,
) -> Answer<&'k T> {
    let mut found =
        all.iter().filter(|(id, _)| reference.len() >= 4 && id.to_string().starts_with(reference));
    match (named, found.next(), found.next()) {
        (Some(named), _, _) => Ok(named),
        (None, Some((_, only)), None) => Ok(only),
        (None, None, _) => Err(Problem::new(Code::NotFound, format!("there is no {what} {reference}"))),
        (None, Some(_), Some(_)) => {
            Err(Problem::new(Code::AmbiguousReference, format!("several {what} ids begin with {reference}")))
        }
    }
}

/// A page of what is asked for.
pub(super) fn page<T: Clone>(
    all: &BTreeMap<Uuid, T>,
    query: &ListQuery,
    labels: impl Fn(&T) -> &Labels,
) -> (Vec<T>, Option<Uuid>) {
    let limit = usize::try_from(query.limit.unwrap_or(100)).unwrap();
    let mut matching = all
        .iter()
        .filter(|(id, _)| query.after.is_none_or(|after| **id > after))
        .filter(|(_, one)| query.labels.iter().all(|label| label.is_in(labels(one))))
        .peekable();
    let taken: Vec<_> = matching.by_ref().take(limit).collect();
    let next = matching.peek().and(taken.last()).map(|(id, _)| **id);
    (taken.into_iter().map(|(_, one)| one.clone()).collect(), next)
}
