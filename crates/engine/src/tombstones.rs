//! Tombstones: a manifest under one is none, so a put of it that lands late brings no deleted snapshot back.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use object_store::PutPayload;
use object_store::path::Path as ObjectPath;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::collectable::Collectable;
use crate::identity::SnapshotId;
use crate::limits;
use crate::manifest_objects::{editions_and_signs, older_path};
use crate::store::{Store, StoreError};
use crate::withdrawal::Withdrawal;

/// Place of all tombstones.
pub(crate) const TOMBSTONES: &str = "deleted";

/// The node that deleted a snapshot, and the time by its clock, as far as the tombstone says.
///
/// As JSON it is the content of a tombstone, of which only the name counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    version: u32,
    /// The name of its machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    /// Its name in the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unix_seconds: Option<u64>,
    /// True if it can be undone for a while.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    can_be_undone: bool,
}

/// Content of the sign that a deletion was undone; only its name counts.
const UNDONE_CONTENT: &[u8] = br#"{"version":1}"#;

/// The version of a tombstone that is written. Those of other versions are tombstones too.
const VERSION: u32 = 1;

impl Deletion {
    /// One by this machine, now.
    fn now(node: String) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        let host = host.map(|host| host.trim().to_owned()).filter(|host| !host.is_empty());
        let since = SystemTime::now().duration_since(UNIX_EPOCH).ok();
        let unix_seconds = since.map(|since| since.as_secs());
        Self { version: VERSION, host, node: Some(node), unix_seconds, can_be_undone: false }
    }

    /// The node that deleted it: its machine's name and its own, as far as they are known.
    #[must_use]
    pub fn by(&self) -> Option<String> {
        match (&self.host, &self.node) {
            (Some(host), Some(node)) => Some(format!("{host} ({node})")),
            (Some(one), None) | (None, Some(one)) => Some(one.clone()),
            (None, None) => None,
        }
    }
}

impl fmt::Display for Deletion {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(by) = self.by() {
            write!(out, " by node {by}")?;
        }
        let since = |seconds| SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_secs(seconds));
        match self.unix_seconds.map(since) {
            Some(Ok(ago)) if ago >= DAY => write!(out, ", {} days ago", ago.as_secs() / DAY.as_secs())?,
            Some(Ok(ago)) if ago >= HOUR => write!(out, ", {} hours ago", ago.as_secs() / HOUR.as_secs())?,
            Some(Ok(ago)) => write!(out, ", {} minutes ago", ago.as_secs() / 60)?,
            // The clocks of the two nodes differ.
            Some(Err(_)) | None => {}
        }
        if self.can_be_undone { write!(out, "; `rekindle undelete` brings it back") } else { Ok(()) }
    }
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

impl Store {
    /// Puts a snapshot's tombstone: a manifest of it is none from then on.
    pub(crate) async fn put_tombstone(&self, snapshot: SnapshotId) -> Result<(), StoreError> {
        // The node has its name once the store is open.
        self.objects().await?;
        let content = serde_json::to_vec(&Deletion::now(self.node().to_string())).expect("it is plain data");
        self.put(&tombstone_path(snapshot), content.into()).await
    }

    /// Puts the sign of a deletion that can be undone. False if no edition of the manifest is there to be brought back.
    pub(crate) async fn withdraw(
        &self,
        snapshot: SnapshotId,
        withdrawal: Withdrawal,
    ) -> Result<bool, StoreError> {
        let at = older_path(snapshot);
        let (editions, _) = editions_and_signs(&self.checked().await?, snapshot)
            .await
            .map_err(|source| StoreError::from_store(&at, source))?;
        if editions.is_empty() {
            return Ok(false);
        }
        let deletion = Deletion { can_be_undone: true, ..Deletion::now(self.node().to_string()) };
        let content = serde_json::to_vec(&deletion).expect("it is plain data");
        self.put(&withdrawal_path(snapshot, withdrawal), content.into()).await?;
        Ok(true)
    }

    /// Puts the sign that a deletion was undone.
    pub(crate) async fn put_undone(&self, snapshot: SnapshotId, id: Uuid) -> Result<(), StoreError> {
        let path = ObjectPath::from(Collectable::Undone(snapshot, id).to_string());
        self.put(&path, PutPayload::from_static(UNDONE_CONTENT)).await
    }

    /// The node that deleted a snapshot in a way that can be undone, as far as it is known.
    pub(crate) async fn withdrawn_by(
        &self,
        snapshot: SnapshotId,
        withdrawal: Withdrawal,
    ) -> Result<Deletion, StoreError> {
        let path = withdrawal_path(snapshot, withdrawal);
        match self.get_whole(path, limits::TOMBSTONE_BYTES_MAX).await {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
            Err(StoreError::TooLarge { .. } | StoreError::NotFound(_)) => Ok(Deletion::default()),
            Err(error) => Err(error),
        }
    }

    /// Makes a deletion final that can be undone no more, unless the snapshot has its tombstone; false if it has.
    pub(crate) async fn end_withdrawn(
        &self,
        snapshot: SnapshotId,
        withdrawal: Withdrawal,
    ) -> Result<bool, StoreError> {
        if self.has_tombstone(snapshot).await? {
            return Ok(false);
        }
        let mut deletion = self.withdrawn_by(snapshot, withdrawal).await?;
        (deletion.version, deletion.can_be_undone) = (VERSION, false);
        let content = serde_json::to_vec(&deletion).expect("it is plain data");
        self.put(&tombstone_path(snapshot), content.into()).await?;
        Ok(true)
    }

    /// The deletion of a snapshot by any node, if it was deleted.
    pub(crate) async fn deletion(&self, snapshot: SnapshotId) -> Result<Option<Deletion>, StoreError> {
        match self.get_whole(tombstone_path(snapshot), limits::TOMBSTONE_BYTES_MAX).await {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).unwrap_or_default())),
            Err(StoreError::TooLarge { .. }) => Ok(Some(Deletion::default())),
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// True if a snapshot's manifest or tombstone is there, so that it needs no root to be published.
    pub(crate) async fn is_settled(&self, snapshot: SnapshotId) -> Result<bool, StoreError> {
        match self.see_manifest(snapshot, None).await {
            Ok(()) => Ok(true),
            Err(StoreError::NotFound(_)) => self.has_tombstone(snapshot).await,
            Err(error) => Err(error),
        }
    }

    /// True if a snapshot was deleted, by any node.
    pub(crate) async fn has_tombstone(&self, snapshot: SnapshotId) -> Result<bool, StoreError> {
        match self.size_of(&tombstone_path(snapshot)).await {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The snapshot whose tombstone has this name.
pub(crate) fn snapshot_of_tombstone(name: &str) -> Option<SnapshotId> {
    let snapshot = name.strip_prefix(TOMBSTONES)?.strip_prefix('/')?.parse().ok()?;
    (tombstone_path(snapshot).as_ref() == name).then_some(snapshot)
}

fn withdrawal_path(snapshot: SnapshotId, withdrawal: Withdrawal) -> ObjectPath {
    ObjectPath::from(Collectable::Withdrawal(snapshot, withdrawal).to_string())
}

fn tombstone_path(snapshot: SnapshotId) -> ObjectPath {
    ObjectPath::from(format!("{TOMBSTONES}/{snapshot}"))
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_tombstone_tells_the_node_and_the_time_as_far_as_it_says_them() {
        let now = Deletion::now("0193".to_owned());
        let read: Deletion =
            serde_json::from_slice(&serde_json::to_vec(&now).expect("plain data")).expect("it is one");
        assert_eq!(read, now);
        let told = Deletion { host: Some("web-1".to_owned()), ..now }.to_string();
        assert!(told.starts_with(" by node web-1 (0193), ") && told.ends_with(" minutes ago"), "{told}");
        let told = Deletion { can_be_undone: true, ..Deletion::default() }.to_string();
        assert_eq!(told, "; `rekindle undelete` brings it back");
        let first: Deletion = serde_json::from_str(r#"{"version":1}"#).expect("it is one");
        assert_eq!(first.to_string(), "");
    }
}
