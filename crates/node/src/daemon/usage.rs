//! The cost of snapshots, in the store and on this node.

use rekindle_api::control::Answer;
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::{SnapshotUsage, Usage};
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::sources::SourceError;
use rekindle_engine::store_usage::{Objects, SnapshotUsage as Stored, StoreUsage};

use super::host::Host;
use super::known::Known;
use super::references::Named as _;

/// Snapshots in an answer about the whole store.
const LARGEST_COUNT: usize = 20;

/// Everything in the store, and this node's disk.
pub(super) fn of_all(host: &Host) -> Answer<Usage> {
    let usage = asked(host)?;
    let cache = host.engine.cache_status();
    let parts = |part: fn(&Stored) -> Objects| usage.snapshots.values().map(|of| part(of).bytes).sum();
    let mut largest: Vec<_> = usage.snapshots.iter().collect();
    largest.sort_by_key(|(id, of)| (std::cmp::Reverse(of.freed_bytes()), **id));
    let largest = largest.into_iter().take(LARGEST_COUNT).map(|(id, of)| {
        let known = host.engine.snapshot(*id);
        shown(*id, of, known.as_deref())
    });
    Ok(Usage {
        stored_objects: usage.total().count,
        stored_bytes: usage.total().bytes,
        own_bytes: parts(|of| of.own),
        unique_bytes: parts(|of| of.unique),
        shared_bytes: usage.shared.bytes,
        unnamed_bytes: usage.unnamed.bytes,
        bookkeeping_bytes: usage.bookkeeping.bytes,
        snapshots: number(usage.snapshots.len()),
        unread_snapshots: number(usage.unread.len()),
        local_bytes: cache.bytes,
        only_here_bytes: cache.only_here_bytes,
        largest: largest.collect(),
    })
}

/// One snapshot; one that is not in the store yet has no bytes there.
pub(super) fn of_one(host: &Host, known: &Known) -> Answer<SnapshotUsage> {
    let id = SnapshotId::from(known.id());
    let usage = asked(host)?;
    if usage.unread.contains(&id) {
        let why = format!(
            "the manifest of {} in the store is of an older program, and is not read for this",
            known.called()
        );
        return Err(Problem::new(Code::StoreFailed, why).snapshot(id));
    }
    let stored = usage.snapshots.get(&id).copied().unwrap_or_default();
    Ok(shown(id, &stored, Some(&known.snapshot)))
}

fn asked(host: &Host) -> Answer<StoreUsage> {
    host.engine.store_usage().map_err(|error: SourceError| {
        Problem::new(Code::StoreFailed, format!("the store cannot be accounted for: {error}"))
    })
}

fn shown(id: SnapshotId, stored: &Stored, known: Option<&Snapshot>) -> SnapshotUsage {
    let local = known.map(|known| known.layers_now().iter().map(|layer| layer.local_bytes).sum());
    SnapshotUsage {
        snapshot: id.uuid(),
        stored_bytes: stored.own.bytes + stored.unique.bytes + stored.shared.bytes,
        own_bytes: stored.own.bytes,
        unique_bytes: stored.unique.bytes,
        shared_bytes: stored.shared.bytes,
        freed_bytes: stored.freed_bytes(),
        local_bytes: local.unwrap_or_default(),
    }
}

fn number(count: usize) -> u64 {
    u64::try_from(count).expect("they are in memory")
}
