//! The roots that this node has in the store while it publishes, by the snapshots that they are for.

use std::collections::HashMap;

use crate::age::Age;
use crate::identity::SnapshotId;
use crate::limits;
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
    needed: HashMap<SnapshotId, Vec<HeldRoot>>,
    /// Those that no snapshot needs any more, and that could not be taken away yet.
    over: Vec<RootName>,
}

#[derive(Debug)]
struct HeldRoot {
    name: RootName,
    /// Its content, and when it was named; none of a root that an earlier process put.
    known: Option<(Root, Age)>,
}

impl HeldRoot {
    /// True if it has this content, and collectors cannot have given it up.
    fn is_trusted(&self, root: &Root) -> bool {
        self.known
            .as_ref()
            .is_some_and(|(known, named)| known == root && !named.is_over(limits::ROOT_TRUSTED_FOR))
    }
}

impl Roots {
    /// Puts a root. One with the same content is put again under its name; all others stay beside it.
    pub(crate) async fn put(&self, store: &Store, root: &Root) -> Result<(), StoreError> {
        // The node has its name once the store is open.
        store.objects().await?;
        let name = self.name_of(store, root);
        let put = store.put_root(name, root).await;
        self.note(name, root);
        put
    }

    /// Notes a root again if it was taken away while it was put: it may have landed after that.
    fn note(&self, name: RootName, root: &Root) {
        let mut held = lock(&self.0);
        let of_snapshot = held.needed.entry(root.snapshot).or_default();
        if of_snapshot.iter().all(|known| known.name != name) {
            of_snapshot.push(HeldRoot { name, known: Some((root.clone(), Age::now())) });
        }
    }

    /// The name of a root, which is noted before it is put: a put that fails may land.
    fn name_of(&self, store: &Store, root: &Root) -> RootName {
        let mut held = lock(&self.0);
        let of_snapshot = held.needed.entry(root.snapshot).or_default();
        if let Some(known) = of_snapshot.iter().find(|known| known.is_trusted(root)) {
            return known.name;
        }
        let name = store.name_for(root);
        of_snapshot.push(HeldRoot { name, known: Some((root.clone(), Age::now())) });
        name
    }

    /// Takes the roots of a snapshot away, whose manifest or tombstone is in the store, and any that are left over from
    /// others.
    pub(crate) async fn take_away(&self, store: &Store, snapshot: SnapshotId) -> Result<(), StoreError> {
        {
            let mut held = lock(&self.0);
            let of_snapshot = held.needed.remove(&snapshot).unwrap_or_default();
            held.over.extend(of_snapshot.into_iter().map(|held| held.name));
        }
        self.clear(store).await
    }

    /// The same; those that cannot be taken away now stay until a later try or start.
    pub(crate) async fn let_go(&self, store: &Store, snapshot: SnapshotId) {
        if let Err(error) = self.take_away(store, snapshot).await {
            tracing::warn!(%snapshot, %error, "a root stays in the store for now");
        }
    }

    /// Takes those roots away that an earlier process of this node left and no snapshot needs. The others go with their
    /// snapshot's other ones.
    pub(crate) async fn found(
        &self,
        store: &Store,
        names: impl IntoIterator<Item = RootName>,
        fate: impl Fn(SnapshotId) -> Fate,
    ) -> Result<(), StoreError> {
        for name in names {
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
                if of_snapshot.iter().all(|known| known.name != name) {
                    of_snapshot.push(HeldRoot { name, known: None });
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
