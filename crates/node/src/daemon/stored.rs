//! The snapshots in the store, whichever node made them.

use rekindle_api::control::Answer;
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::{Reference, StoredSnapshot, StoredSnapshotList};
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::sources::SourceError;
use uuid::Uuid;

use super::host::Host;
use super::known::Known;
use super::listed_snapshots::ListedSnapshots;
use super::references::{Named, find, is_part};

/// An id in the store as a thing that can be referred to.
struct InStore(Uuid);

impl Named for InStore {
    fn id(&self) -> Uuid {
        self.0
    }

    fn name(&self) -> Option<&str> {
        None
    }
}

/// All snapshots in the store, oldest first.
pub(super) fn list(host: &Host) -> Answer<StoredSnapshotList> {
    let stored = host.engine.stored_snapshots().map_err(|error| not_listed(&error))?;
    let snapshots = stored.into_iter().map(|stored| {
        let here = host.engine.snapshot(stored.id).map(Known::of);
        StoredSnapshot {
            id: stored.id.uuid(),
            name: here.as_ref().and_then(|known| known.about.name.clone()),
            is_known: here.is_some(),
            stored_unix_ms: stored.stored_unix_ms,
        }
    });
    Ok(StoredSnapshotList { snapshots: snapshots.collect() })
}

/// Opens the snapshot of the store that `reference` means: its id, or a unique beginning or end of that.
pub(super) fn open(host: &Host, listed: &ListedSnapshots, reference: &Reference) -> Answer<Known> {
    let id = match Uuid::try_parse(reference) {
        Ok(id) => id,
        Err(_) if is_part(reference) => {
            let stored = host.engine.stored_snapshots().map_err(|error| not_listed(&error))?;
            let stored: Vec<_> = stored.into_iter().map(|stored| InStore(stored.id.uuid())).collect();
            find("snapshot", reference, stored.iter())?.0
        }
        Err(_) => return Err(Problem::new(Code::NotFound, format!("there is no snapshot {reference:?}"))),
    };
    let snapshot = host.engine.open(SnapshotId::from(id))?;
    listed.changed(&snapshot);
    Ok(Known::of(snapshot))
}

fn not_listed(error: &SourceError) -> Problem {
    Problem::new(Code::StoreFailed, format!("the snapshots in the store cannot be listed: {error}"))
}
