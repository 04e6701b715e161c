//! Does a request with a key once: the ids of the things it makes are chosen, and written down, before anything is
//! made. A repeated request finds those things, or makes them and nothing else.
//!
//! That a thing was made is written in the transaction that makes it, and stays as long as the key: a request whose thing
//! was deleted since is answered so, and does not make it again.

use std::collections::{HashSet, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rekindle_engine::catalog::{Catalog, Change, Kind, WriteError};
use rekindle_engine::identity::SnapshotId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::clock::unix_ms;
use crate::api::control::{Answer, IdempotencyKey};
use crate::api::problem::{Code, Problem};

/// Time that a key is remembered, in milliseconds: a day.
const REMEMBERED_MS: u64 = 24 * 60 * 60 * 1000;
/// Keys that are remembered, at most: the newest.
const REMEMBERED_MAX: usize = 100_000;
/// Keys that one new key makes forgotten, at most: as many more go with the next.
const FORGOTTEN_AT_ONCE: usize = 4;

/// The keys that requests came with.
#[derive(Debug)]
pub(super) struct Requests {
    catalog: Catalog,
    under_way: Mutex<HashSet<IdempotencyKey>>,
    ended: Condvar,
    remembered: Mutex<Remembered>,
}

/// The keys that are in the catalog, the oldest first.
#[derive(Debug)]
struct Remembered {
    keys: VecDeque<Known>,
    max: usize,
}

#[derive(Debug)]
struct Known {
    unix_ms: u64,
    key: Vec<u8>,
}

/// Record of a request.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Asked {
    request: String,
    ids: Vec<Uuid>,
    /// Those of the ids that were used. Version 0.1.0 did not write it down: there, all may have been.
    #[serde(default)]
    made: Option<Vec<Uuid>>,
    unix_ms: u64,
}

impl Asked {
    fn used(&self) -> &[Uuid] {
        self.made.as_deref().unwrap_or(&self.ids)
    }
}

/// The ids of what a request makes. While it lives no other request with the same key begins.
#[derive(Debug)]
pub(super) struct Chosen<'a> {
    pub(super) ids: Vec<Uuid>,
    under_key: Option<UnderKey<'a>>,
}

/// A request with a key.
#[derive(Debug)]
struct UnderKey<'a> {
    requests: &'a Requests,
    key: IdempotencyKey,
    asked: Asked,
}

impl Requests {
    pub(super) fn new(catalog: Catalog) -> Answer<Self> {
        Self::remembering(catalog, REMEMBERED_MAX)
    }

    fn remembering(catalog: Catalog, max: usize) -> Answer<Self> {
        let known = |(key, value): (Vec<u8>, Vec<u8>)| {
            // An unreadable record was never answered, and is the first to go.
            let unix_ms = serde_json::from_slice::<Asked>(&value).map_or(0, |asked| asked.unix_ms);
            Known { unix_ms, key }
        };
        let mut keys: Vec<Known> = catalog.all(Kind::Idempotency)?.into_iter().map(known).collect();
        keys.sort_by_key(|known| known.unix_ms);
        let mut remembered = Remembered { keys: keys.into(), max };
        let old = remembered.take_old(unix_ms(), usize::MAX);
        if !old.is_empty() {
            let forgotten: Vec<_> = old.iter().map(Known::forgotten).collect();
            catalog.write_with_last_room(&forgotten).map_err(WriteError::either_way)?;
        }
        let remembered = Mutex::new(remembered);
        Ok(Self { catalog, under_way: Mutex::default(), ended: Condvar::new(), remembered })
    }

    /// The ids for the `count` things that a request makes; the same as before where its key is known. `request` is
    /// all that tells it from others, in the client's own words: names may mean something else by now. A key that is not
    /// known is written down only if `check` finds that the request can be done.
    pub(super) fn choose(
        &self,
        key: Option<IdempotencyKey>,
        request: &impl Serialize,
        count: usize,
        check: impl FnOnce() -> Answer<()>,
    ) -> Answer<Chosen<'_>> {
        let fresh = || (0..count).map(|_| Uuid::now_v7()).collect::<Vec<_>>();
        let Some(key) = key else { return Ok(Chosen { ids: fresh(), under_key: None }) };
        let request = serde_json::to_string(request).expect("a request is plain data");
        let mut turn = UnderKey { requests: self, key: self.wait_for_turn(key), asked: Asked::default() };
        let known = self.catalog.get(Kind::Idempotency, turn.key.as_bytes())?;
        turn.asked = match known.and_then(|bytes| serde_json::from_slice::<Asked>(&bytes).ok()) {
            Some(asked) if asked.request == request => asked,
            Some(_) => {
                let why = format!("the idempotency key {:?} came with another request before", turn.key);
                return Err(Problem::new(Code::IdempotencyMismatch, why));
            }
            None => {
                check()?;
                let asked = Asked { request, ids: fresh(), made: Some(Vec::new()), unix_ms: unix_ms() };
                self.remember(turn.key.clone().into_bytes(), &asked)?;
                asked
            }
        };
        Ok(Chosen { ids: turn.asked.ids.clone(), under_key: Some(turn) })
    }

    fn wait_for_turn(&self, key: IdempotencyKey) -> IdempotencyKey {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        while !under_way.insert(key.clone()) {
            under_way = self.ended.wait(under_way).unwrap_or_else(PoisonError::into_inner);
        }
        key
    }

    /// Writes down what came under a key, and forgets the oldest where it is their time.
    fn remember(&self, key: Vec<u8>, asked: &Asked) -> Answer<()> {
        let mut old = self.remembered().take_old(asked.unix_ms, FORGOTTEN_AT_ONCE);
        let value = serde_json::to_vec(asked).expect("it is plain data");
        let mut changes: Vec<_> = old.iter().map(Known::forgotten).collect();
        changes.push(Change::Put { kind: Kind::Idempotency, key: key.clone(), value });
        // Nothing was made with the ids yet.
        let written = self.catalog.write(&changes).map_err(WriteError::either_way);
        let mut remembered = self.remembered();
        match written {
            Ok(()) => remembered.keys.push_back(Known { unix_ms: asked.unix_ms, key }),
            Err(_) => {
                while let Some(known) = old.pop() {
                    remembered.keys.push_front(known);
                }
            }
        }
        Ok(written?)
    }

    /// Forgets a key under which nothing was made.
    fn forget(&self, key: &IdempotencyKey) -> Answer<()> {
        let key = key.as_bytes();
        let removal = Change::Remove { kind: Kind::Idempotency, key: key.to_vec() };
        self.catalog.write(&[removal]).map_err(WriteError::either_way)?;
        let mut remembered = self.remembered();
        if let Some(place) = remembered.keys.iter().rposition(|known| known.key == key) {
            remembered.keys.remove(place);
        }
        Ok(())
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remembered {
    /// Takes out up to `count` that are too old or too many, one more being about to come.
    fn take_old(&mut self, now_ms: u64, count: usize) -> Vec<Known> {
        let mut old = Vec::new();
        while old.len() < count
            && let Some(first) = self.keys.front()
            && (self.keys.len() >= self.max || now_ms.saturating_sub(first.unix_ms) > REMEMBERED_MS)
        {
            old.extend(self.keys.pop_front());
        }
        old
    }
}

impl Known {
    fn forgotten(&self) -> Change {
        Change::Remove { kind: Kind::Idempotency, key: self.key.clone() }
    }
}

/// A thing that a request makes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Made {
    Sandbox,
    Snapshot,
}

impl Chosen<'_> {
    /// The changes that write down that things with these ids are made, for the transaction that makes them.
    pub(super) fn making(&mut self, ids: &[Uuid]) -> Vec<Change> {
        let Some(UnderKey { key, asked, .. }) = &mut self.under_key else { return Vec::new() };
        asked.made = Some([asked.used(), ids].concat());
        let value = serde_json::to_vec(asked).expect("it is plain data");
        vec![Change::Put { kind: Kind::Idempotency, key: key.as_bytes().to_vec(), value }]
    }

    /// Refuses a request that made one of these things, none of which is there, before: its id is not used again.
    pub(super) fn refuse_if_gone(&self, what: Made, ids: &[Uuid]) -> Answer<()> {
        let Some(UnderKey { key, asked, .. }) = &self.under_key else { return Ok(()) };
        let Some(id) = ids.iter().find(|id| asked.used().contains(id)) else { return Ok(()) };
        let word = match what {
            Made::Sandbox => "sandbox",
            Made::Snapshot => "snapshot",
        };
        let why = format!(
            "the {word} {id} that this request made under the idempotency key {key:?} is gone, and is not made a second \
             time: use another key for a new {word}"
        );
        let problem = Problem::new(Code::Gone, why);
        Err(match what {
            Made::Sandbox => problem.sandbox(*id),
            Made::Snapshot => problem.snapshot(SnapshotId::from(*id)),
        })
    }

    /// The thing that was made was undone: the same request under the same key is another one from here on, with ids of
    /// its own.
    pub(super) fn forget(&self) {
        if let Some(UnderKey { requests, key, .. }) = &self.under_key
            && let Err(error) = requests.forget(key)
        {
            tracing::warn!(%error, "the idempotency key of a request that failed is remembered");
        }
    }
}

impl Drop for UnderKey<'_> {
    fn drop(&mut self) {
        self.requests.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
        self.requests.ended.notify_all();
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
            let chosen = requests.choose(Some(key.to_owned()), &request, 2, || Ok(()));
            chosen.map(|chosen| chosen.ids.clone()).map_err(|problem| problem.code)
        };
        let first = ids("a", "pause x");
        assert_eq!(ids("a", "pause x"), first);
        assert_ne!(ids("b", "pause x"), first);
        assert_eq!(ids("a", "pause y"), Err(Code::IdempotencyMismatch));
    }

    #[test]
    fn the_newest_keys_are_remembered_and_no_more_over_a_restart_too() {
        let directory = tempfile::tempdir().expect("a directory");
        let catalog = Catalog::open(&directory.path().join("catalog")).expect("a catalog");
        let start = |max| Requests::remembering(catalog.clone(), max).expect("a catalog that can be read");
        let ids = |requests: &Requests, key: &str| {
            requests
                .choose(Some(key.to_owned()), &"run", 1, || Ok(()))
                .expect("there is room on the disk")
                .ids
                .clone()
        };
        let count = || catalog.all(Kind::Idempotency).expect("it can be read").len();
        let requests = start(3);
        let [first, _, third, fourth] = ["a", "b", "c", "d"].map(|key| ids(&requests, key));
        assert_eq!(count(), 3);
        assert_eq!(ids(&requests, "d"), fourth);
        assert_ne!(ids(&requests, "a"), first, "it is forgotten, and now the newest");
        drop(requests);
        let requests = start(4);
        assert_eq!((count(), ids(&requests, "c")), (3, third));
        drop(requests);
        start(2);
        assert_eq!(count(), 1, "one more is about to come");
    }

    #[test]
    fn a_key_whose_request_was_undone_is_free_and_its_ids_do_not_come_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let catalog = Catalog::open(&directory.path().join("catalog")).expect("a catalog");
        let requests = Requests::remembering(catalog.clone(), 9).expect("a catalog that can be read");
        let choose = || requests.choose(Some("a".to_owned()), &"fork", 2, || Ok(())).expect("there is room");
        let first = choose();
        let ids = first.ids.clone();
        first.forget();
        drop(first);
        assert_ne!(choose().ids, ids);
        assert_eq!(catalog.all(Kind::Idempotency).expect("it can be read").len(), 1);
    }

    #[test]
    fn what_was_made_under_a_key_and_is_gone_is_not_made_again_also_after_a_restart() {
        let directory = tempfile::tempdir().expect("a directory");
        let catalog = Catalog::open(&directory.path().join("catalog")).expect("a catalog");
        let start = || Requests::new(catalog.clone()).expect("a catalog that can be read");
        let choose = |requests: &Requests, act: &dyn Fn(Chosen<'_>)| {
            let chosen = requests.choose(Some("a".to_owned()), &"pause", 2, || Ok(()));
            act(chosen.expect("there is room"));
        };
        let requests = start();
        choose(&requests, &|mut chosen| {
            chosen.refuse_if_gone(Made::Snapshot, &chosen.ids).expect("nothing was made yet");
            let first = chosen.ids[0];
            catalog.write(&chosen.making(&[first])).expect("there is room");
        });
        drop(requests);
        choose(&start(), &|chosen| {
            chosen.refuse_if_gone(Made::Snapshot, &chosen.ids[1..]).expect("it was not made");
            let gone = chosen.refuse_if_gone(Made::Snapshot, &chosen.ids).expect_err("the first was made");
            assert_eq!((gone.code, gone.snapshots), (Code::Gone, vec![chosen.ids[0]]));
        });
    }

    #[test]
    fn a_request_that_cannot_be_done_leaves_its_key_free() {
        let directory = tempfile::tempdir().expect("a directory");
        let catalog = Catalog::open(&directory.path().join("catalog")).expect("a catalog");
        let requests = Requests::new(catalog).expect("a catalog that can be read");
        let no = || Err(Problem::new(Code::NotFound, "there is no such sandbox"));
        let refused =
            requests.choose(Some("a".to_owned()), &"pause x", 1, no).expect_err("it cannot be done");
        assert_eq!(refused.code, Code::NotFound);
        requests.choose(Some("a".to_owned()), &"pause y", 1, || Ok(())).expect("the key is free");
    }

    #[test]
    fn keys_of_yesterday_are_forgotten_while_the_daemon_runs() {
        let known = |unix_ms| Known { unix_ms, key: Vec::new() };
        let mut remembered = Remembered { keys: [1, 2, 3, 4].map(known).into(), max: 100 };
        assert!(remembered.take_old(REMEMBERED_MS + 1, 9).is_empty());
        assert_eq!(remembered.take_old(REMEMBERED_MS + 4, 2).len(), 2);
        assert_eq!(remembered.take_old(REMEMBERED_MS + 4, 2).len(), 1);
        assert_eq!(remembered.keys.len(), 1);
    }
}
