//! A sign that a node leaves in the store, by which it knows an earlier state of the store.
//!
//! The node puts a new sign after each manifest, and the transaction that calls the snapshot published remembers it. So a
//! state of the store that has the remembered sign, or a later one, has every manifest recorded as published by then.

use std::sync::Arc;

use futures_util::stream::TryStreamExt;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::catalog::{Catalog, Change, Kind};
use crate::limits;
use crate::wire::{UnknownVersion, Versioned};

/// A sign. Only the remembered one counts: later ones were left by a newer catalog of the node, or by a try that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sign {
    version: u32,
    /// The catalog and all copies of it.
    lineage: Uuid,
    count: u64,
    /// No two tries share it, so a put that lands late is never taken for a later one with the same count.
    attempt: Uuid,
}

/// Evidence of the remembered sign in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// The node never left a sign, or does not remember it.
    NotAsked,
    /// The store has the sign, or a later one.
    There,
    /// The store has neither: it is an earlier state of itself, or another store.
    Gone,
}

/// The signs of a node that were found in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Signs {
    pub(crate) evidence: Evidence,
    /// The largest count of them.
    newest: u64,
    /// Some of those that came before the remembered one, and mean nothing any more.
    pub(crate) left_over: Vec<ObjectPath>,
}

/// The version of a sign that is written, and the newest one that is read.
const VERSION: u32 = 1;
/// Key of the remembered sign in the catalog.
const REMEMBERED: &[u8] = b"sign";
/// Name of that record in errors.
const RECORD: &str = "the catalog's record of its sign";

impl Sign {
    /// The sign that follows the remembered one, and all that were `found`.
    pub(crate) fn next(remembered: Option<Self>, found: &Signs) -> Self {
        let lineage = remembered.map_or_else(Uuid::now_v7, |sign| sign.lineage);
        let last = remembered.map_or(0, |sign| sign.count).max(found.newest);
        Self { version: VERSION, lineage, count: last.saturating_add(1), attempt: Uuid::now_v7() }
    }

    /// The sign that a catalog remembers; reads the disk.
    pub(crate) fn remembered(catalog: &Catalog) -> Result<Option<Self>, String> {
        let Some(value) = catalog.get(Kind::Meta, REMEMBERED).map_err(|error| error.to_string())? else {
            return Ok(None);
        };
        Self::decode(&value).map(Some)
    }

    /// The change of the catalog that remembers it.
    pub(crate) fn change(&self) -> Change {
        Change::Put { kind: Kind::Meta, key: REMEMBERED.to_vec(), value: self.encode() }
    }

    /// The catalog that left it, and all copies of that.
    pub(crate) fn lineage(&self) -> Uuid {
        self.lineage
    }

    /// Its object.
    pub(crate) fn path(&self) -> ObjectPath {
        self.all().join(format!("{}-{}", self.count, self.attempt))
    }

    /// Puts it into a store.
    pub(crate) async fn put(&self, objects: &Arc<dyn ObjectStore>) -> object_store::Result<()> {
        objects.put(&self.path(), PutPayload::from(self.encode())).await.map(drop)
    }

    /// The signs of this one's lineage in a store.
    pub(crate) async fn look(&self, objects: &Arc<dyn ObjectStore>) -> object_store::Result<Signs> {
        let mut signs = Signs { evidence: Evidence::Gone, ..Signs::none() };
        let mut listed = objects.list(Some(&self.all()));
        while let Some(object) = listed.try_next().await? {
            signs.add(object.location, self);
        }
        Ok(signs)
    }

    /// The place of all signs of its lineage.
    fn all(&self) -> ObjectPath {
        ObjectPath::from(format!("nodes/{}", self.lineage))
    }

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("it is plain data")
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let not_understood = |error: serde_json::Error| format!("{RECORD} cannot be understood: {error}");
        let Versioned { version } = serde_json::from_slice(bytes).map_err(not_understood)?;
        UnknownVersion::check(version, VERSION).map_err(|unknown| format!("{RECORD}: {unknown}"))?;
        serde_json::from_slice(bytes).map_err(not_understood)
    }
}

impl Signs {
    /// None at all, as far as a node knows that remembers none.
    pub(crate) fn none() -> Self {
        Self { evidence: Evidence::NotAsked, newest: 0, left_over: Vec::new() }
    }

    /// Keeps what was left over before: a sign that became outdated while these were looked for is not among them.
    pub(crate) fn keep_left_over(&mut self, before: Self) {
        let room = limits::SIGNS_DELETED_AT_ONCE.saturating_sub(self.left_over.len());
        let kept = before.left_over.into_iter().filter(|path| !self.left_over.contains(path)).take(room);
        self.left_over.extend(kept.collect::<Vec<_>>());
    }

    /// One more was found, by a node that remembers `remembered`. Other objects are nobody's signs.
    fn add(&mut self, found: ObjectPath, remembered: &Sign) {
        let name = found.filename().and_then(|name| name.split_once('-'));
        let Some(count) = name.and_then(|(count, _)| count.parse::<u64>().ok()) else { return };
        self.newest = self.newest.max(count);
        if count > remembered.count || found == remembered.path() {
            self.evidence = Evidence::There;
        } else if count < remembered.count && self.left_over.len() < limits::SIGNS_DELETED_AT_ONCE {
            self.left_over.push(found);
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_sign_that_becomes_outdated_during_a_look_is_still_left_over() {
        let first = Sign::next(None, &Signs::none());
        let mut looked = Signs::none();
        looked.add(first.path(), &first);
        let meanwhile = Signs { left_over: vec![first.path()], ..Signs::none() };
        looked.keep_left_over(meanwhile.clone());
        looked.keep_left_over(meanwhile);
        assert_eq!(looked.left_over, [first.path()]);
        assert_eq!((looked.evidence, looked.newest), (Evidence::There, 1));
    }

    #[test]
    fn a_sign_is_read_in_every_version_and_an_unknown_one_is_refused_by_name() {
        let first = br#"{"version":1,"lineage":"01932f5e-7c00-7000-8000-000000000007","count":12,"attempt":"01932f5e-7c00-7000-8000-000000000008"}"#;
        let id = |last: u128| Uuid::from_u128(0x0193_2f5e_7c00_7000_8000_0000_0000_0000 + last);
        let sign = Sign { version: 1, lineage: id(7), count: 12, attempt: id(8) };
        assert_eq!(Sign::decode(first), Ok(sign));
        assert_eq!(sign.encode(), first);
        let newer = Sign::decode(br#"{"version":2}"#).expect_err("it is newer");
        assert!(newer.contains("its sign: version 2 is unknown to this rekindle"), "{newer}");
    }
}
