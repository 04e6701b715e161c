//! The steps of a publish and of a deletion, as values: the order in which they leave every collector only what nobody relies
//! on.
//!
//! 1. A root, which covers what the snapshot uploads, and names all else that its manifest will name.
//! 2. The lists of what collectors are about to delete, **then** the question whether each object is there. Objects on
//!    a list or gone are uploaded anew.
//! 3. The manifest, unless the snapshot's tombstone is there.
//! 4. The end of the root.
//!
//! A deletion, also of a snapshot that was never published, puts the tombstone before all else.

use std::collections::BTreeSet;

use crate::collectable::LayerCopy;
use crate::identity::{LayerId, SnapshotId};
use crate::manifest::ObjectName;
use crate::root::{Cause, Root};

/// The next step of a publish.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PublishStep {
    /// Put a root.
    PutRoot(Root),
    /// Read all lists of condemned objects.
    ListCondemned,
    /// Upload a layer of which there is no copy to rely on.
    Upload(LayerId),
    /// Ask whether a copy is there.
    See(LayerCopy),
    /// Ask whether the snapshot has a tombstone.
    LookForTombstone,
    /// Put the manifest, with the copies that this step was asked with.
    PutManifest,
    /// Take the snapshot's roots away.
    TakeRootsAway,
}

/// A layer that the manifest will name, and its copy in the store if one is known.
pub type Placed = (LayerId, Option<ObjectName>);

/// One try to publish a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Publishing {
    snapshot: SnapshotId,
    root: Option<Root>,
    /// All condemned objects of layers, as listed after the last root was put.
    condemned: Option<BTreeSet<LayerCopy>>,
    /// Copies that this try uploaded: its root was there before them.
    uploaded: BTreeSet<LayerCopy>,
    /// Copies that were there after the lists were read and the last upload was done.
    seen: BTreeSet<LayerCopy>,
    has_no_tombstone: bool,
    is_committed: bool,
}

impl Publishing {
    /// A try that has not begun.
    #[must_use]
    pub fn of(snapshot: SnapshotId) -> Self {
        Self {
            snapshot,
            root: None,
            condemned: None,
            uploaded: BTreeSet::new(),
            seen: BTreeSet::new(),
            has_no_tombstone: false,
            is_committed: false,
        }
    }

    /// The next step, for layers whose copies are these now.
    #[must_use]
    pub fn next(&self, placed: &[Placed]) -> PublishStep {
        if self.is_committed {
            return PublishStep::TakeRootsAway;
        }
        if let Some(root) = self.wider_root(placed) {
            return PublishStep::PutRoot(root);
        }
        let Some(condemned) = &self.condemned else { return PublishStep::ListCondemned };
        let cannot_rely = |copy: &LayerCopy| condemned.contains(copy) && !self.uploaded.contains(copy);
        if let Some((layer, _)) =
            placed.iter().find(|placed| copy_of(placed).is_none_or(|copy| cannot_rely(&copy)))
        {
            return PublishStep::Upload(*layer);
        }
        let unseen = placed.iter().filter_map(copy_of).find(|copy| !self.seen.contains(copy));
        match unseen {
            Some(copy) => PublishStep::See(copy),
            None if self.has_no_tombstone => PublishStep::PutManifest,
            None => PublishStep::LookForTombstone,
        }
    }

    /// The root that is still to be put; it covers all that an earlier one of this try does.
    fn wider_root(&self, placed: &[Placed]) -> Option<Root> {
        let foreign = placed.iter().filter_map(copy_of).filter(|copy| copy.object.publisher != self.snapshot);
        let named = self.root.iter().flat_map(|root| root.named.iter().copied()).chain(foreign).collect();
        let root = Root { snapshot: self.snapshot, cause: Cause::Publishes, named };
        (self.root.as_ref() != Some(&root)).then_some(root)
    }

    /// The root is there.
    pub fn rooted(&mut self, root: Root) {
        self.root = Some(root);
        self.condemned = None;
    }

    /// These copies were on lists, all of which were read.
    pub fn listed(&mut self, condemned: BTreeSet<LayerCopy>) {
        self.condemned = Some(condemned);
    }

    /// The copy was uploaded. All others are looked for again, as the store may have been another one meanwhile.
    ///
    /// One that an earlier publisher had begun is not covered by the root yet, and is relied on like any other.
    pub fn uploaded(&mut self, copy: LayerCopy) {
        if copy.object.publisher == self.snapshot {
            self.uploaded.insert(copy);
        }
        self.seen.clear();
    }

    /// True if this try uploaded the copy.
    #[must_use]
    pub fn has_uploaded(&self, copy: &LayerCopy) -> bool {
        self.uploaded.contains(copy)
    }

    /// The copy is there. One that is not is no layer's copy any more.
    pub fn seen(&mut self, copy: LayerCopy) {
        self.seen.insert(copy);
    }

    /// The snapshot has no tombstone.
    pub fn has_no_tombstone(&mut self) {
        self.has_no_tombstone = true;
    }

    /// The manifest is there.
    pub fn committed(&mut self) {
        self.is_committed = true;
    }

    /// The root may have been given up by collectors, as this node showed no sign of life for long: all is done again.
    pub fn doubted(&mut self) {
        (self.root, self.condemned, self.has_no_tombstone) = (None, None, false);
        self.seen.clear();
        self.uploaded.clear();
    }
}

fn copy_of((layer, object): &Placed) -> Option<LayerCopy> {
    object.map(|object| LayerCopy { layer: *layer, object })
}

/// The steps of a deletion, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeleteStep {
    /// Put the tombstone: a manifest that lands later is none.
    PutTombstone,
    /// Delete all editions of the manifest.
    DeleteManifests,
    /// Take the roots away that this node has put to publish it.
    TakeRootsAway,
}

impl DeleteStep {
    /// All steps, in their order.
    pub const ALL: [Self; 3] = [Self::PutTombstone, Self::DeleteManifests, Self::TakeRootsAway];
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn copy(publisher: SnapshotId, upload: u128) -> LayerCopy {
        let object = ObjectName { publisher, upload: Uuid::from_u128(upload) };
        LayerCopy { layer: LayerId::from_bytes([1; 32]), object }
    }

    /// A publish that has done all but its manifest, and relies on this copy.
    fn ready(snapshot: SnapshotId, copy: LayerCopy) -> Publishing {
        let mut publishing = Publishing::of(snapshot);
        let placed = [(copy.layer, Some(copy.object))];
        loop {
            match publishing.next(&placed) {
                PublishStep::PutRoot(root) => publishing.rooted(root),
                PublishStep::ListCondemned => publishing.listed(BTreeSet::new()),
                PublishStep::See(copy) => publishing.seen(copy),
                PublishStep::LookForTombstone => publishing.has_no_tombstone(),
                PublishStep::PutManifest => return publishing,
                step @ (PublishStep::Upload(_) | PublishStep::TakeRootsAway) => unreachable!("{step:?}"),
            }
        }
    }

    #[test]
    fn a_publish_that_doubts_its_root_begins_with_it_again() {
        let (snapshot, copy) = (SnapshotId::new(), copy(SnapshotId::new(), 1));
        let mut publishing = ready(snapshot, copy);
        publishing.doubted();
        assert_eq!(publishing, Publishing::of(snapshot));
    }

    #[test]
    fn a_copy_that_an_earlier_publisher_had_begun_is_relied_on_only_under_a_root_that_names_it() {
        let (snapshot, copy) = (SnapshotId::new(), copy(SnapshotId::new(), 1));
        let mut publishing = Publishing::of(snapshot);
        let placed = [(copy.layer, None)];
        let PublishStep::PutRoot(root) = publishing.next(&placed) else { unreachable!("a root comes first") };
        publishing.rooted(root);
        publishing.listed(BTreeSet::new());
        assert_eq!(publishing.next(&placed), PublishStep::Upload(copy.layer));
        publishing.uploaded(copy);
        let named = BTreeSet::from([copy]);
        let wider = Root { snapshot, cause: Cause::Publishes, named };
        assert_eq!(publishing.next(&[(copy.layer, Some(copy.object))]), PublishStep::PutRoot(wider));
    }
}
