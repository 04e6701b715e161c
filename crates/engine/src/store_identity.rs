//! The identity of a store: an object in it, which the catalog remembers.

use std::path::Path;
use std::sync::Arc;

use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::catalog::{Catalog, CatalogError, Change, Kind};
use crate::catalog_file::value_in;
use crate::limits;
use crate::wire::{UnknownVersion, Versioned};

/// Identity of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreIdentity {
    pub(crate) version: u32,
    /// Made once.
    pub id: Uuid,
    /// Grows when a person accepts an earlier state of the store, and never falls.
    pub epoch: u64,
}

/// The version of the identity that is written, and the newest one that is read.
pub(crate) const VERSION: u32 = 1;
/// The object that says who a store is.
pub(crate) const OBJECT: &str = "store";
/// Key of the remembered identity in the catalog.
const REMEMBERED: &[u8] = b"store";

impl StoreIdentity {
    /// The identity of a new store.
    pub(crate) fn new() -> Self {
        Self { version: VERSION, id: Uuid::now_v7(), epoch: 1 }
    }

    /// The identity that the catalog remembers; reads the disk.
    pub(crate) fn remembered(catalog: &Catalog) -> Result<Option<Self>, String> {
        let value = catalog.get(Kind::Meta, REMEMBERED).map_err(|error| error.to_string())?;
        value.map(|value| Self::decode(&value, "the catalog's record of it")).transpose()
    }

    /// The identity that the catalog in a file remembers; none where there is no catalog, or it has used no store yet. The
    /// file is only read: where a daemon has it, or had it and did not end in order, that is an error.
    pub fn remembered_in(catalog: &Path) -> Result<Option<Self>, CatalogError> {
        let damaged = |reason| CatalogError::Damaged { path: catalog.to_owned(), reason };
        let value = value_in(catalog, Kind::Meta, REMEMBERED)?;
        value.map(|value| Self::decode(&value, "its record of the store").map_err(damaged)).transpose()
    }

    /// The change of the catalog that remembers it.
    pub(crate) fn change(self) -> Change {
        Change::Put { kind: Kind::Meta, key: REMEMBERED.to_vec(), value: self.encode() }
    }

    /// This state of a store `known`, which a person takes for the newest.
    pub(crate) fn after(self, known: Self) -> Result<Self, String> {
        let epoch = known.epoch.checked_add(1).ok_or_else(|| {
            format!(
                "store {} has epoch {}, after which there is none, so no earlier state of it can be accepted; bring \
                 the newer one back, or set `store` to another one",
                known.id, known.epoch
            )
        })?;
        Ok(Self { epoch, ..self })
    }

    /// The identity that a store has, if it has one; the store is only read. The error is for people.
    pub async fn read(objects: &Arc<dyn ObjectStore>) -> Result<Option<Self>, String> {
        let unreadable =
            |error: object_store::Error| format!("its object `{OBJECT}` cannot be read: {error}");
        let answer = match objects.get(&ObjectPath::from(OBJECT)).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            answer => answer.map_err(unreadable)?,
        };
        if answer.meta.size > limits::STORE_IDENTITY_BYTES_MAX {
            return Err(format!("its object `{OBJECT}` has {} bytes, and is no identity", answer.meta.size));
        }
        let bytes = answer.bytes().await.map_err(unreadable)?;
        Self::decode(&bytes, "its object `store`").map(Some)
    }

    /// Writes it into a store. One that is there already is left as it is where it was to be made.
    pub(crate) async fn write(self, objects: &Arc<dyn ObjectStore>, mode: PutMode) -> Result<(), String> {
        let (path, payload) = (ObjectPath::from(OBJECT), PutPayload::from(self.encode()));
        match objects.put_opts(&path, payload, PutOptions::from(mode)).await {
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(format!(
                "its object `{OBJECT}` cannot be written: {error}; have this user write there, or set `store` to \
                 another place"
            )),
        }
    }

    fn encode(self) -> Vec<u8> {
        serde_json::to_vec(&self).expect("it is plain data")
    }

    fn decode(bytes: &[u8], what: &str) -> Result<Self, String> {
        let not_understood = |error: serde_json::Error| format!("{what} cannot be understood: {error}");
        // A version by itself first: all else of another one may have another form.
        let Versioned { version } = serde_json::from_slice(bytes).map_err(not_understood)?;
        UnknownVersion::check(version, VERSION).map_err(|unknown| format!("{what}: {unknown}"))?;
        serde_json::from_slice(bytes).map_err(not_understood)
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read_in_every_version_and_an_unknown_one_is_refused_by_name() {
        let first = br#"{"version":1,"id":"01932f5e-7c00-7000-8000-000000000007","epoch":3}"#;
        let id = Uuid::from_u128(0x0193_2f5e_7c00_7000_8000_0000_0000_0007);
        let identity = StoreIdentity { version: 1, id, epoch: 3 };
        assert_eq!(StoreIdentity::decode(first, "its object"), Ok(identity));
        assert_eq!(identity.encode(), first);
        let newer = StoreIdentity::decode(br#"{"version":2,"key":"of another form"}"#, "its object");
        let reason =
            "its object: version 2 is unknown to this rekindle, which reads version 1: run a newer one";
        assert_eq!(newer, Err(reason.to_owned()));
    }
}
