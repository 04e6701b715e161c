use object_store::memory::InMemory;

use super::*;

/// A place in which there is one store, another, or none.
#[derive(Debug, Clone, Default)]
struct Place(Arc<Mutex<Option<Arc<InMemory>>>>);

impl Place {
    fn mount(&self, store: Option<&Arc<InMemory>>) {
        *lock(&self.0) = store.cloned();
    }
}

impl StoreOpener for Place {
    fn open(&self, _: Holds) -> Result<Arc<dyn ObjectStore>, String> {
        match lock(&self.0).clone() {
            Some(there) => Ok(there),
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
        StoreGate::new(Box::new(self.place.clone()), self.catalog.clone(), published, other)
    }

    fn check(&self, gate: &StoreGate) -> Result<(), String> {
        self.runtime.block_on(gate.checked()).map(drop).map_err(|Away(reason)| reason)
    }

    /// Decides at a start about the store that is mounted.
    fn start(&self, other: OtherStore) -> Result<(), String> {
        self.check(&self.gate(None, other))
    }
}

fn identity_of(node: &Node, store: &Arc<InMemory>) -> StoreIdentity {
    let store: Arc<dyn ObjectStore> = store.clone();
    node.runtime.block_on(read(&store)).expect("it can be read").expect("it has one")
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
        let put = write(&store, StoreIdentity { epoch, ..now }, PutMode::Overwrite);
        node.runtime.block_on(put).expect("RAM");
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

/// A place that is opened only once a test says so.
#[derive(Debug)]
struct Hanging(Place, Mutex<std::sync::mpsc::Receiver<()>>);

impl StoreOpener for Hanging {
    fn open(&self, holds: Holds) -> Result<Arc<dyn ObjectStore>, String> {
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
    let mut gate = StoreGate::new(opener, node.catalog.clone(), None, OtherStore::Refused);
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
        node.runtime.block_on(write(&objects, identity, PutMode::Create)).expect("RAM");
    }
    node.place.mount(Some(&store));
    node.start(OtherStore::Refused).expect("it is a store");
    node.place.mount(Some(&earlier));
    let reason = node.start(OtherStore::Accepted).expect_err("there is no epoch after the last");
    assert!(reason.contains("no earlier state of it can be accepted"), "{reason}");
}
