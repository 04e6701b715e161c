//! A collector's looks at a store: all that says what is needed, and all that could be deleted.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use object_store::ObjectMeta;
use object_store::path::Path as ObjectPath;
use uuid::Uuid;

use crate::collect_steps::Manifests;
use crate::collectable::{Collectable, LayerCopy};
use crate::identity::SnapshotId;
use crate::limits;
use crate::manifest::{Edition, Publication};
use crate::manifest_memory::{ListedManifest, ManifestMemory, WrittenManifest};
use crate::manifest_objects::{MANIFESTS, editions, older_path, path_of};
use crate::root::Root;
use crate::store::{Store, StoreError};
use crate::store_roots::{CONDEMNED, NODES, ROOTS};
use crate::tombstones::TOMBSTONES;
use crate::withdrawal::Withdrawal;

/// The roots of a store that count.
#[derive(Debug, Default)]
pub(crate) struct RootsLook {
    pub(crate) roots: Vec<Root>,
    /// Roots and condemned lists of nodes that showed no sign of life for long.
    pub(crate) abandoned: Vec<ObjectPath>,
}

/// The manifests of a store that count, and its tombstones.
#[derive(Debug, Default)]
pub(crate) struct ManifestsLook {
    pub(crate) counted: Manifests,
    /// All objects of manifests, with their bytes.
    pub(crate) objects: Vec<(Collectable, u64)>,
    /// Tombstones that no manifest needs any more.
    pub(crate) old_tombstones: Vec<ObjectPath>,
    /// Manifests that were read in this look.
    pub(crate) read: usize,
    /// The store's time of the last deletion of a snapshot, or replacement of a manifest.
    pub(crate) last_change_unix_ms: i64,
}

/// Lists and reads the roots that count at the store's time `now`: those of nodes that wrote something in the time
/// `abandoned_after` before it.
///
/// A root may be replaced by another one while they are listed: they are listed again until none of those listed is gone
/// when it is read, and at least twice.
pub(crate) async fn look_at_roots(
    store: &Store,
    abandoned_after: Duration,
    now_unix_ms: i64,
) -> Result<RootsLook, StoreError> {
    let (mut read, mut look) = (HashSet::new(), RootsLook::default());
    for times in 1..=limits::ROOTS_LISTED_MAX {
        let listed = store.list_all(ROOTS).await?;
        let (others, lists) = (store.list_all(NODES).await?, store.list_all(CONDEMNED).await?);
        let alive = listed.iter().chain(&others).chain(&lists).map(written);
        let alive = nodes_alive(alive, abandoned_after, now_unix_ms);
        let is_abandoned =
            |object: &&ObjectMeta| !node_of(&object.location).is_some_and(|node| alive.contains(&node));
        look.abandoned =
            listed.iter().chain(&lists).filter(is_abandoned).map(|object| object.location.clone()).collect();
        let counted = listed.iter().filter(|object| !is_abandoned(object));
        let new: Vec<_> =
            counted.map(|object| object.location.clone()).filter(|path| !read.contains(path)).collect();
        let mut reads =
            stream::iter(new.into_iter().map(|path| read_root(store, path))).buffered(limits::COLLECT_READS);
        let mut is_one_gone = false;
        while let Some((path, root)) = reads.try_next().await? {
            match root {
                Some(root) => {
                    read.insert(path);
                    look.roots.push(root);
                }
                None => is_one_gone = true,
            }
        }
        if times > 1 && !is_one_gone {
            return Ok(look);
        }
    }
    let path = ObjectPath::from(ROOTS);
    Err(StoreError::NotUnderstood { path, reason: "they change faster than they can be read".to_owned() })
}

async fn read_root(store: &Store, path: ObjectPath) -> Result<(ObjectPath, Option<Root>), StoreError> {
    match store.get_whole(path.clone(), limits::ROOT_BYTES_MAX).await {
        Ok(bytes) => match Root::decode(&bytes) {
            Ok(root) => Ok((path, Some(root))),
            Err(reason) => Err(StoreError::NotUnderstood { path, reason }),
        },
        Err(StoreError::NotFound(_)) => Ok((path, None)),
        Err(error) => Err(error),
    }
}

/// The nodes one of whose objects was written lately, by the clock of the store.
fn nodes_alive<'a>(
    written: impl Iterator<Item = (&'a ObjectPath, i64)>,
    abandoned_after: Duration,
    now_unix_ms: i64,
) -> HashSet<String> {
    let young = written.filter(|(_, unix_ms)| !is_over(*unix_ms, abandoned_after, now_unix_ms));
    young.filter_map(|(path, _)| node_of(path)).collect()
}

/// True if more than `time` has gone by since then.
fn is_over(since_unix_ms: i64, time: Duration, now_unix_ms: i64) -> bool {
    u128::try_from(now_unix_ms.saturating_sub(since_unix_ms)).is_ok_and(|gone| gone > time.as_millis())
}

/// The name of an object, and the time at which it was written.
fn written(object: &ObjectMeta) -> (&ObjectPath, i64) {
    (&object.location, object.last_modified.timestamp_millis())
}

/// The node whose object this is.
fn node_of(path: &ObjectPath) -> Option<String> {
    Some(path.parts().nth(1)?.as_ref().to_owned())
}

/// Lists tombstones, then manifests, and reads those manifests that count and are not remembered.
pub(crate) async fn look_at_manifests(
    store: &Store,
    memory: &mut ManifestMemory,
    now_unix_ms: i64,
) -> Result<ManifestsLook, StoreError> {
    let tombstones = store.list_all(TOMBSTONES).await?;
    let listed = store.list_all(MANIFESTS).await?;
    let deleted: HashSet<_> = tombstones.iter().filter_map(|object| snapshot_of(&object.location)).collect();
    let last_deletion = tombstones.iter().map(|object| object.last_modified.timestamp_millis()).max();
    let mut look =
        ManifestsLook { last_change_unix_ms: last_deletion.unwrap_or(i64::MIN), ..Default::default() };
    let (mut manifests, mut with_manifest, mut signed) = (Vec::new(), HashSet::new(), Signed::default());
    for object in &listed {
        let Ok(found) = object.location.as_ref().parse() else { continue };
        look.objects.push((found, object.size));
        let unix_ms = object.last_modified.timestamp_millis();
        let Collectable::Manifest(snapshot, edition) = found else {
            with_manifest.extend(signed.note(found, unix_ms));
            continue;
        };
        with_manifest.insert(snapshot);
        if deleted.contains(&snapshot) {
            continue;
        }
        if edition > Some(Edition::FIRST) {
            look.last_change_unix_ms = look.last_change_unix_ms.max(unix_ms);
        }
        manifests.push(ListedManifest::of(snapshot, edition, object));
    }
    let ReadManifests { newest, named, read } = read_manifests(store, memory, manifests, &deleted).await?;
    look.read = read;
    look.counted.newest = newest.iter().map(|newest| (newest.snapshot, newest.edition())).collect();
    look.counted.named = named.into_iter().chain(memory.all_named()).collect();
    (look.counted.over, look.counted.signed_and_deleted) = signed.judged(&deleted, now_unix_ms);
    look.old_tombstones = old_tombstones(tombstones.iter().map(written), &with_manifest, now_unix_ms);
    Ok(look)
}

/// The manifests of a store that count.
#[derive(Debug, Default)]
pub(crate) struct ReadManifests {
    /// The newest of each snapshot, in the order of snapshots.
    pub(crate) newest: Vec<ListedManifest>,
    /// The copies that those of older programs name: they are not remembered.
    pub(crate) named: Vec<LayerCopy>,
    /// Those that were read now.
    pub(crate) read: usize,
}

/// Finds those that count of the manifests that were listed, and reads those of them that are not remembered. From then on
/// `memory` has those only.
pub(crate) async fn read_manifests(
    store: &Store,
    memory: &mut ManifestMemory,
    mut listed: Vec<ListedManifest>,
    deleted: &HashSet<SnapshotId>,
) -> Result<ReadManifests, StoreError> {
    listed.sort_by_key(|listed| (listed.snapshot, Reverse(listed.edition())));
    listed.dedup_by_key(|listed| listed.snapshot);
    // One that was there at the last look and has no tombstone may have been replaced while this list was made.
    let is_listed = |snapshot| listed.binary_search_by_key(&snapshot, |listed| listed.snapshot).is_ok();
    let missing = memory.all().map(|(snapshot, _)| snapshot);
    let missing: Vec<_> =
        missing.filter(|snapshot| !is_listed(*snapshot) && !deleted.contains(snapshot)).collect();
    let missing = missing.into_iter().map(|snapshot| ListedManifest { snapshot, written: None });
    let mut found = ReadManifests::default();
    let is_known = |listed: &ListedManifest| {
        listed.written.is_some_and(|written| memory.named(listed.snapshot, written).is_some())
    };
    let unread: Vec<_>;
    (found.newest, unread) = listed.into_iter().chain(missing).partition(is_known);
    let read = unread.into_iter().map(|listed| read_newest(store, listed));
    let mut reads = stream::iter(read).buffer_unordered(limits::COLLECT_READS);
    while let Some(read) = reads.try_next().await? {
        let Some((newest, named)) = read else { continue };
        found.read += 1;
        found.newest.push(newest);
        match newest.written {
            Some(written) => memory.remember(newest.snapshot, written, &named),
            None => found.named.extend(named),
        }
    }
    found.newest.sort_by_key(|newest| newest.snapshot);
    let counts = |snapshot| found.newest.binary_search_by_key(&snapshot, |newest| newest.snapshot).is_ok();
    memory.retain(counts);
    Ok(found)
}

/// Signs of deletions that can be undone, as listed.
#[derive(Default)]
struct Signed {
    /// Each with the time at which it was written.
    withdrawn: Vec<(SnapshotId, Withdrawal, i64)>,
    undone: HashSet<(SnapshotId, Uuid)>,
}

impl Signed {
    /// Notes an object, and returns the snapshot if it is a sign.
    fn note(&mut self, object: Collectable, written_unix_ms: i64) -> Option<SnapshotId> {
        match object {
            Collectable::Withdrawal(snapshot, withdrawal) => {
                self.withdrawn.push((snapshot, withdrawal, written_unix_ms));
                Some(snapshot)
            }
            Collectable::Undone(snapshot, id) => {
                self.undone.insert((snapshot, id));
                Some(snapshot)
            }
            Collectable::Layer(_) | Collectable::Manifest(..) | Collectable::WorkingSet(..) => None,
        }
    }

    /// The deletions that can be undone no more, and the deleted snapshots at which signs lie.
    fn judged(
        &self,
        deleted: &HashSet<SnapshotId>,
        now_unix_ms: i64,
    ) -> (BTreeSet<(SnapshotId, Withdrawal)>, BTreeSet<SnapshotId>) {
        let is_over = |(snapshot, withdrawal, written): &&(SnapshotId, Withdrawal, i64)| {
            !deleted.contains(snapshot)
                && !self.undone.contains(&(*snapshot, withdrawal.id))
                && withdrawal.ends_unix_ms(*written) <= now_unix_ms
        };
        let over =
            self.withdrawn.iter().filter(is_over).map(|(snapshot, withdrawal, _)| (*snapshot, *withdrawal));
        let signed = self.withdrawn.iter().map(|(snapshot, ..)| *snapshot);
        let signed = signed.chain(self.undone.iter().map(|(snapshot, _)| *snapshot));
        (over.collect(), signed.filter(|snapshot| deleted.contains(snapshot)).collect())
    }
}

/// Reads the newest manifest of a snapshot, and the copies that it names. One that was listed and is gone was replaced, or
/// the snapshot was deleted.
async fn read_newest(
    store: &Store,
    listed: ListedManifest,
) -> Result<Option<(ListedManifest, Vec<LayerCopy>)>, StoreError> {
    let ListedManifest { snapshot, mut written } = listed;
    for _ in 0..limits::MANIFEST_READ_TRIES {
        let path = written.map_or_else(|| older_path(snapshot), |written| path_of(snapshot, written.edition));
        match store.get_whole(path.clone(), limits::MANIFEST_BYTES_MAX).await {
            Ok(bytes) => {
                let named = named_in(snapshot, &bytes);
                let named = named.map_err(|reason| StoreError::NotUnderstood { path, reason })?;
                return Ok(Some((ListedManifest { snapshot, written }, named)));
            }
            Err(StoreError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
        let again = editions(&store.checked().await?, snapshot).await;
        let again = again.map_err(|source| StoreError::from_store(&older_path(snapshot), source))?;
        let Some(newest) = again.into_iter().max() else { return Ok(None) };
        // Not remembered for long: the next list tells other facts of it.
        written = Some(WrittenManifest { edition: newest, bytes: 0, unix_ms: 0 });
    }
    Err(StoreError::NotFound(older_path(snapshot)))
}

/// The copies that a manifest in the store names. The error says what to do.
fn named_in(snapshot: SnapshotId, bytes: &[u8]) -> Result<Vec<LayerCopy>, String> {
    let advice = "nothing is collected until it can be read: bring it back, use a newer rekindle, or delete the snapshot";
    let (found, named) = Publication::named_objects(bytes).map_err(|error| format!("{error}; {advice}"))?;
    if found != snapshot {
        return Err(format!("it is that of {found}; {advice}"));
    }
    Ok(named.into_iter().map(|(layer, object)| LayerCopy { layer, object }).collect())
}

/// Tombstones that are old, and under which no manifest lies.
fn old_tombstones<'a>(
    tombstones: impl Iterator<Item = (&'a ObjectPath, i64)>,
    with_manifest: &HashSet<SnapshotId>,
    now_unix_ms: i64,
) -> Vec<ObjectPath> {
    let old = tombstones.filter(|(_, unix_ms)| is_over(*unix_ms, limits::TOMBSTONE_STAYS, now_unix_ms));
    let is_alone =
        |path: &ObjectPath| snapshot_of(path).is_some_and(|snapshot| !with_manifest.contains(&snapshot));
    old.filter(|(path, _)| is_alone(path)).map(|(path, _)| path.clone()).collect()
}

fn snapshot_of(path: &ObjectPath) -> Option<SnapshotId> {
    path.parts().nth(1)?.as_ref().parse().ok()
}

/// Lists all objects that could be collected, beside manifests, with their bytes. Others are nobody's.
pub(crate) async fn look_at_objects(store: &Store) -> Result<Vec<(Collectable, u64)>, StoreError> {
    let mut found = Vec::new();
    for place in ["layers", "working-sets"] {
        let listed = store.list_all(place).await?;
        let object = |object: &ObjectMeta| Some((object.location.as_ref().parse().ok()?, object.size));
        found.extend(listed.iter().filter_map(object));
    }
    Ok(found)
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn roots_of_a_node_count_until_it_has_shown_no_sign_of_life_for_a_week_by_the_clock_of_the_store() {
        let day = i64::try_from(Duration::from_secs(86_400).as_millis()).expect("it is small");
        let names = ["roots/a/x", "nodes/a/alive", "roots/b/x", "condemned/c/x", "roots/d/x"];
        let paths = names.map(ObjectPath::from);
        let ago = [9 * day, 6 * day, 8 * day, 7 * day, -day];
        let alive = paths.iter().zip(ago.map(|ago| 100 * day - ago));
        let alive = nodes_alive(alive, limits::NODE_ABANDONED_AFTER, 100 * day);
        let mut alive: Vec<_> = alive.into_iter().collect();
        alive.sort();
        assert_eq!(alive, ["a", "c", "d"]);
    }

    #[test]
    fn a_deletion_can_be_undone_until_its_window_has_passed_by_the_clock_of_the_store() {
        let [young, over, undone, gone] = [1, 2, 3, 4].map(|number| SnapshotId::from_bytes([number; 16]));
        let withdrawal = Withdrawal::new(Duration::from_secs(60));
        let mut signed = Signed::default();
        for (snapshot, written) in [(young, 40_001), (over, 40_000), (undone, 0), (gone, 0)] {
            signed.note(Collectable::Withdrawal(snapshot, withdrawal), written);
        }
        signed.note(Collectable::Undone(undone, withdrawal.id), 1);
        let judged = signed.judged(&HashSet::from([gone]), 100_000);
        assert_eq!(judged, (BTreeSet::from([(over, withdrawal)]), BTreeSet::from([gone])));
    }

    #[test]
    fn a_tombstone_goes_after_a_month_unless_a_manifest_lies_under_it() {
        let day = i64::try_from(Duration::from_secs(86_400).as_millis()).expect("it is small");
        let [young, old, needed] = [1, 2, 3].map(|number| SnapshotId::from_bytes([number; 16]));
        let paths = [young, old, needed].map(|snapshot| ObjectPath::from(format!("{TOMBSTONES}/{snapshot}")));
        let written = paths.iter().zip([30, 31, 31].map(|days| (100 - days) * day));
        let gone = old_tombstones(written, &HashSet::from([needed]), 100 * day);
        assert_eq!(gone, [paths[1].clone()]);
    }
}
