//! The collectors of a world, and the steps that they may take next.

use std::collections::BTreeSet;

use super::fault::Fault;
use super::undeletion::Undeletion;
use super::world::World;
use crate::collect_steps::{CollectStep, Look, Manifests, Pass, Phase};
use crate::collectable::Collectable;
use crate::condemned::Condemned;

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Collector {
    At(Pass),
    /// It ended. Its next start takes a list away of which nothing was deleted, and else deletes what was to be deleted.
    Ended {
        doomed: Option<BTreeSet<Collectable>>,
    },
    /// It has listed manifests and not yet roots: for one fault only.
    Swapped(Pass, Manifests),
}

impl World {
    pub(super) fn collector_steps(&self, at: usize, fault: Option<Fault>, next: &mut Vec<(String, Self)>) {
        let pass = match &self.collectors[at] {
            Collector::Ended { doomed: Some(doomed) } => {
                let pass = Pass::of_doomed(doomed.clone());
                return next.push((format!("collector {at} goes on"), self.collecting(at, pass)));
            }
            Collector::Ended { doomed: None } => {
                if self.lists.contains_key(&at) {
                    let mut world = self.clone();
                    world.lists.remove(&at);
                    next.push((format!("the list of collector {at}, which ended, goes"), world));
                }
                return;
            }
            Collector::Swapped(pass, manifests) => {
                let roots = self.roots.values().cloned().collect();
                let pass = pass.clone().roots(roots).manifests(manifests.clone());
                return next
                    .push((format!("collector {at}: roots, after manifests"), self.collecting(at, pass)));
            }
            Collector::At(pass) => pass,
        };
        let step = pass.next();
        if step == CollectStep::Done {
            return;
        }
        if *pass != Pass::new() {
            let mut world = self.clone();
            world.collectors[at] = Collector::Ended { doomed: pass.doomed().cloned() };
            next.push((format!("collector {at} ends"), world));
        }
        next.push((format!("collector {at}: {step:?}"), self.collect(at, pass.clone(), step, fault)));
    }

    /// The world after a step of a collector.
    fn collect(&self, at: usize, pass: Pass, step: CollectStep, fault: Option<Fault>) -> Self {
        let is_second_look = matches!(&pass.0, Phase::Roots(Look::Second(_)));
        match step {
            CollectStep::ListRoots if is_second_look && fault == Some(Fault::NoSecondLook) => {
                let over = self.undeletion.iter().flat_map(Undeletion::withdrawn).collect();
                self.collecting(
                    at,
                    pass.roots(Vec::new()).manifests(Manifests { over, ..Manifests::default() }),
                )
            }
            CollectStep::ListRoots if fault == Some(Fault::ManifestsBeforeRoots) => {
                let mut world = self.clone();
                world.collectors[at] = Collector::Swapped(pass, self.counted());
                world
            }
            CollectStep::ListRoots => {
                let roots = self.roots.values().cloned().collect();
                self.collecting(at, pass.roots(roots))
            }
            CollectStep::ListManifests => {
                let pass = pass.manifests(self.counted());
                let mut world = self.clone();
                if let (Some(doomed), Some(Fault::ListAfterSecondLook)) = (pass.doomed(), fault) {
                    world.lists.insert(at, Condemned(doomed.clone()));
                }
                world.collecting(at, pass)
            }
            CollectStep::ListObjects => self.collecting(at, pass.objects(self.objects(), usize::MAX)),
            CollectStep::PutList(list) => {
                let mut world = self.clone();
                if fault != Some(Fault::ListAfterSecondLook) {
                    world.lists.insert(at, list);
                }
                world.collecting(at, pass.list_put())
            }
            CollectStep::Delete(_) if fault == Some(Fault::ListGoesFirst) && self.lists.contains_key(&at) => {
                let mut world = self.clone();
                world.lists.remove(&at);
                world
            }
            // Its tombstone is a request of its own, before the sign goes.
            CollectStep::Delete(Collectable::Withdrawal(id, _))
                if fault != Some(Fault::NoTombstoneAtEnd) && !self.tombstones.contains(&id) =>
            {
                let mut world = self.clone();
                world.tombstones.insert(id);
                world
            }
            CollectStep::Delete(object) => {
                let mut world = self.clone();
                match object {
                    Collectable::Withdrawal(..) | Collectable::Undone(..) => world.remove_sign(object, fault),
                    Collectable::Layer(copy) => drop(world.copies.remove(&copy)),
                    Collectable::Manifest(id, edition) => {
                        world.manifests.remove(&(id, edition.expect("all have one here")));
                    }
                    Collectable::WorkingSet(..) => unreachable!("there are none here"),
                }
                world.collecting(at, pass.deleted(&object))
            }
            CollectStep::TakeListAway => {
                let mut world = self.clone();
                world.lists.remove(&at);
                world.collecting(at, pass.list_taken_away())
            }
            CollectStep::Done => unreachable!("it has no step"),
        }
    }

    fn collecting(&self, at: usize, pass: Pass) -> Self {
        let mut world = self.clone();
        world.collectors[at] = Collector::At(pass);
        world
    }
}
