//! The steps by which a node that runs sandboxes from a snapshot comes to rely on the copies of its layers, as values.
//!
//! 1. A root that names the copies.
//! 2. The lists of what collectors are about to delete, until none of them names a copy.
//! 3. **Then** the question whether each copy is there.
//!
//! From then on no collector deletes the copies that are there, until the root goes; also not after the snapshot was
//! deleted.

use std::collections::BTreeSet;

use crate::collectable::LayerCopy;
use crate::root::Root;

/// The next step of a node that is about to rely on copies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RelyStep {
    /// Put the root.
    PutRoot(Root),
    /// Read all lists of condemned objects; again after a while, if one named a copy.
    ListCondemned,
    /// Ask whether a copy is there.
    See(LayerCopy),
    /// Nothing is left to do.
    Done,
}

/// The way of a node to relying on the copies that a root names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Relying {
    root: Root,
    is_rooted: bool,
    /// True once no list named a copy, after the root was there.
    is_uncondemned: bool,
    seen: BTreeSet<LayerCopy>,
    gone: BTreeSet<LayerCopy>,
}

impl Relying {
    /// The beginning: nothing is done.
    #[must_use]
    pub const fn on(root: Root) -> Self {
        Self { root, is_rooted: false, is_uncondemned: false, seen: BTreeSet::new(), gone: BTreeSet::new() }
    }

    /// The end, for a root that was put while another root or a manifest covered all that it names.
    #[must_use]
    pub fn covered(root: Root) -> Self {
        let seen = root.named.clone();
        Self { root, is_rooted: true, is_uncondemned: true, seen, gone: BTreeSet::new() }
    }

    /// The root.
    #[must_use]
    pub const fn root(&self) -> &Root {
        &self.root
    }

    /// The next step.
    #[must_use]
    pub fn next(&self) -> RelyStep {
        if !self.is_rooted {
            return RelyStep::PutRoot(self.root.clone());
        }
        if !self.is_uncondemned {
            return RelyStep::ListCondemned;
        }
        let open = self.root.named.iter().find(|copy| !self.seen.contains(copy) && !self.gone.contains(copy));
        open.map_or(RelyStep::Done, |copy| RelyStep::See(*copy))
    }

    /// The root is there.
    pub const fn rooted(&mut self) {
        self.is_rooted = true;
    }

    /// These copies were on lists, all of which were read. False if one of them is named: collectors have still to decide.
    pub fn listed(&mut self, condemned: &BTreeSet<LayerCopy>) -> bool {
        self.is_uncondemned = self.root.named.is_disjoint(condemned);
        self.is_uncondemned
    }

    /// The copy is there, or not.
    pub fn looked(&mut self, copy: LayerCopy, is_there: bool) {
        if is_there {
            self.seen.insert(copy)
        } else {
            self.gone.insert(copy)
        };
    }

    /// The copies that are there as long as the root is, once all steps are done.
    #[must_use]
    pub fn relied_on(&self) -> Option<&BTreeSet<LayerCopy>> {
        (self.next() == RelyStep::Done).then_some(&self.seen)
    }
}
