//! The steps of one pass of a collector, as values, and its verdicts.
//!
//! 1. All roots, **then** all manifests, **then** all other objects are listed. Candidates are covered by neither root nor
//!    manifest.
//! 2. The list of the candidates is put.
//! 3. Roots, **then** manifests, are listed again; candidates that are covered now are struck.
//! 4. After a probation, the others are deleted.
//! 5. The list goes.
//!
//! A publisher that did not see the list had put its root before step 3. A root that is gone by then has left a manifest
//! or a tombstone, and those are listed after it.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::collectable::{Collectable, LayerCopy};
use crate::condemned::Condemned;
use crate::identity::SnapshotId;
use crate::manifest::Edition;
use crate::root::{Cause, Root};
use crate::withdrawal::Withdrawal;

/// The manifests of a store that count, with what they name: of each snapshot without a tombstone the newest edition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Manifests {
    /// The newest edition of each such snapshot; none if an older program put it.
    pub newest: BTreeMap<SnapshotId, Option<Edition>>,
    /// The copies that these name.
    pub named: BTreeSet<LayerCopy>,
    /// Deletions that were not undone, and can be undone no more, of snapshots without a tombstone.
    pub over: BTreeSet<(SnapshotId, Withdrawal)>,
    /// Snapshots with a tombstone at which signs of such deletions lie.
    pub signed_and_deleted: BTreeSet<SnapshotId>,
}

/// All that a collector must not delete, as listed at one time.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    publishers: HashSet<SnapshotId>,
    snapshots: HashSet<SnapshotId>,
    rooted: HashSet<LayerCopy>,
    manifests: Manifests,
}

/// The fate of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It stays.
    Kept(Kept),
    /// It is deleted if it is still not covered at the second look.
    Collected(Unneeded),
}

/// The reason that an object stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// A manifest names it.
    Named,
    /// A root names it, or covers all that its publisher uploaded.
    Rooted,
    /// It is the newest edition of the manifest.
    Newest,
    /// Its snapshot is there, or in use.
    OfSnapshot,
    /// Its snapshot can be brought back, or was.
    Undeletable,
}

/// The reason that an object is not needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unneeded {
    /// No manifest names it, and no root covers it.
    Unnamed,
    /// A later edition of the manifest is there.
    Replaced,
    /// The snapshot was deleted.
    OfDeleted,
    /// The deletion of the snapshot can be undone no more.
    WindowOver,
}

/// The next step of a pass.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CollectStep {
    /// List all roots that are not abandoned, and read them.
    ListRoots,
    /// List all manifests and tombstones, and read the manifests that count.
    ListManifests,
    /// List all objects that could be collected.
    ListObjects,
    /// Put the list of condemned objects.
    PutList(Condemned),
    /// Wait for the probation to be over, then delete an object. A deletion that can be undone no more gets its tombstone
    /// first: manifests count until then, and what they name stays until a later pass.
    Delete(Collectable),
    /// Take the list away.
    TakeListAway,
    /// Nothing is left to do.
    Done,
}

/// One pass of a collector.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pass(Phase);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Roots(Look),
    Manifests(Look, Vec<Root>),
    Objects(Vec<Root>, Manifests),
    List(Condemned),
    Delete(BTreeSet<Collectable>),
    Over,
}

/// The first look finds candidates; the second one strikes those that are covered by then.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Look {
    First,
    Second(Condemned),
}

impl Coverage {
    /// That of roots, and of manifests that were listed after them.
    #[must_use]
    pub fn of(roots: &[Root], manifests: Manifests) -> Self {
        let mut coverage = Self { manifests, ..Self::default() };
        for root in roots {
            coverage.snapshots.insert(root.snapshot);
            coverage.rooted.extend(&root.named);
            if root.cause == Cause::Publishes {
                coverage.publishers.insert(root.snapshot);
            }
        }
        coverage
    }

    /// The fate of an object.
    #[must_use]
    pub fn verdict(&self, object: &Collectable) -> Verdict {
        match object {
            Collectable::Layer(copy) if self.manifests.named.contains(copy) => Verdict::Kept(Kept::Named),
            Collectable::Layer(copy)
                if self.rooted.contains(copy) || self.publishers.contains(&copy.object.publisher) =>
            {
                Verdict::Kept(Kept::Rooted)
            }
            Collectable::Layer(_) => Verdict::Collected(Unneeded::Unnamed),
            Collectable::Manifest(snapshot, edition) => match self.manifests.newest.get(snapshot) {
                Some(newest) if edition >= newest => Verdict::Kept(Kept::Newest),
                Some(_) => Verdict::Collected(Unneeded::Replaced),
                None => Verdict::Collected(Unneeded::OfDeleted),
            },
            Collectable::WorkingSet(snapshot, _)
                if self.manifests.newest.contains_key(snapshot) || self.snapshots.contains(snapshot) =>
            {
                Verdict::Kept(Kept::OfSnapshot)
            }
            Collectable::WorkingSet(..) => Verdict::Collected(Unneeded::OfDeleted),
            Collectable::Withdrawal(snapshot, withdrawal)
                if self.manifests.over.contains(&(*snapshot, *withdrawal)) =>
            {
                Verdict::Collected(Unneeded::WindowOver)
            }
            Collectable::Withdrawal(snapshot, _) | Collectable::Undone(snapshot, _)
                if self.manifests.signed_and_deleted.contains(snapshot) =>
            {
                Verdict::Collected(Unneeded::OfDeleted)
            }
            Collectable::Withdrawal(..) | Collectable::Undone(..) => Verdict::Kept(Kept::Undeletable),
        }
    }

    /// True if the object stays.
    fn keeps(&self, object: &Collectable) -> bool {
        matches!(self.verdict(object), Verdict::Kept(_))
    }
}

impl Pass {
    /// A pass that has not begun.
    #[must_use]
    pub const fn new() -> Self {
        Self(Phase::Roots(Look::First))
    }

    /// The rest of a pass whose second look is done: its list is in the store since before that, and these objects of it
    /// are deleted.
    #[must_use]
    pub const fn of_doomed(doomed: BTreeSet<Collectable>) -> Self {
        Self(Phase::Delete(doomed))
    }

    /// The next step.
    #[must_use]
    pub fn next(&self) -> CollectStep {
        match &self.0 {
            Phase::Roots(_) => CollectStep::ListRoots,
            Phase::Manifests(..) => CollectStep::ListManifests,
            Phase::Objects(..) => CollectStep::ListObjects,
            Phase::List(condemned) => CollectStep::PutList(condemned.clone()),
            Phase::Delete(doomed) => {
                doomed.first().copied().map_or(CollectStep::TakeListAway, CollectStep::Delete)
            }
            Phase::Over => CollectStep::Done,
        }
    }

    /// The objects that are deleted, once the second look is done.
    #[must_use]
    pub fn doomed(&self) -> Option<&BTreeSet<Collectable>> {
        match &self.0 {
            Phase::Delete(doomed) => Some(doomed),
            Phase::Roots(_) | Phase::Manifests(..) | Phase::Objects(..) | Phase::List(_) | Phase::Over => {
                None
            }
        }
    }

    /// These are all roots.
    #[must_use]
    pub fn roots(self, roots: Vec<Root>) -> Self {
        let Phase::Roots(look) = self.0 else { unreachable!("roots are listed when they are asked for") };
        Self(Phase::Manifests(look, roots))
    }

    /// These are all manifests.
    #[must_use]
    pub fn manifests(self, manifests: Manifests) -> Self {
        match self.0 {
            Phase::Manifests(Look::First, roots) => Self(Phase::Objects(roots, manifests)),
            Phase::Manifests(Look::Second(Condemned(candidates)), roots) => {
                let coverage = Coverage::of(&roots, manifests);
                Self(Phase::Delete(candidates.into_iter().filter(|object| !coverage.keeps(object)).collect()))
            }
            Phase::Roots(_) | Phase::Objects(..) | Phase::List(_) | Phase::Delete(_) | Phase::Over => {
                unreachable!("manifests are listed when they are asked for")
            }
        }
    }

    /// These are all objects. At most `candidates_max` are condemned by one pass.
    #[must_use]
    pub fn objects(self, objects: impl IntoIterator<Item = Collectable>, candidates_max: usize) -> Self {
        let Phase::Objects(roots, manifests) = self.0 else {
            unreachable!("objects are listed when they are asked for")
        };
        let coverage = Coverage::of(&roots, manifests);
        let candidates = objects.into_iter().filter(|object| !coverage.keeps(object));
        let condemned = Condemned(candidates.take(candidates_max).collect());
        Self(if condemned.0.is_empty() { Phase::Over } else { Phase::List(condemned) })
    }

    /// The list is there.
    #[must_use]
    pub fn list_put(self) -> Self {
        let Phase::List(condemned) = self.0 else { unreachable!("the list is put when it is asked for") };
        Self(Phase::Roots(Look::Second(condemned)))
    }

    /// The object is gone.
    #[must_use]
    pub fn deleted(self, object: &Collectable) -> Self {
        let Phase::Delete(mut doomed) = self.0 else {
            unreachable!("an object is deleted when that is asked for")
        };
        doomed.remove(object);
        Self(Phase::Delete(doomed))
    }

    /// The list is gone.
    #[must_use]
    pub fn list_taken_away(self) -> Self {
        assert!(
            matches!(&self.0, Phase::Delete(left) if left.is_empty()),
            "all that is deleted is gone by then"
        );
        Self(Phase::Over)
    }
}

impl Default for Pass {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests;
