//! Manifests in the store: the newest edition of a snapshot's manifest counts.

use bytes::Bytes;
use futures_util::future::join;
use object_store::path::Path as ObjectPath;

use crate::identity::{DomainName, SnapshotId};
use crate::key_ring::KeyRing;
use crate::limits;
use crate::manifest::{Edition, Publication};
use crate::manifest_objects::{editions, editions_and_signs, is_there, newest, older_path, path_of};
use crate::store::{Store, StoreError};
use crate::tag::TaggedError;
use crate::withdrawal::Withdrawal;

/// The bytes of a manifest object, and the edition that its name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredManifest {
    bytes: Bytes,
    /// None if an older program put it.
    edition: Option<Edition>,
    /// The last deletion that stands, and can be undone.
    withdrawn: Option<Withdrawal>,
}

/// Reason that an object of a manifest is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoredManifestError {
    /// It is damaged or not one, or its tag is wrong or cannot be checked.
    #[error("it cannot be read: {0}")]
    Unread(#[from] TaggedError),
    /// It is another snapshot's.
    #[error("it is that of {found}")]
    OtherSnapshot {
        /// The other snapshot.
        found: SnapshotId,
    },
    /// It is another edition than its name says.
    #[error("it is edition {}, and lies in the store as edition {}", found.number(), named.number())]
    OtherEdition {
        /// The edition that it says it is.
        found: Edition,
        /// The edition in its name.
        named: Edition,
    },
    /// It is older than one that this node has seen.
    #[error(
        "edition {} is the newest in the store, and this node has seen edition {}: bring that one back, or the newer \
         store",
        found.number(), seen.number()
    )]
    Older {
        /// The edition in the store.
        found: Edition,
        /// The edition that was seen.
        seen: Edition,
    },
}

impl StoredManifest {
    /// The object's bytes.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The last deletion that stands, and can be undone.
    pub(crate) fn withdrawn(&self) -> Option<Withdrawal> {
        self.withdrawn
    }

    /// The publication in it and its domain, if it is one of this snapshot and not older than the one that was `seen`.
    pub(crate) fn publication(
        &self,
        snapshot: SnapshotId,
        seen: Option<Edition>,
        keys: &KeyRing,
    ) -> Result<(Publication, DomainName), StoredManifestError> {
        let (publication, domain) = Publication::decode_of_domain(&self.bytes, keys)?;
        let found = publication.manifest().snapshot();
        if found != snapshot {
            return Err(StoredManifestError::OtherSnapshot { found });
        }
        let found = publication.edition();
        if let Some(named) = self.edition.filter(|named| *named != found) {
            return Err(StoredManifestError::OtherEdition { found, named });
        }
        match seen {
            Some(seen) if found < seen => Err(StoredManifestError::Older { found, seen }),
            Some(_) | None => Ok((publication, domain)),
        }
    }
}

impl Store {
    /// Writes an edition of a snapshot's manifest: the commit. Returns the object's name.
    pub async fn put_manifest(
        &self,
        snapshot: SnapshotId,
        edition: Edition,
        bytes: Bytes,
    ) -> Result<ObjectPath, StoreError> {
        let path = path_of(snapshot, edition);
        let put = self.put(&path, bytes.clone().into()).await;
        if let Err(StoreError::Other { .. }) = &put {
            // In a directory, an older program's manifest is a file where the folder of editions has to be: this one
            // takes its place.
            let older = older_path(snapshot);
            if self.size_of(&older).await.is_ok() {
                self.put(&older, bytes.into()).await?;
                return Ok(older);
            }
        }
        put.map(|()| path)
    }

    /// Reads the newest edition of a snapshot's manifest.
    pub(crate) async fn get_manifest(&self, snapshot: SnapshotId) -> Result<StoredManifest, StoreError> {
        for _ in 0..limits::MANIFEST_READ_TRIES {
            if let Some(read) = self.try_get_manifest(snapshot).await? {
                return Ok(read);
            }
        }
        Err(StoreError::NotFound(older_path(snapshot)))
    }

    /// The newest edition; none if it was listed and is gone, as one that replaced it may be there now.
    async fn try_get_manifest(&self, snapshot: SnapshotId) -> Result<Option<StoredManifest>, StoreError> {
        let get = |path| self.get_whole(path, limits::MANIFEST_BYTES_MAX);
        // Most manifests have one edition: it is asked for while they are listed.
        let listing = async {
            let under = older_path(snapshot);
            let listed = editions_and_signs(&self.objects().await?, snapshot).await;
            listed.map_err(|source| StoreError::from_store(&under, source))
        };
        let (listed, first) = join(listing, get(path_of(snapshot, Edition::FIRST))).await;
        let (editions, signs) = listed?;
        let withdrawn = signs.standing().max();
        let Some(edition) = editions.into_iter().max() else {
            let bytes = get(older_path(snapshot)).await?;
            return Ok(Some(StoredManifest { bytes, edition: None, withdrawn }));
        };
        let read = if edition == Edition::FIRST { first } else { get(path_of(snapshot, edition)).await };
        match read {
            Ok(bytes) => Ok(Some(StoredManifest { bytes, edition: Some(edition), withdrawn })),
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Checks that a snapshot's manifest is there, in the edition that was `seen` or a newer one.
    pub(crate) async fn see_manifest(
        &self,
        snapshot: SnapshotId,
        seen: Option<Edition>,
    ) -> Result<(), StoreError> {
        let path = older_path(snapshot);
        let newest = newest(&self.objects().await?, snapshot).await;
        let newest = newest.map_err(|source| StoreError::from_store(&path, source))?;
        if newest.is_some_and(|newest| Some(newest) >= seen) {
            return Ok(());
        }
        // That it is missing is believed only of the right store.
        self.checked().await?;
        Err(StoreError::NotFound(path))
    }

    /// Deletes all editions of a snapshot's manifest, and so the snapshot; also the one that was perhaps put without
    /// being listed yet. Missing ones are a success.
    pub async fn delete_manifest(
        &self,
        snapshot: SnapshotId,
        perhaps: Option<Edition>,
    ) -> Result<(), StoreError> {
        let (objects, older) = (self.checked().await?, older_path(snapshot));
        let failed = |source| StoreError::from_store(&older, source);
        // First, as in a directory nothing can be below it.
        if is_there(&objects, &older).await.map_err(failed)? {
            self.delete(older.clone()).await?;
        }
        let mut editions = editions(&objects, snapshot).await.map_err(failed)?;
        editions.extend(perhaps.filter(|perhaps| !editions.contains(perhaps)));
        for edition in editions {
            self.delete(path_of(snapshot, edition)).await?;
        }
        Ok(())
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests;
