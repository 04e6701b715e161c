//! A deletion of the first snapshot that can be undone, and somebody who undoes it.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::fault::Fault;
use super::world::{FIRST, World, copy_by, snapshot};
use crate::collect_steps::Manifests;
use crate::collectable::Collectable;
use crate::identity::SnapshotId;
use crate::manifest::Edition;
use crate::undelete_steps::{UndeleteStep, Undeleting};
use crate::withdrawal::{Signs, Withdrawal};

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Undeletion {
    /// The signs that are in the store.
    signs: Signs,
    is_deleted: bool,
    /// The window has passed.
    is_over: bool,
    /// Puts of signs that may land later.
    late: BTreeSet<Collectable>,
    by: Undeleter,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Undeleter {
    Idle,
    At(Undeleting),
    /// It was told that the snapshot is back.
    Done,
    /// It was told that the snapshot is gone, or had no answer.
    Ended,
}

const WITHDRAWAL: Withdrawal = Withdrawal { id: Uuid::from_u128(1), window_seconds: 60 };

fn sign() -> Collectable {
    Collectable::Withdrawal(snapshot(FIRST), WITHDRAWAL)
}

fn undone() -> Collectable {
    Collectable::Undone(snapshot(FIRST), WITHDRAWAL.id)
}

impl World {
    /// The same with a deletion of the first snapshot that can be undone; its manifest was put twice, and lands once more.
    pub(super) fn with_undeletion(mut self) -> Self {
        self.open_puts.insert((snapshot(FIRST), Edition::FIRST, copy_by(FIRST, 0)));
        let (signs, late) = (Signs::default(), BTreeSet::new());
        self.undeletion =
            Some(Undeletion { signs, is_deleted: false, is_over: false, late, by: Undeleter::Idle });
        self
    }

    /// Takes a sign away, as a collector does.
    pub(super) fn remove_sign(&mut self, object: Collectable, fault: Option<Fault>) {
        if fault == Some(Fault::NoTombstoneAtEnd) {
            self.manifests.retain(|(id, _), _| *id != snapshot(FIRST));
        }
        let signs = &mut self.undeletion.as_mut().expect("there are signs").signs;
        match object {
            Collectable::Withdrawal(_, withdrawal) => drop(signs.withdrawn.remove(&withdrawal)),
            Collectable::Undone(_, id) => drop(signs.undone.remove(&id)),
            Collectable::Layer(_) | Collectable::Manifest(..) | Collectable::WorkingSet(..) => {
                unreachable!("it is no sign")
            }
        }
    }

    fn with(&self, change: impl FnOnce(&mut Undeletion)) -> Self {
        let mut world = self.clone();
        change(world.undeletion.as_mut().expect("there is one"));
        world
    }
}

impl Undeletion {
    /// Adds to a collector's look what it sees of the signs.
    pub(super) fn add_to(&self, counted: &mut Manifests, has_tombstone: bool) {
        if has_tombstone {
            counted.signed_and_deleted.insert(snapshot(FIRST));
        } else if self.is_over {
            counted.over.extend(self.signs.standing().map(|standing| (snapshot(FIRST), standing)));
        }
    }

    /// The deletions whose signs are in the store, undone or not.
    pub(super) fn withdrawn(&self) -> Vec<(SnapshotId, Withdrawal)> {
        self.signs.withdrawn.iter().map(|withdrawal| (snapshot(FIRST), *withdrawal)).collect()
    }

    /// The signs in the store.
    pub(super) fn objects(&self) -> Vec<Collectable> {
        let withdrawn = self.signs.withdrawn.iter().map(|_| sign());
        withdrawn.chain(self.signs.undone.iter().map(|_| undone())).collect()
    }

    /// True if it was told that the snapshot is back, which is not there for readers.
    pub(super) fn is_broken(&self, world: &World) -> bool {
        let first = snapshot(FIRST);
        let is_there = !world.tombstones.contains(&first)
            && self.signs.standing().next().is_none()
            && world.manifests.contains_key(&(first, Edition::FIRST))
            && world.copies.contains(&copy_by(FIRST, 0));
        self.by == Undeleter::Done && !is_there
    }

    /// All worlds that are one step of these away.
    pub(super) fn steps(&self, world: &World, fault: Option<Fault>, next: &mut Vec<(String, World)>) {
        for late in &self.late {
            let landed = world.with(|undeletion| {
                undeletion.late.remove(late);
                undeletion.put(*late);
            });
            next.push((format!("{late} lands late"), landed));
        }
        if !self.is_deleted {
            let deleted = world.with(|undeletion| {
                undeletion.is_deleted = true;
                undeletion.put(sign());
            });
            let twice = deleted.with(|undeletion| undeletion.late = BTreeSet::from([sign()]));
            next.push(("the deleter puts its sign".to_owned(), deleted));
            next.push(("the deleter puts its sign, twice".to_owned(), twice));
        }
        if self.is_deleted && !self.is_over {
            next.push((
                "the window has passed".to_owned(),
                world.with(|undeletion| undeletion.is_over = true),
            ));
        }
        match &self.by {
            Undeleter::Idle if self.is_deleted => {
                // The snapshot is not deleted for it if no sign of that is there.
                let is_visible = self.signs.standing().next().is_some();
                let begun = world.with(|undeletion| {
                    let undeleting = Undeleting::of(snapshot(FIRST), undeletion.signs.clone());
                    undeletion.by = if is_visible { Undeleter::At(undeleting) } else { Undeleter::Ended };
                });
                next.push(("the undeleter begins".to_owned(), begun));
            }
            Undeleter::At(undeleting) => self.undelete(world, undeleting.clone(), fault, next),
            Undeleter::Idle | Undeleter::Done | Undeleter::Ended => {}
        }
    }

    fn undelete(
        &self,
        world: &World,
        mut undeleting: Undeleting,
        fault: Option<Fault>,
        next: &mut Vec<(String, World)>,
    ) {
        let step = undeleting.next();
        let label = format!("the undeleter: {step:?}");
        let is_withheld = fault == Some(Fault::UndoneAfterLists);
        match step {
            UndeleteStep::PutUndone(id) => {
                undeleting.undone(id);
                if fault == Some(Fault::TombstoneBeforeLists) {
                    undeleting.looked(world.tombstones.contains(&snapshot(FIRST)));
                }
                // Without an answer it gives up, or tries again by the same name.
                let lost = world.with(|undeletion| {
                    undeletion.late.insert(undone());
                    undeletion.by = Undeleter::Ended;
                });
                next.push((format!("{label}, without an answer"), lost));
                let put = world.with(|undeletion| {
                    match fault {
                        Some(Fault::UndoneAfterLists) => {}
                        Some(Fault::SignTakenAway) => undeletion.signs.withdrawn.clear(),
                        _ => undeletion.put(undone()),
                    }
                    undeletion.by = Undeleter::At(undeleting);
                });
                next.push((label, put));
            }
            UndeleteStep::ListCondemned => {
                let lists = world.lists.values().flat_map(|list| list.0.iter().copied()).collect();
                let is_skipped = fault == Some(Fault::UndeleterReadsNoLists);
                undeleting.listed(&if is_skipped { BTreeSet::new() } else { lists });
                next.push((label, world.with(|undeletion| undeletion.by = Undeleter::At(undeleting))));
            }
            UndeleteStep::LookForTombstone => {
                let is_ignored = fault == Some(Fault::UndeleterLooksForNoTombstone);
                undeleting.looked(!is_ignored && world.tombstones.contains(&snapshot(FIRST)));
                let looked = world.with(|undeletion| {
                    if is_withheld {
                        undeletion.put(undone());
                    }
                    undeletion.by = Undeleter::At(undeleting);
                });
                next.push((label, looked));
            }
            UndeleteStep::Done => {
                next.push((label, world.with(|undeletion| undeletion.by = Undeleter::Done)));
            }
            UndeleteStep::Gone => {
                next.push((label, world.with(|undeletion| undeletion.by = Undeleter::Ended)));
            }
        }
    }

    fn put(&mut self, object: Collectable) {
        match object {
            Collectable::Withdrawal(_, withdrawal) => drop(self.signs.withdrawn.insert(withdrawal)),
            Collectable::Undone(_, id) => drop(self.signs.undone.insert(id)),
            Collectable::Layer(_) | Collectable::Manifest(..) | Collectable::WorkingSet(..) => {
                unreachable!("it is no sign")
            }
        }
    }
}
