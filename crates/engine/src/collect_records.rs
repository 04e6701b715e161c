//! Passes of this node's collector whose second look is done, as the catalog remembers them: a request to delete may be
//! carried out after the process that sent it has ended, so the next one goes on with the same list.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use object_store::path::Path as ObjectPath;
use serde::{Deserialize, Serialize};

use crate::catalog::{Catalog, CatalogError, Change, Kind, WriteError};
use crate::collectable::Collectable;
use crate::limits;
use crate::wire::{UnknownVersion, Versioned};

/// Objects that are to be deleted, and the list in the store that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Doomed {
    pub(crate) list: ObjectPath,
    pub(crate) objects: BTreeSet<Collectable>,
    /// Time before which the list was put.
    pub(crate) listed: SystemTime,
    /// Time until which nothing is deleted.
    pub(crate) due: SystemTime,
}

#[derive(Serialize, Deserialize)]
struct Written {
    version: u32,
    objects: Vec<String>,
    listed_unix_ms: u64,
    due_unix_ms: u64,
}

const VERSION: u32 = 1;
/// Begins the key of each record.
const KEY: &str = "collecting/";

impl Doomed {
    /// True if other collectors may have taken the list for abandoned: nothing may be deleted any more.
    pub(crate) fn is_stale(&self) -> bool {
        // A clock that was set back says nothing.
        self.listed.elapsed().map_or(true, |age| age > limits::LIST_TRUSTED_FOR)
    }

    /// Time until it is due.
    pub(crate) fn wait(&self) -> Duration {
        self.due.duration_since(SystemTime::now()).unwrap_or_default()
    }

    fn key(list: &ObjectPath) -> Vec<u8> {
        format!("{KEY}{list}").into_bytes()
    }

    /// Remembers it, before the first deletion.
    pub(crate) fn remember(&self, catalog: &Catalog) -> Result<(), CatalogError> {
        let unix_ms = |time: SystemTime| {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        };
        let written = Written {
            version: VERSION,
            objects: self.objects.iter().map(Collectable::to_string).collect(),
            listed_unix_ms: unix_ms(self.listed),
            due_unix_ms: unix_ms(self.due),
        };
        let value = serde_json::to_vec(&written).expect("it is plain data");
        let put = Change::Put { kind: Kind::Meta, key: Self::key(&self.list), value };
        // After a crash it is right either way: without the record nothing was deleted.
        catalog.write(&[put]).map_err(WriteError::either_way)
    }

    /// Forgets it, once its list is gone.
    pub(crate) fn forget(&self, catalog: &Catalog) -> Result<(), CatalogError> {
        let gone = Change::Remove { kind: Kind::Meta, key: Self::key(&self.list) };
        catalog.write_with_last_room(&[gone]).map_err(WriteError::either_way)
    }

    /// All that a catalog remembers. The error is for people.
    pub(crate) fn remembered(catalog: &Catalog) -> Result<Vec<Self>, String> {
        let found = catalog.under(Kind::Meta, KEY.as_bytes()).map_err(|error| error.to_string())?;
        let found = found.into_iter().map(|(key, value)| {
            let list = String::from_utf8_lossy(&key);
            let list = list.strip_prefix(KEY).unwrap_or_default();
            Self::decode(list, &value).map_err(|reason| format!("the catalog's record of {list}: {reason}"))
        });
        found.collect()
    }

    fn decode(list: &str, value: &[u8]) -> Result<Self, String> {
        let not_understood = |error: serde_json::Error| format!("it cannot be understood: {error}");
        let Versioned { version } = serde_json::from_slice(value).map_err(not_understood)?;
        UnknownVersion::check(version, VERSION).map_err(|unknown| unknown.to_string())?;
        let written: Written = serde_json::from_slice(value).map_err(not_understood)?;
        let objects =
            written.objects.iter().map(|name| name.parse().map_err(|error| format!("{name}: {error}")));
        let time = |unix_ms| UNIX_EPOCH + Duration::from_millis(unix_ms);
        Ok(Self {
            list: ObjectPath::from(list),
            objects: objects.collect::<Result<_, _>>()?,
            listed: time(written.listed_unix_ms),
            due: time(written.due_unix_ms),
        })
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::identity::SnapshotId;

    #[test]
    fn a_pass_is_remembered_until_it_is_forgotten_and_an_unknown_version_is_refused_by_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let catalog = Catalog::open(&directory.path().join("catalog.redb")).expect("a disk");
        let doomed = Doomed {
            list: ObjectPath::from("condemned/a/b"),
            objects: BTreeSet::from([Collectable::Manifest(SnapshotId::from_bytes([7; 16]), None)]),
            listed: UNIX_EPOCH + Duration::from_millis(12),
            due: UNIX_EPOCH + Duration::from_millis(34),
        };
        doomed.remember(&catalog).expect("a disk");
        assert_eq!(Doomed::remembered(&catalog), Ok(vec![doomed.clone()]));
        assert!(doomed.is_stale());
        doomed.forget(&catalog).expect("a disk");
        assert_eq!(Doomed::remembered(&catalog), Ok(Vec::new()));
        let newer = Doomed::decode("condemned/a/b", br#"{"version":2}"#).expect_err("it is newer");
        assert!(newer.contains("version 2 is unknown"), "{newer}");
    }
}
