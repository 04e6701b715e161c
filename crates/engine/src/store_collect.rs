//! Lists and deletions of a store that only a collector asks for.

use futures_util::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStoreExt};
use uuid::Uuid;

use crate::collectable::Collectable;
use crate::condemned::Condemned;
use crate::store::{Store, StoreError};
use crate::store_roots::{CONDEMNED, NODES};

impl Store {
    /// All objects at a place. A page of the list that fails is a list that failed.
    pub(crate) async fn list_all(&self, place: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        let (objects, place) = (self.checked().await?, ObjectPath::from(place));
        let listed: Result<Vec<_>, _> = objects.list(Some(&place)).try_collect().await;
        listed.map_err(|source| StoreError::from_store(&place, source))
    }

    /// All objects. A page of the list that fails is a list that failed.
    pub(crate) async fn list_everything(&self) -> Result<Vec<ObjectMeta>, StoreError> {
        let listed: Result<Vec<_>, _> = self.checked().await?.list(None).try_collect().await;
        listed.map_err(|source| StoreError::from_store(&ObjectPath::default(), source))
    }

    /// The time of the store now, in milliseconds since 1970. Leaves this node's sign of life.
    pub(crate) async fn time_now(&self) -> Result<i64, StoreError> {
        // The node has its name once the store is open.
        let objects = self.checked().await?;
        let path = self.show_life().await?;
        let shown = objects.head(&path).await.map_err(|source| StoreError::from_store(&path, source))?;
        Ok(shown.last_modified.timestamp_millis())
    }

    /// The name of a new condemned list of this node.
    pub(crate) fn new_list(&self) -> ObjectPath {
        ObjectPath::from(format!("{CONDEMNED}/{}/{}", self.node(), Uuid::now_v7()))
    }

    /// Puts a condemned list.
    pub(crate) async fn put_list(&self, list: &ObjectPath, condemned: &Condemned) -> Result<(), StoreError> {
        self.put(list, condemned.encode().into()).await
    }

    /// The condemned lists of this node.
    pub(crate) async fn own_lists(&self) -> Result<Vec<ObjectPath>, StoreError> {
        self.checked().await?;
        self.names_under(ObjectPath::from(format!("{CONDEMNED}/{}", self.node()))).await
    }

    /// Takes this node's signs out of the store, which it uses no more.
    pub(crate) async fn take_signs_away(&self) -> Result<(), StoreError> {
        let objects = self.objects().await?;
        for path in self.names_under(ObjectPath::from(format!("{NODES}/{}", self.node()))).await? {
            // Unchecked: the check would ask for the sign that went first.
            match objects.delete(&path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(source) => return Err(StoreError::from_store(&path, source)),
            }
        }
        Ok(())
    }

    /// Deletes objects, with few requests where the store lets that be. Missing ones are a success.
    pub(crate) async fn delete_objects(&self, doomed: &[Collectable]) -> Result<(), StoreError> {
        let objects = self.checked().await?;
        let paths: Vec<_> = doomed.iter().map(|object| Ok(ObjectPath::from(object.to_string()))).collect();
        let mut deleted = objects.delete_stream(stream::iter(paths).boxed());
        let place = ObjectPath::from("layers");
        while let Some(answer) = deleted.next().await {
            match answer {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(source) => return Err(StoreError::from_store(&place, source)),
            }
        }
        Ok(())
    }
}
