//! A store in memory with those who work on it, and each step that may come next.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::collecting::Collector;
use super::fault::Fault;
use super::undeletion::Undeletion;
use crate::collect_steps::{Manifests, Pass};
use crate::collectable::{Collectable, LayerCopy};
use crate::condemned::Condemned;
use crate::identity::{LayerId, SnapshotId};
use crate::manifest::{Edition, ObjectName};
use crate::publish_steps::{DeleteStep, PublishStep, Publishing};
use crate::rely_steps::{RelyStep, Relying};
use crate::root::{Cause, Root};

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) copies: BTreeSet<LayerCopy>,
    /// Those that are in the store, each with the copy that it names.
    pub(super) manifests: BTreeMap<(SnapshotId, Edition), LayerCopy>,
    /// By the number of their publisher.
    pub(super) roots: BTreeMap<usize, Root>,
    /// By the number of their collector.
    pub(super) lists: BTreeMap<usize, Condemned>,
    pub(super) tombstones: BTreeSet<SnapshotId>,
    /// Puts that may land later.
    pub(super) open_puts: BTreeSet<(SnapshotId, Edition, LayerCopy)>,
    publishers: Vec<Publisher>,
    pub(super) collectors: Vec<Collector>,
    /// A node that runs a sandbox from the first snapshot, until it ends.
    reader: Option<Reader>,
    /// Steps that the deleter of the first manifest has done.
    deleter: usize,
    /// The deletion of the first snapshot can be undone, and somebody does so, instead.
    pub(super) undeletion: Option<Undeletion>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Publisher {
    doing: Doing,
    publishing: Publishing,
    /// The copy that it would name.
    placed: Option<ObjectName>,
    /// The last edition that it put, with the copy in it.
    last: Option<(Edition, LayerCopy)>,
    uploads: u128,
    tries: u8,
    /// The root that is not put yet, and the copies that were there: for faults only.
    withheld: Option<Root>,
    sighted: Option<BTreeSet<LayerCopy>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Doing {
    Publish,
    Stay,
    Delete(usize),
    Gone,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Reader {
    relying: Relying,
    /// For faults only.
    is_root_withheld: bool,
}

const LAYER: LayerId = LayerId::from_bytes([1; 32]);

pub(super) fn snapshot(number: usize) -> SnapshotId {
    SnapshotId::from_bytes([u8::try_from(number).expect("they are few"); 16])
}

pub(super) fn copy_by(number: usize, upload: u128) -> LayerCopy {
    let object = ObjectName { publisher: snapshot(number), upload: Uuid::from_u128(upload) };
    LayerCopy { layer: LAYER, object }
}

/// The snapshot whose manifest names the old copy.
pub(super) const FIRST: usize = 0;

impl World {
    pub(super) fn new(publishers: usize, collectors: usize) -> Self {
        let old = copy_by(FIRST, 0);
        let publisher = |number| Publisher {
            doing: Doing::Publish,
            publishing: Publishing::of(snapshot(number)),
            placed: Some(old.object),
            last: None,
            uploads: 0,
            tries: 0,
            withheld: None,
            sighted: None,
        };
        Self {
            copies: BTreeSet::from([old]),
            manifests: BTreeMap::from([((snapshot(FIRST), Edition::FIRST), old)]),
            roots: BTreeMap::new(),
            lists: BTreeMap::new(),
            tombstones: BTreeSet::new(),
            open_puts: BTreeSet::new(),
            publishers: (1..=publishers).map(publisher).collect(),
            collectors: vec![Collector::At(Pass::new()); collectors],
            reader: None,
            deleter: 0,
            undeletion: None,
        }
    }

    /// The same with a node that is about to run a sandbox from the first snapshot.
    pub(super) fn with_reader(self) -> Self {
        let named = BTreeSet::from([copy_by(FIRST, 0)]);
        let relying = Relying::on(Root { snapshot: snapshot(FIRST), cause: Cause::Runs, named });
        Self { reader: Some(Reader { relying, is_root_withheld: false }), ..self }
    }

    /// The manifests that count.
    pub(super) fn counted(&self) -> Manifests {
        let mut counted = Manifests::default();
        if let Some(undeletion) = &self.undeletion {
            undeletion.add_to(&mut counted, self.tombstones.contains(&snapshot(FIRST)));
        }
        let mut newest = BTreeMap::new();
        for ((snapshot, edition), copy) in &self.manifests {
            if !self.tombstones.contains(snapshot) {
                newest.insert(*snapshot, (*edition, *copy));
            }
        }
        for (snapshot, (edition, copy)) in newest {
            counted.newest.insert(snapshot, Some(edition));
            counted.named.insert(copy);
        }
        counted
    }

    pub(super) fn objects(&self) -> Vec<Collectable> {
        let copies = self.copies.iter().copied().map(Collectable::Layer);
        let manifests = self.manifests.keys().map(|(id, edition)| Collectable::Manifest(*id, Some(*edition)));
        let signs = self.undeletion.iter().flat_map(Undeletion::objects);
        copies.chain(manifests).chain(signs).collect()
    }

    fn condemned(&self) -> BTreeSet<LayerCopy> {
        let objects = self.lists.values().flat_map(|list| &list.0);
        objects
            .filter_map(|object| if let Collectable::Layer(copy) = object { Some(*copy) } else { None })
            .collect()
    }

    fn put_root(&mut self, at: usize, root: &Root) {
        // An earlier root of the snapshot stays beside it until all go.
        let both = self.roots.get(&at).map_or_else(BTreeSet::new, |before| before.named.clone());
        let named = root.named.iter().copied().chain(both).collect();
        self.roots.insert(at, Root { named, ..root.clone() });
    }

    /// The fault of this state, if it has one.
    pub(super) fn wrong(&self) -> Option<&'static str> {
        let counted = self.counted();
        if !counted.named.is_subset(&self.copies) {
            return Some("a manifest that counts names a copy that is deleted");
        }
        if self.undeletion.as_ref().is_some_and(|undeletion| undeletion.is_broken(self)) {
            return Some("a snapshot that was brought back is gone");
        }
        if self.reader.as_ref().is_some_and(|reader| reader.is_misled(&self.copies)) {
            return Some("a copy is deleted that a sandbox reads");
        }
        let is_back = |(at, publisher): (usize, &Publisher)| {
            publisher.doing == Doing::Gone && counted.newest.contains_key(&snapshot(at + 1))
        };
        let is_ghost = self.publishers.iter().enumerate().any(is_back);
        is_ghost.then_some("a deleted snapshot is back")
    }

    /// All worlds that are one request away.
    pub(super) fn steps(&self, fault: Option<Fault>) -> Vec<(String, Self)> {
        let mut next = Vec::new();
        for put in &self.open_puts {
            let mut world = self.clone();
            world.open_puts.remove(put);
            let (id, edition, copy) = put;
            world.manifests.insert((*id, *edition), *copy);
            next.push((format!("a manifest of {id} lands late"), world));
        }
        if let Some(undeletion) = &self.undeletion {
            undeletion.steps(self, fault, &mut next);
        } else if let Some(step) = delete_step(self.deleter, fault) {
            let mut world = self.clone();
            world.delete(snapshot(FIRST), None, step, fault);
            world.deleter += 1;
            next.push((format!("the deleter: {step:?}"), world));
        }
        if let Some(reader) = &self.reader {
            next.push(("the reader ends".to_owned(), self.without_reader()));
            self.read(reader.clone(), fault, &mut next);
        }
        (0..self.publishers.len()).for_each(|at| self.publisher_steps(at, fault, &mut next));
        (0..self.collectors.len()).for_each(|at| self.collector_steps(at, fault, &mut next));
        next
    }

    fn without_reader(&self) -> Self {
        let mut world = self.clone();
        world.reader = None;
        world.roots.remove(&READER);
        world
    }

    fn read(&self, mut reader: Reader, fault: Option<Fault>, next: &mut Vec<(String, Self)>) {
        let (mut world, step) = (self.clone(), reader.relying.next());
        let label = format!("the reader: {step:?}");
        match step {
            RelyStep::PutRoot(root) => {
                reader.is_root_withheld = fault == Some(Fault::ReadersRootAfterLists);
                if !reader.is_root_withheld {
                    world.put_root(READER, &root);
                }
                reader.relying.rooted();
            }
            RelyStep::ListCondemned => {
                let is_skipped = fault == Some(Fault::ReaderReadsNoLists);
                reader.relying.listed(&if is_skipped { BTreeSet::new() } else { self.condemned() });
            }
            RelyStep::See(copy) => {
                if std::mem::take(&mut reader.is_root_withheld) {
                    world.put_root(READER, reader.relying.root());
                }
                let is_there = self.copies.contains(&copy) || fault == Some(Fault::ReaderSeesNothing);
                reader.relying.looked(copy, is_there);
            }
            RelyStep::Done => return,
        }
        world.reader = Some(reader);
        next.push((label, world));
    }

    /// Does a step of a deletion; false if it has to wait.
    fn delete(
        &mut self,
        id: SnapshotId,
        root: Option<usize>,
        step: DeleteStep,
        fault: Option<Fault>,
    ) -> bool {
        match step {
            DeleteStep::PutTombstone if puts_no_tombstone(fault) => {}
            DeleteStep::PutTombstone => drop(self.tombstones.insert(id)),
            DeleteStep::DeleteManifests => self.manifests.retain(|(of, _), _| *of != id),
            DeleteStep::TakeRootsAway => {
                let is_open = self.open_puts.iter().any(|(of, ..)| *of == id);
                if is_open && fault == Some(Fault::RootInsteadOfTombstone) {
                    return false;
                }
                if let Some(root) = root {
                    self.roots.remove(&root);
                }
            }
        }
        true
    }

    fn publisher_steps(&self, at: usize, fault: Option<Fault>, next: &mut Vec<(String, Self)>) {
        let (mut world, who) = (self.clone(), format!("publisher {at}"));
        match self.publishers[at].doing {
            Doing::Gone => {}
            Doing::Stay => {
                world.publishers[at].doing = Doing::Delete(0);
                next.push((format!("{who} is told to delete it"), world));
            }
            Doing::Delete(done) => {
                let Some(step) = delete_step(done, fault) else {
                    world.publishers[at].doing = Doing::Gone;
                    return next.push((format!("{who} is done"), world));
                };
                if world.delete(snapshot(at + 1), Some(at), step, fault) {
                    world.publishers[at].doing = Doing::Delete(done + 1);
                    next.push((format!("{who}: {step:?}"), world));
                }
            }
            Doing::Publish => self.publish(at, fault, next),
        }
    }

    fn publish(&self, at: usize, fault: Option<Fault>, next: &mut Vec<(String, Self)>) {
        let mut world = self.clone();
        let mut publisher = world.publishers[at].clone();
        let step = publisher.publishing.next(&[(LAYER, publisher.placed)]);
        let label = format!("publisher {at}: {step:?}");
        match step {
            PublishStep::PutRoot(root) => {
                publisher.sighted = (fault == Some(Fault::SeenBeforeListed)).then(|| self.copies.clone());
                if fault == Some(Fault::RootAfterLists) {
                    publisher.withheld = Some(root.clone());
                } else {
                    world.put_root(at, &root);
                }
                publisher.publishing.rooted(root);
            }
            PublishStep::ListCondemned => {
                let is_skipped = fault == Some(Fault::NoCondemned);
                publisher.publishing.listed(if is_skipped { BTreeSet::new() } else { self.condemned() });
            }
            PublishStep::Upload(_) => {
                let copy = copy_by(at + 1, publisher.uploads);
                publisher.uploads += 1;
                publisher.placed = Some(copy.object);
                publisher.publishing.uploaded(copy);
                world.copies.insert(copy);
            }
            PublishStep::See(copy) => {
                if let Some(root) = publisher.withheld.take() {
                    world.put_root(at, &root);
                }
                let is_own = copy.object.publisher == snapshot(at + 1);
                let there = publisher.sighted.as_ref().filter(|_| !is_own).unwrap_or(&self.copies);
                if there.contains(&copy) || fault == Some(Fault::NotSeen) {
                    publisher.publishing.seen(copy);
                } else {
                    publisher.placed = None;
                }
            }
            PublishStep::LookForTombstone => {
                if fault == Some(Fault::RootGoesFirst) {
                    world.roots.remove(&at);
                }
                publisher.publishing.has_no_tombstone();
            }
            PublishStep::PutManifest => {
                world.publishers[at] = publisher;
                return world.put_manifest(at, next);
            }
            PublishStep::TakeRootsAway => {
                let is_open = self.open_puts.iter().any(|(of, ..)| *of == snapshot(at + 1));
                if is_open && fault == Some(Fault::RootInsteadOfTombstone) {
                    return;
                }
                world.roots.remove(&at);
                publisher.doing = Doing::Stay;
            }
        }
        world.publishers[at] = publisher;
        next.push((label, world));
    }

    fn put_manifest(&self, at: usize, next: &mut Vec<(String, Self)>) {
        let (publisher, id) = (&self.publishers[at], snapshot(at + 1));
        let copy = LayerCopy { layer: LAYER, object: publisher.placed.expect("it was seen") };
        let edition = match publisher.last {
            None => Edition::FIRST,
            Some((edition, of)) if of == copy => edition,
            Some((edition, _)) => edition.next(),
        };
        let mut put = self.clone();
        put.publishers[at].last = Some((edition, copy));
        let mut answered = put.clone();
        answered.manifests.insert((id, edition), copy);
        answered.publishers[at].publishing.committed();
        let mut twice = answered.clone();
        twice.open_puts.insert((id, edition, copy));
        next.push((format!("publisher {at} puts edition {edition:?}"), answered));
        next.push((format!("publisher {at} puts edition {edition:?}, twice"), twice));
        // Without an answer it tries again, and gives up at last.
        put.open_puts.insert((id, edition, copy));
        let publisher = &mut put.publishers[at];
        publisher.tries += 1;
        publisher.publishing = Publishing::of(id);
        if publisher.tries > TRIES_MAX {
            publisher.doing = Doing::Delete(0);
        }
        next.push((format!("publisher {at} puts edition {edition:?} and has no answer"), put));
    }
}

impl Reader {
    /// True if it relies on a copy that is not there.
    fn is_misled(&self, copies: &BTreeSet<LayerCopy>) -> bool {
        let relied_on = self.relying.relied_on();
        relied_on.is_some_and(|relied_on| !relied_on.is_subset(copies))
    }
}

/// The number of the reader among those who have roots.
const READER: usize = 9;

/// Tries of a publish whose manifest's put has no answer, after the first one.
const TRIES_MAX: u8 = 1;

/// The step of a deletion after so many.
fn delete_step(done: usize, fault: Option<Fault>) -> Option<DeleteStep> {
    if fault == Some(Fault::TombstoneAfterRoot) {
        return [DeleteStep::DeleteManifests, DeleteStep::TakeRootsAway, DeleteStep::PutTombstone]
            .get(done)
            .copied();
    }
    DeleteStep::ALL.get(done).copied()
}

fn puts_no_tombstone(fault: Option<Fault>) -> bool {
    matches!(fault, Some(Fault::NoTombstone | Fault::RootInsteadOfTombstone))
}
