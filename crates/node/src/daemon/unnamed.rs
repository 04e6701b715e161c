//! Things at the keeper that the catalog does not name, if the catalog is not the one that the keeper knows: an older
//! copy of it, such as a back-up, or another one.
//!
//! The keeper is told after each transaction how far the catalog has come. A start on a catalog that has come less far
//! ends nothing that only a later one can name: it is set aside, by a note under a key of its own at the keeper, until a
//! catalog names it again or its time is over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rekindle_engine::catalog::{Catalog, Change, Kind, WriteError};
use rekindle_keeper::{HeldEntry, KeeperClient, KeeperError};
use rekindle_metrics::AsideCounts;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::clock::unix_ms;
use super::guest_files::with_files;
use super::guest_owners::GuestOwners;
use super::keeping::Keeping;
use super::keys::{CATALOG, KeyOf};
use super::notes::CatalogState;
use super::record::SandboxRecord;
use super::socket_record;

/// The note on what was set aside.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct AsideNote {
    since_unix_ms: u64,
}

/// Key of the catalog's lineage.
const LINEAGE: &[u8] = b"lineage";

/// Sets aside what the catalog does not name, where it is not the one that the keeper knows, and takes back in what it
/// names again. From here on the keeper is told how far the catalog has come.
pub(super) fn meet(catalog: &Catalog, keeping: &Arc<Keeping>, state_directory: &Path) -> anyhow::Result<()> {
    let keeper = keeping.client();
    let held = keeper.list()?;
    let named = named_by(catalog)?;
    let mut aside = marks(&held);
    for key in named.iter().filter(|key| aside.remove(key).is_some()) {
        keeper.forget(&key.aside_key())?;
    }
    let state = |lineage| anyhow::Ok(CatalogState { lineage, transactions: catalog.transactions()? });
    let mut found = state(lineage_of(catalog)?)?;
    if !is_known(&held, found) {
        let since_unix_ms = unix_ms();
        let note = serde_json::to_value(AsideNote { since_unix_ms }).expect("it is plain data");
        for key in things(&held, state_directory)?.difference(&named) {
            if !aside.contains_key(key) {
                keeper.note(&key.aside_key(), &note)?;
                aside.insert(*key, since_unix_ms);
            }
        }
        tell_another_catalog(counts_of(aside.keys()));
        // After all of that: until it is written each start comes here again.
        found = state(new_lineage(catalog)?)?;
    }
    *keeping.aside() = aside;
    keeping.begin_to_tell(found)?;
    catalog.tell(keeping.clone());
    Ok(())
}

fn tell_another_catalog(aside: AsideCounts) {
    let what = "the catalog is not the one that the keeper knows, but an older copy or another one";
    if aside.is_some() {
        tracing::error!(
            "{what}: {aside} that it does not name are set aside; `rekindle doctor` says what to do"
        );
    } else {
        tracing::warn!("{what}; it names all that the keeper holds");
    }
}

/// True if a catalog is as new as the one that the keeper knows. Another keeper, or one whose daemon told it nothing of
/// the catalog, knows none.
fn is_known(held: &[HeldEntry], found: CatalogState) -> bool {
    held.iter().find(|entry| entry.key == CATALOG).is_none_or(|entry| {
        let known = serde_json::from_value::<CatalogState>(entry.note.clone());
        known.is_ok_and(|known| known.lineage == found.lineage && known.transactions <= found.transactions)
    })
}

fn lineage_of(catalog: &Catalog) -> anyhow::Result<Uuid> {
    let written = catalog.get(Kind::Meta, LINEAGE)?.and_then(|value| Uuid::from_slice(&value).ok());
    written.map_or_else(|| new_lineage(catalog), Ok)
}

fn new_lineage(catalog: &Catalog) -> anyhow::Result<Uuid> {
    let lineage = Uuid::now_v7();
    let value = lineage.as_bytes().to_vec();
    let put = Change::Put { kind: Kind::Meta, key: LINEAGE.to_vec(), value };
    let written = catalog.write_with_last_room(&[put]).map_err(WriteError::either_way);
    written.context("writing down which catalog this is").map(|()| lineage)
}

/// Things marked as set aside, each with its time.
fn marks(held: &[HeldEntry]) -> BTreeMap<KeyOf, u64> {
    let mark = |entry: &HeldEntry| {
        let note = serde_json::from_value::<AsideNote>(entry.note.clone());
        Some((KeyOf::parse_aside(&entry.key)?, note.map_or_else(|_| unix_ms(), |note| note.since_unix_ms)))
    };
    held.iter().filter_map(mark).collect()
}

/// All that the keeper holds, and guests that have only files.
fn things(held: &[HeldEntry], state_directory: &Path) -> anyhow::Result<BTreeSet<KeyOf>> {
    let mut things: BTreeSet<KeyOf> = held.iter().filter_map(|entry| KeyOf::parse(&entry.key)).collect();
    things.extend(with_files(state_directory)?.into_iter().map(KeyOf::Guest));
    Ok(things)
}

/// All that the catalog has a record of.
fn named_by(catalog: &Catalog) -> anyhow::Result<BTreeSet<KeyOf>> {
    let mut named = BTreeSet::new();
    for (key, value) in catalog.all(Kind::Sandbox)? {
        named.extend(SandboxRecord::decode(&key, &value).life.guest().map(KeyOf::Guest));
    }
    let snapshots = catalog.all(Kind::Snapshot)?;
    named.extend(snapshots.iter().filter_map(|(key, _)| Uuid::from_slice(key).ok()).map(KeyOf::Snapshot));
    let sockets = catalog.all(Kind::Meta)?;
    named.extend(sockets.iter().filter_map(|(key, _)| socket_record::id_in(key)).map(KeyOf::Socket));
    Ok(named)
}

impl GuestOwners {
    /// Ends what was set aside at the keeper for `kept` or longer.
    pub(super) fn end_old_aside(&self, kept: Duration) -> Result<(), KeeperError> {
        let keeper = self.host().keeping.client();
        let aside = self.host().keeping.aside().clone();
        for (key, since_unix_ms) in aside {
            let is_named = self.names(key);
            // A clock that was set back makes them younger, never older.
            let age = Duration::from_millis(unix_ms().saturating_sub(since_unix_ms));
            if !is_named && age < kept {
                continue;
            }
            // First: if a later step fails, the next start treats it like a thing that was half made.
            keeper.forget(&key.aside_key())?;
            self.host().keeping.aside().remove(&key);
            if is_named {
                continue;
            }
            tracing::warn!(key = key.key(), "it was set aside, and is ended: its time was over");
            match key {
                KeyOf::Guest(guest) => self.host().endings.end_unborn(guest),
                KeyOf::Snapshot(_) => keeper.forget(&key.key())?,
                KeyOf::Socket(id) => {
                    std::fs::remove_file(self.fault_sockets.path_of(id)).ok();
                    keeper.forget(&key.key())?;
                }
            }
        }
        Ok(())
    }
}

fn counts_of<'a>(keys: impl IntoIterator<Item = &'a KeyOf>) -> AsideCounts {
    let mut counts = AsideCounts::default();
    for key in keys {
        let count = match key {
            KeyOf::Guest(_) => &mut counts.guests,
            KeyOf::Snapshot(_) => &mut counts.snapshots,
            KeyOf::Socket(_) => &mut counts.fault_sockets,
        };
        *count += 1;
    }
    counts
}

/// Counts of the things set aside at `keeper`.
pub(crate) fn aside_at(keeper: &KeeperClient) -> Result<AsideCounts, KeeperError> {
    Ok(counts_of(marks(&keeper.list()?).keys()))
}

/// Counts of the things that a daemon has set aside.
pub(super) fn aside_now(keeping: &Keeping) -> AsideCounts {
    counts_of(keeping.aside().keys())
}
