//! Does a request with a key once: the transaction that makes the first thing writes the key down, with the ids of all
//! that the request makes. A repeated request finds those things, or makes the rest.
//!
//! A key stays when what was made under it is deleted: a request that is repeated then is answered so, and makes nothing
//! a second time. A request that makes nothing leaves nothing, and its key is free.

use std::collections::{HashSet, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rekindle_api::control::{Answer, Asked, IdempotencyKey};
use rekindle_api::limits;
use rekindle_api::problem::{Code, Problem};
use rekindle_engine::catalog::{Catalog, Change, Kind, WriteError};
use rekindle_engine::identity::SnapshotId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::clock::unix_ms;

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
struct Request {
    /// The BLAKE3 hash of all that tells it from others; in version 0.1.0 that itself.
    request: String,
    ids: Vec<Uuid>,
    /// Those of the ids that were used. Version 0.1.0 did not write it down: there, all may have been.
    #[serde(default)]
    made: Option<Vec<Uuid>>,
    unix_ms: u64,
}

impl Request {
    fn new(words: &str, ids: Vec<Uuid>) -> Self {
        Self { request: hash_of(words), ids, made: Some(Vec::new()), unix_ms: unix_ms() }
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    fn is_of(&self, words: &str) -> bool {
        self.request == words || self.request == hash_of(words)
    }

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
    request: Request,
    /// The keys that are forgotten where this one is written for the first time; none before that.
    first_written: Option<Vec<Known>>,
}

impl Requests {
    pub(super) fn new(catalog: Catalog) -> Answer<Self> {
        Self::remembering(catalog, REMEMBERED_MAX)
    }

    fn remembering(catalog: Catalog, max: usize) -> Answer<Self> {
        let known = |(key, value): (Vec<u8>, Vec<u8>)| {
            // An unreadable record was never answered, and goes first, as does one under which nothing was made.
            let request = Request::read(&value).filter(|request| !request.used().is_empty());
            let unix_ms = request.map_or(0, |request| request.unix_ms);
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
    /// all that tells it from others, in the client's own words: names may mean something else by now.
    pub(super) fn choose(&self, asked: &Asked, request: &impl Serialize, count: usize) -> Answer<Chosen<'_>> {
        let fresh = || (0..count).map(|_| Uuid::now_v7()).collect::<Vec<_>>();
        let Some(key) = asked.key.clone() else { return Ok(Chosen { ids: fresh(), under_key: None }) };
        let words = serde_json::to_string(request).expect("a request is plain data");
        let key = self.wait_for_turn(key, asked)?;
        let mut turn = UnderKey { requests: self, key, request: Request::default(), first_written: None };
        let known = self.catalog.get(Kind::Idempotency, turn.key.as_bytes())?;
        turn.request = match known.and_then(|bytes| Request::read(&bytes)) {
            Some(request) if request.is_of(&words) => request,
            Some(request) if !request.used().is_empty() => {
                let why = format!("the idempotency key {:?} came with another request before", turn.key);
                return Err(Problem::new(Code::IdempotencyMismatch, why));
            }
            Some(_) | None => Request::new(&words, fresh()),
        };
        Ok(Chosen { ids: turn.request.ids.clone(), under_key: Some(turn) })
    }

    /// Waits as long as the client does for the request under way that has the key.
    fn wait_for_turn(&self, key: IdempotencyKey, asked: &Asked) -> Answer<IdempotencyKey> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            asked.check_before_it_begins()?;
            if under_way.insert(key.clone()) {
                return Ok(key);
            }
            let waited = self.ended.wait_timeout(under_way, limits::WAIT_TURN);
            under_way = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes note of a key where the transaction that was to write it did, in the place of `old` ones.
    fn remember(&self, key: &IdempotencyKey, unix_ms: u64, old: Vec<Known>) {
        let key = key.as_bytes().to_vec();
        // One that cannot be looked for now may be written.
        let is_written = !matches!(self.catalog.get(Kind::Idempotency, &key), Ok(None));
        let mut remembered = self.remembered();
        if is_written {
            remembered.keys.push_back(Known { unix_ms, key });
        } else {
            old.into_iter().rev().for_each(|known| remembered.keys.push_front(known));
        }
    }

    /// Forgets a key whose things were undone.
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
        let Some(UnderKey { requests, key, request, first_written }) = &mut self.under_key else {
            return Vec::new();
        };
        let is_new = request.used().is_empty() && first_written.is_none();
        request.made = Some([request.used(), ids].concat());
        if is_new {
            *first_written = Some(requests.remembered().take_old(request.unix_ms, FORGOTTEN_AT_ONCE));
        }
        let mut changes: Vec<_> = first_written.iter().flatten().map(Known::forgotten).collect();
        let value = serde_json::to_vec(request).expect("it is plain data");
        changes.push(Change::Put { kind: Kind::Idempotency, key: key.as_bytes().to_vec(), value });
        changes
    }

    /// The same of things that another node has made: `ids` are those of all that the request made, in place of the chosen ones.
    pub(super) fn making_elsewhere(&mut self, ids: &[Uuid]) -> Vec<Change> {
        if let Some(UnderKey { request, .. }) = &mut self.under_key {
            request.ids = ids.to_vec();
        }
        self.ids = ids.to_vec();
        self.making(ids)
    }

    /// True if the thing with that id was made by this request before.
    pub(super) fn has_made(&self, id: Uuid) -> bool {
        self.under_key
            .as_ref()
            .is_some_and(|under| under.request.made.iter().flatten().any(|made| *made == id))
    }

    /// Refuses a request that made one of these things, none of which is there, before: its id is not used again.
    pub(super) fn refuse_if_gone(&self, what: Made, ids: &[Uuid]) -> Answer<()> {
        let Some(UnderKey { key, request, .. }) = &self.under_key else { return Ok(()) };
        let Some(id) = ids.iter().find(|id| request.used().contains(id)) else { return Ok(()) };
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
        if let Some(old) = self.first_written.take() {
            self.requests.remember(&self.key, self.request.unix_ms, old);
        }
        self.requests.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
        self.requests.ended.notify_all();
    }
}

fn hash_of(words: &str) -> String {
    blake3::hash(words.as_bytes()).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn under(key: &str) -> Asked {
        Asked { key: Some(key.to_owned()), ..Asked::default() }
    }

    /// Makes the first thing of a request.
    fn make(catalog: &Catalog, chosen: &mut Chosen<'_>) {
        let first = chosen.ids[0];
        catalog.write(&chosen.making(&[first])).expect("there is room");
    }

    #[test]
    fn a_request_whose_client_is_gone_does_not_wait_for_the_one_that_has_its_key() {
        let directory = tempfile::tempdir().expect("a directory");
        let catalog = Catalog::open(&directory.path().join("catalog")).expect("a catalog");
        let requests = Requests::new(catalog).expect("a catalog that can be read");
        let first = requests.choose(&under("a"), &"pause x", 1).expect("there is room");
        let second = under("a");
        let waiting = second.asker.waits();
        let refused = std::thread::scope(|scope| {
            let refused = scope.spawn(|| requests.choose(&second, &"pause x", 1).map(drop));
            drop(waiting);
            refused.join().expect("it does not panic")
        });
        assert_eq!(refused.map_err(|problem| problem.code), Err(Code::Abandoned));
        drop(first);
        requests.choose(&under("a"), &"pause x", 1).expect("nobody has the key");
    }

    #[test]
    fn the_same_request_under_the_same_key_makes_the_same_things_also_after_a_restart() {
        let directory = tempfile::tempdir().expect("a directory");
        let catalog = Catalog::open(&directory.path().join("catalog")).expect("a catalog");
        let ids = |key: &str, request: &str| {
            let requests = Requests::new(catalog.clone()).expect("a catalog that can be read");
            let mut chosen = requests.choose(&under(key), &request, 2).map_err(|problem| problem.code)?;
            make(&catalog, &mut chosen);
            Ok(chosen.ids.clone())
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
            let mut chosen = requests.choose(&under(key), &"run", 1).expect("there is room on the disk");
            make(&catalog, &mut chosen);
            chosen.ids.clone()
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
        let choose = || requests.choose(&under("a"), &"fork", 2).expect("there is room");
        let mut first = choose();
        make(&catalog, &mut first);
        let ids = first.ids.clone();
        first.forget();
        drop(first);
        assert_ne!(choose().ids, ids);
        assert!(catalog.all(Kind::Idempotency).expect("it can be read").is_empty());
        assert!(requests.remembered().keys.is_empty());
    }

    #[test]
    fn what_was_made_under_a_key_and_is_gone_is_not_made_again_also_after_a_restart() {
        let directory = tempfile::tempdir().expect("a directory");
        let catalog = Catalog::open(&directory.path().join("catalog")).expect("a catalog");
        let start = || Requests::new(catalog.clone()).expect("a catalog that can be read");
        let choose = |requests: &Requests, act: &dyn Fn(Chosen<'_>)| {
            let chosen = requests.choose(&under("a"), &"pause", 2);
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
    fn a_request_that_made_nothing_leaves_nothing_and_its_key_is_free() {
        let directory = tempfile::tempdir().expect("a directory");
        let catalog = Catalog::open(&directory.path().join("catalog")).expect("a catalog");
        let requests = Requests::remembering(catalog.clone(), 1).expect("a catalog that can be read");
        let known = |requests: &Requests| {
            let all = catalog.all(Kind::Idempotency).expect("it can be read");
            assert_eq!(all.len(), requests.remembered().keys.len());
            all
        };
        make(&catalog, &mut requests.choose(&under("a"), &"run", 1).expect("there is room"));
        let before = known(&requests);
        for request in ["pause x", "pause y"] {
            let mut refused = requests.choose(&under("b"), &request, 1).expect("the key is free");
            // The transaction that would have made it failed.
            drop(refused.making(&[Uuid::from_u128(1)]));
        }
        assert_eq!(known(&requests), before, "and no other key was forgotten for it");
    }

    #[test]
    fn a_key_takes_little_room_whatever_its_request_was() {
        let directory = tempfile::tempdir().expect("a directory");
        let catalog = Catalog::open(&directory.path().join("catalog")).expect("a catalog");
        let requests = Requests::remembering(catalog.clone(), 9).expect("a catalog that can be read");
        let request = "label".repeat(100_000);
        make(&catalog, &mut requests.choose(&under("a"), &request, 1).expect("there is room"));
        let all = catalog.all(Kind::Idempotency).expect("it can be read");
        assert!(all[0].1.len() < 256, "{} bytes", all[0].1.len());
        requests.choose(&under("a"), &request, 1).expect("it is the same request");
    }

    #[test]
    fn a_request_that_version_0_1_0_wrote_down_is_known_and_one_that_made_nothing_is_forgotten() {
        let directory = tempfile::tempdir().expect("a directory");
        let catalog = Catalog::open(&directory.path().join("catalog")).expect("a catalog");
        let (words, id) = (serde_json::to_string("run").expect("plain data"), Uuid::from_u128(7));
        let written = |key: &str, made: &[Uuid]| {
            let value = serde_json::json!({
                "request": words, "ids": [id], "made": made, "unix_ms": unix_ms(),
            });
            Change::Put { kind: Kind::Idempotency, key: key.into(), value: value.to_string().into_bytes() }
        };
        catalog.write(&[written("made", &[id]), written("refused", &[])]).expect("there is room");
        let requests = Requests::new(catalog.clone()).expect("a catalog that can be read");
        assert_eq!(requests.choose(&under("made"), &"run", 1).expect("it is the same").ids, [id]);
        assert_eq!(catalog.all(Kind::Idempotency).expect("it can be read").len(), 1);
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
