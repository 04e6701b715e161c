//! Roots and condemned lists in the store.

use std::collections::BTreeSet;
use std::fmt;

use futures_util::stream::TryStreamExt;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStoreExt, PutPayload};
use uuid::Uuid;

use crate::collectable::{Collectable, LayerCopy};
use crate::condemned::Condemned;
use crate::identity::SnapshotId;
use crate::limits;
use crate::root::{Cause, Root};
use crate::store::{Store, StoreError};

/// The name of a root. No two roots share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RootName {
    node: Uuid,
    pub(crate) cause: Cause,
    pub(crate) snapshot: SnapshotId,
    id: Uuid,
}

/// Place of all roots.
pub(crate) const ROOTS: &str = "roots";
/// Place of all condemned lists.
pub(crate) const CONDEMNED: &str = "condemned";
/// Place of the signs of all nodes.
pub(crate) const NODES: &str = "nodes";
/// Last part of the name of a node's sign of life.
const ALIVE: &str = "alive";
/// Content of a sign of life; only its time counts.
const ALIVE_CONTENT: &[u8] = br#"{"version":1}"#;
/// Begins the last part of the name of a root that is there because sandboxes run.
const RUNS: &str = "runs-";

impl Store {
    /// The name of a new root of this node.
    pub(crate) fn name_for(&self, root: &Root) -> RootName {
        RootName { node: self.node(), cause: root.cause, snapshot: root.snapshot, id: Uuid::now_v7() }
    }

    /// Puts a root. Putting the same one again is harmless.
    pub(crate) async fn put_root(&self, name: RootName, root: &Root) -> Result<(), StoreError> {
        self.put(&name.path(), root.encode().into()).await
    }

    /// Deletes a root. The store is not checked first: in another store, none has this name.
    pub(crate) async fn take_root_away(&self, name: RootName) -> Result<(), StoreError> {
        let path = name.path();
        match self.objects().await?.delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(StoreError::from_store(&path, source)),
        }
    }

    /// The roots of this node.
    pub(crate) async fn own_roots(&self) -> Result<Vec<RootName>, StoreError> {
        self.checked().await?;
        let node = self.node();
        let listed = self.names_under(ObjectPath::from(format!("{ROOTS}/{node}"))).await?;
        // Other objects are nobody's.
        Ok(listed.iter().filter_map(|path| RootName::of(node, path)).collect())
    }

    /// The other nodes with sandboxes that run from a snapshot, by their roots.
    pub(crate) async fn runners_elsewhere(&self, snapshot: SnapshotId) -> Result<Vec<Uuid>, StoreError> {
        let listed = self.names_under(ObjectPath::from(ROOTS)).await?;
        let own = self.node();
        let root = |path: &ObjectPath| RootName::of(path.parts().nth(1)?.as_ref().parse().ok()?, path);
        let is_meant =
            |root: &RootName| root.cause == Cause::Runs && root.snapshot == snapshot && root.node != own;
        let nodes: BTreeSet<_> =
            listed.iter().filter_map(root).filter(is_meant).map(|root| root.node).collect();
        Ok(nodes.into_iter().collect())
    }

    /// The content of a root; none if it is gone.
    pub(crate) async fn read_root(&self, name: RootName) -> Result<Option<Root>, StoreError> {
        let path = name.path();
        match self.get_whole(path.clone(), limits::ROOT_BYTES_MAX).await {
            Ok(bytes) => match Root::decode(&bytes) {
                Ok(root) => Ok(Some(root)),
                Err(reason) => Err(StoreError::NotUnderstood { path, reason }),
            },
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts this node's sign of life, whose time is the store's. Roots are signs of life too, while they are young.
    pub(crate) async fn show_life(&self) -> Result<ObjectPath, StoreError> {
        // The node has its name once the store is open.
        self.objects().await?;
        let path = ObjectPath::from(format!("{NODES}/{}/{ALIVE}", self.node()));
        self.put(&path, PutPayload::from_static(ALIVE_CONTENT)).await?;
        Ok(path)
    }

    /// The copies of layers on all condemned lists.
    pub(crate) async fn condemned_copies(&self) -> Result<BTreeSet<LayerCopy>, StoreError> {
        let copy = |object| if let Collectable::Layer(copy) = object { Some(copy) } else { None };
        Ok(self.condemned().await?.into_iter().filter_map(copy).collect())
    }

    /// The objects on all condemned lists. One list that cannot be read is all that cannot.
    pub(crate) async fn condemned(&self) -> Result<BTreeSet<Collectable>, StoreError> {
        let mut condemned = BTreeSet::new();
        for path in self.names_under(ObjectPath::from(CONDEMNED)).await? {
            let bytes = match self.get_whole(path.clone(), limits::CONDEMNED_BYTES_MAX).await {
                Ok(bytes) => bytes,
                // All that it condemned is gone by now, and is not found when it is asked for.
                Err(StoreError::NotFound(_)) => continue,
                Err(error) => return Err(error),
            };
            let list =
                Condemned::decode(&bytes).map_err(|reason| StoreError::NotUnderstood { path, reason })?;
            condemned.extend(list.0);
        }
        Ok(condemned)
    }

    /// The names of all objects at a place. A page of the list that fails is a list that failed.
    pub(crate) async fn names_under(&self, place: ObjectPath) -> Result<Vec<ObjectPath>, StoreError> {
        let objects = self.objects().await?;
        let listed: Result<Vec<_>, _> =
            objects.list(Some(&place)).map_ok(|object| object.location).try_collect().await;
        listed.map_err(|source| StoreError::from_store(&place, source))
    }
}

impl RootName {
    fn path(self) -> ObjectPath {
        ObjectPath::from(self.to_string())
    }

    /// The root of `node` whose object this is.
    fn of(node: Uuid, path: &ObjectPath) -> Option<Self> {
        let name = path.filename()?;
        let (cause, name) = match name.strip_prefix(RUNS) {
            Some(name) => (Cause::Runs, name),
            None => (Cause::Publishes, name),
        };
        let (snapshot, id) = name.split_at_checked(UUID_BYTES)?;
        let (snapshot, id) = (snapshot.parse().ok()?, id.strip_prefix('-')?.parse().ok()?);
        let name = Self { node, cause, snapshot, id };
        (name.path() == *path).then_some(name)
    }
}

impl fmt::Display for RootName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cause = match self.cause {
            Cause::Publishes => "",
            Cause::Runs => RUNS,
        };
        write!(out, "{ROOTS}/{}/{cause}{}-{}", self.node, self.snapshot, self.id)
    }
}

/// Length of a UUID as text.
const UUID_BYTES: usize = 36;

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_root_has_one_name() {
        let (node, snapshot) = (Uuid::from_u128(1), SnapshotId::new());
        for cause in [Cause::Publishes, Cause::Runs] {
            let name = RootName { node, cause, snapshot, id: Uuid::from_u128(2) };
            assert_eq!(RootName::of(node, &name.path()), Some(name));
            assert_eq!(RootName::of(Uuid::from_u128(3), &name.path()), None);
            for other in ["x", "", "/x"] {
                assert_eq!(RootName::of(node, &ObjectPath::from(format!("{name}{other}x"))), None);
            }
        }
    }
}
