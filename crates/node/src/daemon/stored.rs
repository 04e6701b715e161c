//! The snapshots in the store, whichever node made them.

use rekindle_api::control::Answer;
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::{
    Reference, StoredSnapshot, StoredSnapshotList, WithdrawnSnapshot, WithdrawnSnapshotList,
};
use rekindle_engine::engine::UndeleteError;
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

/// The deleted snapshots that can be brought back, oldest first.
pub(super) fn list_withdrawn(host: &Host) -> Answer<WithdrawnSnapshotList> {
    let withdrawn = host.engine.withdrawn_snapshots().map_err(|error| not_listed(&error))?;
    let snapshots = withdrawn.into_iter().map(|withdrawn| WithdrawnSnapshot {
        id: withdrawn.id.uuid(),
        deleted_by: withdrawn.by.by(),
        deleted_unix_ms: withdrawn.deleted_unix_ms,
        until_unix_ms: withdrawn.until_unix_ms,
    });
    Ok(WithdrawnSnapshotList { snapshots: snapshots.collect() })
}

/// Brings the deleted snapshot back that `reference` means: its id, or a unique beginning or end of that.
pub(super) fn undelete(host: &Host, listed: &ListedSnapshots, reference: &Reference) -> Answer<Known> {
    let id = match Uuid::try_parse(reference) {
        Ok(id) => id,
        Err(_) => {
            let withdrawn = host.engine.withdrawn_snapshots().map_err(|error| not_listed(&error))?;
            let withdrawn: Vec<_> =
                withdrawn.into_iter().map(|withdrawn| InStore(withdrawn.id.uuid())).collect();
            find("deleted snapshot", reference, withdrawn.iter())?.0
        }
    };
    let id = SnapshotId::from(id);
    host.engine.undelete(id).map_err(|error| not_undeleted(id, &error))?;
    let snapshot = host.engine.open(id)?;
    listed.changed(&snapshot);
    Ok(Known::of(snapshot))
}

fn not_undeleted(id: SnapshotId, error: &UndeleteError) -> Problem {
    let (code, what_to_do) = match error {
        UndeleteError::NotDeleted | UndeleteError::Gone(_) => (Code::NotFound, ""),
        UndeleteError::InUse => (
            Code::WrongState,
            ": end the sandboxes that run from it and try again, or bring it back on another node",
        ),
        UndeleteError::Undecided => (Code::NotYet, ": try again in a minute"),
        UndeleteError::Store(_) => (Code::StoreFailed, ""),
        UndeleteError::Catalog(_) => (Code::DiskFailed, ""),
    };
    Problem::new(code, format!("snapshot {id} is not brought back: {error}{what_to_do}")).snapshot(id)
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
