use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStoreExt, PutPayload};
use uuid::Uuid;

use super::*;
use crate::store_identity::VERSION;

/// A place in which there is one store, another, or none.
#[derive(Debug, Clone, Default)]
struct Place(Arc<Mutex<Option<Arc<InMemory>>>>);

impl Place {
    fn mount(&self, store: Option<&Arc<InMemory>>) {
        *lock(&self.0) = store.cloned();
    }
}

impl StoreOpener for Place {
    fn open(&self, _: Holds) -> Result<OpenedStore, String> {
        match lock(&self.0).clone() {
            Some(there) => Ok(OpenedStore { objects: there, uploads: None }),
            None => Err("it is not there".to_owned()),
        }
    }
}

struct Node {
    place: Place,
    catalog: Catalog,
    runtime: tokio::runtime::Runtime,
    _directory: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let catalog = Catalog::open(&directory.path().join("catalog")).expect("a disk");
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
        Self { place: Place::default(), catalog, runtime, _directory: directory }
    }

    /// The gate of a start.
    fn gate(&self, published: Option<SnapshotId>, other: OtherStore) -> StoreGate {
        StoreGate::new(Box::new(self.place.clone()), self.catalog.clone(), published, other, keys())
    }

    fn check(&self, gate: &StoreGate) -> Result<(), String> {
        self.runtime.block_on(gate.checked()).map(drop).map_err(|Away(reason)| reason)
    }

    /// Decides at a start about the store that is mounted.
    fn start(&self, other: OtherStore) -> Result<(), String> {
        self.check(&self.gate(None, other))
    }
}

fn keys() -> KeyRing {
    KeyRing::of_name("default")
}

fn identity_of(node: &Node, store: &Arc<InMemory>) -> StoreIdentity {
    let store: Arc<dyn ObjectStore> = store.clone();
    node.runtime.block_on(StoreIdentity::read(&store)).expect("it can be read").expect("it has one")
}

#[test]
fn a_store_that_takes_anothers_place_is_away_until_the_first_is_back_or_a_person_accepts_it() {
    let (node, other_node) = (Node::new(), Node::new());
    let (first, empty, other) = (Arc::default(), Arc::default(), Arc::default());
    node.place.mount(Some(&first));
    node.start(OtherStore::Refused).expect("an empty place becomes a store");
    other_node.place.mount(Some(&other));
    other_node.start(OtherStore::Refused).expect("an empty place becomes a store");
    node.place.mount(Some(&empty));
    let reason = node.start(OtherStore::Refused).expect_err("nothing is in it");
    assert!(reason.contains("there is no store in its place"), "{reason}");
    node.place.mount(Some(&other));
    let reason = node.start(OtherStore::Refused).expect_err("it is another one");
    assert!(reason.contains(&identity_of(&node, &first).id.to_string()), "{reason}");
    node.place.mount(Some(&first));
    node.start(OtherStore::Refused).expect("it is back");
    node.place.mount(Some(&other));
    node.start(OtherStore::Accepted).expect("a person said so");
    node.start(OtherStore::Refused).expect("it was accepted for good");
    assert_eq!(identity_of(&node, &other), identity_of(&other_node, &other), "it is the other node's too");
}

#[test]
fn a_store_that_is_swapped_while_it_is_used_is_away_at_the_next_look_and_tried_again_later() {
    let node = Node::new();
    let first: Arc<InMemory> = Arc::default();
    node.place.mount(Some(&first));
    let gate = node.gate(None, OtherStore::Refused);
    node.check(&gate).expect("an empty place becomes a store");
    node.runtime.block_on(first.delete(&ObjectPath::from(OBJECT))).expect("it is there");
    let reason = node.check(&gate).expect_err("nobody says who it is");
    assert_eq!(gate.away().map(|Away(reason)| reason), Some(reason.clone()));
    assert_eq!(node.check(&gate), Err(reason), "it is not time to try again");
    assert!(node.runtime.block_on(first.head(&ObjectPath::from(OBJECT))).is_err(), "nothing was written");
}

#[test]
fn a_node_that_published_before_stores_had_identities_takes_only_the_store_that_has_what_it_published() {
    let node = Node::new();
    let (store, empty): (Arc<InMemory>, Arc<InMemory>) = Default::default();
    let published = SnapshotId::new();
    let manifest = ObjectPath::from(format!("manifests/{published}"));
    node.runtime.block_on(store.put(&manifest, PutPayload::from_static(b"a manifest"))).expect("RAM");
    node.place.mount(Some(&empty));
    let reason = node.check(&node.gate(Some(published), OtherStore::Refused)).expect_err("it is empty");
    assert!(reason.contains(&published.to_string()), "{reason}");
    node.place.mount(Some(&store));
    node.check(&node.gate(Some(published), OtherStore::Refused)).expect("it has the snapshot");
    assert_eq!(identity_of(&node, &store).epoch, 1);
}

#[test]
fn an_earlier_state_of_a_store_is_away_and_one_that_was_accepted_is_taken_by_all() {
    let (node, peer) = (Node::new(), Node::new());
    let (store, earlier): (Arc<InMemory>, Arc<InMemory>) = Default::default();
    for node in [&node, &peer] {
        node.place.mount(Some(&store));
        node.start(OtherStore::Refused).expect("it is the store of both");
    }
    let now = identity_of(&node, &store);
    let set = |store: &Arc<InMemory>, epoch| {
        let store: Arc<dyn ObjectStore> = store.clone();
        let state = StoreIdentity { epoch, ..now };
        node.runtime.block_on(state.write(&store, PutMode::Overwrite)).expect("RAM");
    };
    set(&store, 5);
    node.start(OtherStore::Refused).expect("an epoch may grow");
    set(&earlier, 4);
    node.place.mount(Some(&earlier));
    let reason = node.start(OtherStore::Refused).expect_err("its epoch fell");
    assert!(reason.contains("epoch 4 instead of 5"), "{reason}");
    node.start(OtherStore::Accepted).expect("a person said so");
    assert_eq!(identity_of(&node, &earlier).epoch, 6);
    peer.place.mount(Some(&earlier));
    peer.start(OtherStore::Refused).expect("its epoch grew");
}

/// A store that is opened only once a test allows it.
#[derive(Debug)]
struct Hanging(Place, Mutex<std::sync::mpsc::Receiver<()>>);

impl StoreOpener for Hanging {
    fn open(&self, holds: Holds) -> Result<OpenedStore, String> {
        lock(&self.1).recv().expect("the test says so");
        self.0.open(holds)
    }
}

#[test]
fn a_store_that_hangs_while_it_is_opened_is_away_and_holds_nobody_up_until_it_answers() {
    let node = Node::new();
    node.place.mount(Some(&Arc::default()));
    let (go_on, hangs) = std::sync::mpsc::channel();
    let opener = Box::new(Hanging(node.place.clone(), Mutex::new(hangs)));
    let mut gate = StoreGate::new(opener, node.catalog.clone(), None, OtherStore::Refused, keys());
    gate.answer_within = Duration::ZERO;
    for _ in 0..3 {
        let reason = node.check(&gate).expect_err("it hangs");
        assert!(reason.contains("does not answer"), "{reason}");
        assert_eq!(gate.away(), Some(Away(reason)));
        lock(&gate.standing).again = Instant::now();
    }
    gate.answer_within = limits::STORE_ANSWER_WITHIN;
    // Said once: it was opened by one thread, however often it was tried.
    go_on.send(()).expect("it waits for this");
    assert_eq!(node.check(&gate), Ok(()));
    assert_eq!(gate.away(), None);
}

#[test]
fn a_store_that_is_away_is_so_for_others_at_once_while_one_tries_it_again() {
    let node = Node::new();
    let gate = node.gate(None, OtherStore::Refused);
    let reason = node.check(&gate).expect_err("it is not there");
    lock(&gate.standing).again = Instant::now();
    let tries = gate.opening.try_lock().expect("nobody tries");
    assert_eq!(node.check(&gate), Err(reason));
    drop(tries);
}

#[test]
fn an_earlier_state_of_a_store_is_refused_where_no_epoch_is_left_for_it() {
    let node = Node::new();
    let (store, earlier): (Arc<InMemory>, Arc<InMemory>) = Default::default();
    let last = StoreIdentity { version: VERSION, id: Uuid::now_v7(), epoch: u64::MAX };
    for (objects, identity) in [(&store, last), (&earlier, StoreIdentity { epoch: 1, ..last })] {
        let objects: Arc<dyn ObjectStore> = objects.clone();
        node.runtime.block_on(identity.write(&objects, PutMode::Create)).expect("RAM");
    }
    node.place.mount(Some(&store));
    node.start(OtherStore::Refused).expect("it is a store");
    node.place.mount(Some(&earlier));
    let reason = node.start(OtherStore::Accepted).expect_err("there is no epoch after the last");
    assert!(reason.contains("no earlier state of it can be accepted"), "{reason}");
}

/// A manifest, and what its publisher does after it was put.
struct Publish<'a> {
    node: &'a Node,
    gate: Arc<StoreGate>,
    store: Arc<InMemory>,
}

impl<'a> Publish<'a> {
    /// The engine that published before has ended: a start finds the store that is mounted to be the right one.
    fn start(node: &'a Node, store: &Arc<InMemory>) -> Self {
        node.place.mount(Some(store));
        let gate = Arc::new(node.gate(None, OtherStore::Refused));
        node.check(&gate).expect("it is the store");
        Self { node, gate, store: Arc::clone(store) }
    }

    fn leave_sign(&self) -> NewSign {
        let store: Arc<dyn ObjectStore> = self.store.clone();
        self.node.runtime.block_on(self.gate.leave_sign(store)).expect("RAM")
    }

    fn record(&self, sign: &NewSign) {
        self.node.catalog.write(&[sign.change()]).expect("a disk");
    }

    fn whole(&self) {
        self.node.check(&self.gate).expect("it is the store still");
        let sign = self.leave_sign();
        self.record(&sign);
        sign.remembered();
        self.node.runtime.block_on(self.gate.delete_old_signs());
    }
}

fn signs_in(node: &Node, store: &Arc<InMemory>) -> Vec<ObjectPath> {
    let all = futures_util::StreamExt::collect::<Vec<_>>(store.list(Some(&ObjectPath::from("nodes"))));
    node.runtime.block_on(all).into_iter().map(|object| object.expect("RAM").location).collect()
}

/// A copy as it is now.
fn copy(store: &Arc<InMemory>) -> Arc<InMemory> {
    Arc::new(store.fork())
}

#[test]
fn an_earlier_state_of_a_store_that_lacks_what_was_published_is_away_until_a_person_accepts_it() {
    let node = Node::new();
    let store = Arc::default();
    let publish = Publish::start(&node, &store);
    publish.whole();
    let earlier = copy(&store);
    publish.whole();
    node.place.mount(Some(&earlier));
    let reason = node.start(OtherStore::Refused).expect_err("it lacks the last one");
    for told in ["earlier state of the store", "does not have the sign", "rekindle serve --accept-store"] {
        assert!(reason.contains(told), "{reason}");
    }
    node.place.mount(Some(&store));
    node.start(OtherStore::Refused).expect("it is back");
    node.place.mount(Some(&earlier));
    let gate = node.gate(None, OtherStore::Accepted);
    assert_eq!(gate.is_accepted(), None, "it is not open");
    node.check(&gate).expect("a person said so");
    assert_eq!((gate.is_accepted(), identity_of(&node, &earlier).epoch), (Some(true), 2));
    let again = node.gate(None, OtherStore::Refused);
    node.check(&again).expect("it was accepted for good");
    assert_eq!(again.is_accepted(), Some(true), "nobody looked for what was published");
    again.note_looked_for().expect("a disk");
    assert_eq!(again.is_accepted(), Some(false));
    node.place.mount(Some(&store));
    node.start(OtherStore::Refused).expect_err("it is the earlier state now");
}

#[test]
fn a_crash_between_any_two_steps_after_a_manifest_gives_no_false_alarm() {
    let node = Node::new();
    let store = Arc::default();
    Publish::start(&node, &store).whole();
    for steps in 0..4 {
        let publish = Publish::start(&node, &store);
        let sign = (steps > 0).then(|| publish.leave_sign());
        if let Some(sign) = sign {
            if steps > 1 {
                publish.record(&sign);
            }
            if steps > 2 {
                sign.remembered();
            }
        }
        let next = Publish::start(&node, &store);
        next.whole();
        next.whole();
        assert_eq!(signs_in(&node, &store).len(), 1, "nothing is left after {steps} steps");
    }
}

#[test]
fn an_older_catalog_finds_its_store_by_the_later_signs_and_notices_earlier_states_from_there_on() {
    let node = Node::new();
    let store = Arc::default();
    Publish::start(&node, &store).whole();
    let older = Sign::remembered(&node.catalog).expect("a disk").expect("it is remembered");
    for _ in 0..3 {
        Publish::start(&node, &store).whole();
    }
    node.catalog.write(&[older.change()]).expect("a disk");
    let publish = Publish::start(&node, &store);
    let earlier = copy(&store);
    publish.whole();
    node.place.mount(Some(&earlier));
    node.start(OtherStore::Refused).expect_err("it lacks what the older catalog published");
}

#[test]
fn a_sign_that_lands_late_is_not_taken_for_that_of_a_later_manifest() {
    let node = Node::new();
    let store = Arc::default();
    let publish = Publish::start(&node, &store);
    publish.whole();
    let before = copy(&store);
    let late = publish.leave_sign();
    let path = late.sign.path();
    // Its put was told to have failed, and the store has no trace of it yet.
    node.runtime.block_on(store.delete(&path)).expect("it is there");
    drop(late);
    publish.whole();
    let earlier: Arc<dyn ObjectStore> = before.clone();
    node.runtime.block_on(earlier.put(&path, PutPayload::from_static(b"late"))).expect("RAM");
    node.place.mount(Some(&before));
    node.start(OtherStore::Refused).expect_err("the later manifest is not in it");
}

#[test]
fn a_node_that_remembers_no_sign_takes_its_store_and_leaves_one() {
    let (node, older) = (Node::new(), Node::new());
    let store = Arc::default();
    node.place.mount(Some(&store));
    node.start(OtherStore::Refused).expect("an empty place becomes a store");
    older.catalog.write(&[identity_of(&node, &store).change()]).expect("a disk");
    let publish = Publish::start(&older, &store);
    assert_eq!(publish.gate.is_accepted(), Some(false));
    let earlier = copy(&store);
    assert_eq!(signs_in(&node, &store).len(), 2, "one of each node");
    publish.whole();
    older.place.mount(Some(&earlier));
    older.start(OtherStore::Refused).expect_err("it lacks what was published since");
    node.start(OtherStore::Refused).expect("other nodes' signs mean nothing to it");
}

#[test]
fn an_accepted_earlier_state_is_taken_by_other_nodes_which_look_for_what_they_published() {
    let (node, peer) = (Node::new(), Node::new());
    let store = Arc::default();
    Publish::start(&node, &store).whole();
    let earlier = copy(&store);
    Publish::start(&peer, &store).whole();
    Publish::start(&node, &store).whole();
    node.place.mount(Some(&earlier));
    node.start(OtherStore::Accepted).expect("a person said so");
    let there = Publish::start(&peer, &earlier);
    assert_eq!(there.gate.is_accepted(), Some(true));
}
