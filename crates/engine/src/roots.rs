//! The roots that this node has in the store, by the snapshots that they are for.

use std::collections::HashMap;

use crate::identity::SnapshotId;
use crate::root::Root;
use crate::store::{Store, StoreError};
use crate::store_roots::RootName;
use crate::sync::{Mutex, lock};

/// Roots of this node. Each was put, or perhaps put.
#[derive(Debug, Default)]
pub struct Roots(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    /// Those of snapshots that are not published yet. An earlier process of this node put those without content.
    needed: HashMap<SnapshotId, Vec<(RootName, Option<Root>)>>,
    /// Those that no snapshot needs any more, and that could not be taken away yet.
    over: Vec<RootName>,
}

impl Roots {
    /// Puts a root. One with the same content is put again under its name; all others stay beside it.
    pub(crate) async fn put(&self, store: &Store, root: &Root) -> Result<(), StoreError> {
        let name = self.name_of(store, root);
        store.put_root(name, root).await
    }

    /// The name of a root, which is noted before it is put: a put that fails may land.
    fn name_of(&self, store: &Store, root: &Root) -> RootName {
        let mut held = lock(&self.0);
        let of_snapshot = held.needed.entry(root.snapshot).or_default();
        if let Some((name, _)) = of_snapshot.iter().find(|(_, known)| known.as_ref() == Some(root)) {
            return *name;
        }
        let name = store.new_root(root.snapshot);
        of_snapshot.push((name, Some(root.clone())));
        name
    }

    /// Takes the roots of a snapshot away, whose manifest or tombstone is in the store, and any that are left over from
    /// others.
    pub(crate) async fn take_away(&self, store: &Store, snapshot: SnapshotId) -> Result<(), StoreError> {
        {
            let mut held = lock(&self.0);
            let of_snapshot = held.needed.remove(&snapshot).unwrap_or_default();
            held.over.extend(of_snapshot.into_iter().map(|(name, _)| name));
        }
        self.clear(store).await
    }

    /// Finds the roots that an earlier process of this node left, and takes those away that are not `needed`. Those that
    /// are go with their snapshot's other ones.
    pub(crate) async fn find(
        &self,
        store: &Store,
        fate: impl Fn(SnapshotId) -> Fate,
    ) -> Result<(), StoreError> {
        for name in store.own_roots().await? {
            let is_over = match fate(name.snapshot) {
                Fate::Needed => false,
                Fate::Over => true,
                Fate::Unknown => store.is_settled(name.snapshot).await?,
            };
            let mut held = lock(&self.0);
            // It may have been published while the store was asked.
            if is_over || matches!(fate(name.snapshot), Fate::Over) {
                held.over.push(name);
            } else {
                let of_snapshot = held.needed.entry(name.snapshot).or_default();
                if of_snapshot.iter().all(|(known, _)| *known != name) {
                    of_snapshot.push((name, None));
                }
            }
        }
        self.clear(store).await
    }

    /// Takes all roots away that are over.
    async fn clear(&self, store: &Store) -> Result<(), StoreError> {
        let over = lock(&self.0).over.clone();
        for name in over {
            store.take_root_away(name).await?;
            lock(&self.0).over.retain(|left| *left != name);
        }
        Ok(())
    }
}

/// The fate of a root of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The snapshot is still to be published, or to be deleted from the store.
    Needed,
    /// Its manifest is there.
    Over,
    /// This node does not know the snapshot.
    Unknown,
}
