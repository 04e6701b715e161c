//! The same request under the same key is done once: the ids of what it makes are chosen, and written down, before
//! anything is made, so a request that is asked for again finds what came of it, or makes that and nothing else.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, PoisonError};

use rekindle_engine::catalog::{Catalog, Change, Kind};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::clock::unix_ms;
use crate::api::control::{Answer, IdempotencyKey};
use crate::api::problem::{Code, Problem};

/// Letters of a key, at most.
const KEY_LETTERS_MAX: usize = 256;
/// How long a key is remembered, in milliseconds: a day.
const REMEMBERED_MS: u64 = 24 * 60 * 60 * 1000;

/// The keys that requests came with.
#[derive(Debug)]
pub(super) struct Requests {
    catalog: Catalog,
    under_way: Mutex<HashSet<IdempotencyKey>>,
    ended: Condvar,
}

/// What is written down of a request.
#[derive(Serialize, Deserialize)]
struct Asked {
    request: String,
    ids: Vec<Uuid>,
    unix_ms: u64,
}

/// The ids of what a request makes. While it lives no other request with the same key begins.
#[derive(Debug)]
pub(super) struct Chosen<'a> {
    pub(super) ids: Vec<Uuid>,
    turn: Option<(&'a Requests, IdempotencyKey)>,
}

impl Requests {
    pub(super) fn new(catalog: Catalog) -> Answer<Self> {
        let requests = Self { catalog, under_way: Mutex::default(), ended: Condvar::new() };
        requests.forget_old()?;
        Ok(requests)
    }

    /// The ids for the `count` things that a request makes; the same as before where its key is known. `request` is
    /// all that tells it from others.
    pub(super) fn choose(
        &self,
        key: Option<IdempotencyKey>,
        request: &impl Serialize,
        count: usize,
    ) -> Answer<Chosen<'_>> {
        let fresh = || (0..count).map(|_| Uuid::now_v7()).collect::<Vec<_>>();
        let Some(key) = key else { return Ok(Chosen { ids: fresh(), turn: None }) };
        if key.is_empty() || key.len() > KEY_LETTERS_MAX {
            let why = format!("an idempotency key has 1 to {KEY_LETTERS_MAX} letters");
            return Err(Problem::new(Code::InvalidRequest, why));
        }
        let request = serde_json::to_string(request).expect("a request is plain data");
        let mut chosen = Chosen { ids: Vec::new(), turn: Some((self, self.wait_for_turn(key.clone()))) };
        let known = self.catalog.get(Kind::Idempotency, key.as_bytes())?;
        chosen.ids = match known.and_then(|bytes| serde_json::from_slice::<Asked>(&bytes).ok()) {
            Some(asked) if asked.request == request => asked.ids,
            Some(_) => {
                let why = format!("the idempotency key {key:?} came with another request before");
                return Err(Problem::new(Code::IdempotencyMismatch, why));
            }
            None => {
                let asked = Asked { request, ids: fresh(), unix_ms: unix_ms() };
                let value = serde_json::to_vec(&asked).expect("it is plain data");
                self.catalog.write(&[Change::Put {
                    kind: Kind::Idempotency,
                    key: key.into_bytes(),
                    value,
                }])?;
                asked.ids
            }
        };
        Ok(chosen)
    }

    fn wait_for_turn(&self, key: IdempotencyKey) -> IdempotencyKey {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        while !under_way.insert(key.clone()) {
            under_way = self.ended.wait(under_way).unwrap_or_else(PoisonError::into_inner);
        }
        key
    }

    fn forget_old(&self) -> Answer<()> {
        let now = unix_ms();
        let old = |value: &[u8]| {
            serde_json::from_slice::<Asked>(value)
                .map_or(true, |asked| now.saturating_sub(asked.unix_ms) > REMEMBERED_MS)
        };
        let all = self.catalog.all(Kind::Idempotency)?;
        let changes: Vec<_> = all
            .into_iter()
            .filter(|(_, value)| old(value))
            .map(|(key, _)| Change::Remove { kind: Kind::Idempotency, key })
            .collect();
        if changes.is_empty() { Ok(()) } else { Ok(self.catalog.write(&changes)?) }
    }
}

impl Drop for Chosen<'_> {
    fn drop(&mut self) {
        if let Some((requests, key)) = &self.turn {
            requests.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
            requests.ended.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_request_under_the_same_key_makes_the_same_things_also_after_a_restart() {
        let directory = tempfile::tempdir().expect("a directory");
        let catalog = Catalog::open(&directory.path().join("catalog")).expect("a catalog");
        let ids = |key: &str, request: &str| {
            let requests = Requests::new(catalog.clone()).expect("a catalog that can be read");
            let chosen = requests.choose(Some(key.to_owned()), &request, 2);
            chosen.map(|chosen| chosen.ids.clone()).map_err(|problem| problem.code)
        };
        let first = ids("a", "pause x");
        assert_eq!(ids("a", "pause x"), first);
        assert_ne!(ids("b", "pause x"), first);
        assert_eq!(ids("a", "pause y"), Err(Code::IdempotencyMismatch));
        assert_eq!(ids("", "pause y"), Err(Code::InvalidRequest));
    }
}
