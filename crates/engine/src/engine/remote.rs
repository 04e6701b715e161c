//! Snapshots that other nodes have, and this node's for them.

use std::io;
use std::sync::Arc;

use super::Engine;
use crate::geometry::bytes_of_pages;
use crate::identity::SnapshotId;
use crate::life::Work;
use crate::manifest::VolumeShape;
use crate::open::{OpenError, known_and_there};
use crate::origin::Origin;
use crate::peer::{Described, Peer, PeerError};
use crate::remote::remote_snapshot;
use crate::snapshot::{Snapshot, SnapshotParts, Volume};
use crate::sources::SourceError;
use crate::sync::lock;
use crate::tombstones::Deletion;
use crate::view::{LiveView, View};

impl Engine {
    /// Opens a snapshot that another node has. One that is known, or that is published, is opened as ever; of another one
    /// the pages come from that node until it is published.
    pub fn open_from(&self, id: SnapshotId, node: &str) -> Result<Arc<Snapshot>, OpenError> {
        if let Some(known) = self.snapshot(id) {
            return known_and_there(known);
        }
        let refused = |source| OpenError::Peer { snapshot: id, source };
        let peer = self.peers.at(node).map_err(refused)?;
        let asked = self.runtime.block_on(self.background.stop().unless_said(peer.describe(id)));
        let ends = || PeerError::Refused { node: node.to_owned(), reason: "this node ends".to_owned() };
        match asked.unwrap_or_else(|_stopped| Err(ends())) {
            Ok(described) if !described.is_published => self.open_remote(id, &peer, described),
            Ok(_) => self.open(id).inspect(|opened| self.look_at_peers(opened, Some(peer))),
            // It may have come so far before.
            Err(error) => self.open(id).map_err(|of_store| {
                let is_gone = matches!(&of_store, OpenError::Store { source: SourceError::Gone(_), .. });
                if is_gone { refused(error) } else { of_store }
            }),
        }
    }

    /// Opens a snapshot that is known or in the store; one that another node has not saved yet by its origin record.
    pub fn open_anywhere(&self, id: SnapshotId) -> Result<Arc<Snapshot>, OpenError> {
        let missing = match self.open(id) {
            Err(error @ OpenError::Store { source: SourceError::Gone(_), .. }) => error,
            opened => return opened,
        };
        let read = self.runtime.block_on(self.fetcher.sources().origin(id));
        let unread = |error: SourceError| OpenError::Origin { snapshot: id, reason: error.to_string() };
        let Some(origin) = read.map_err(unread)? else {
            return Err(missing);
        };
        let named = self.peer_named(&origin);
        self.open_from(id, &named.map_err(|source| OpenError::Peer { snapshot: id, source })?)
    }

    /// The name or address at which this node asks the one that calls itself so, if that is one of its peers.
    pub fn peer_named(&self, origin: &Origin) -> Result<String, PeerError> {
        self.runtime.block_on(self.peers.named_by(origin))
    }

    /// Waits for an answer of another node.
    pub fn wait_for<T>(&self, answer: impl Future<Output = T>) -> T {
        self.runtime.block_on(answer)
    }

    fn open_remote(
        &self,
        id: SnapshotId,
        peer: &Arc<dyn Peer>,
        described: Described,
    ) -> Result<Arc<Snapshot>, OpenError> {
        let Described { domain, facts, is_published: _ } = described;
        let _opening = self.openings.begin(id, || {});
        if let Some(known) = self.snapshot(id) {
            return known_and_there(known);
        }
        let records = self.background.records.clone();
        let unrecorded = |source| OpenError::Catalog { snapshot: id, source };
        let is_deleted = records.as_ref().map_or(Ok(false), |records| records.is_deleted(id));
        if self.is_being_deleted(id) || is_deleted.map_err(unrecorded)? {
            return Err(OpenError::Deleted { snapshot: id, by: Deletion::default() });
        }
        if facts.volumes.is_empty() {
            return Err(OpenError::NoMemory { snapshot: id });
        }
        self.cache.keys().of_domain(&domain).map_err(|source| OpenError::NoKey { snapshot: id, source })?;
        let bytes = facts.volumes.iter().map(|volume| bytes_of_pages(volume.pages)).sum();
        let lease = self.rules.budget.lease(bytes, self.rules.wait);
        let lease = lease.map_err(|source| OpenError::NoRoom { snapshot: id, source })?;
        let recorded = facts.clone();
        let parts = SnapshotParts {
            id,
            parent_id: facts.parent,
            domain: domain.clone(),
            generation: facts.generation,
            created_unix_ms: facts.created_unix_ms,
            volumes: facts.volumes.into_iter().map(empty_volume).collect(),
            blobs: facts.blobs,
            records: records.clone(),
        };
        let no_memory = |source| OpenError::NoMemoryFile { snapshot: id, source };
        let made = remote_snapshot(parts, Arc::clone(peer), None, lease, &self.rules.reaper);
        let snapshot = Arc::new(made.map_err(|error| no_memory(io::Error::other(error)))?);
        if let Some(records) = &records {
            // The memory first: what is recorded without it cannot be checked after a start.
            let kept = snapshot.keep_remote(records).map_err(no_memory);
            let kept =
                kept.and_then(|()| records.remote(id, &domain, peer.node(), recorded).map_err(unrecorded));
            kept.inspect_err(|_| records.forget(id))?;
        }
        lock(&self.there.known).insert(id, Arc::clone(&snapshot));
        self.background.watcher.changed(&snapshot);
        self.begin_life(&snapshot, Work::Follow);
        Ok(snapshot)
    }

    /// A snapshot of this node as it is described to others; none if it is not one that they can read.
    pub fn describe(&self, id: SnapshotId) -> Option<Described> {
        let snapshot = self.snapshot(id).filter(|snapshot| !snapshot.is_lost())?;
        Some(Described {
            domain: snapshot.domain().clone(),
            is_published: snapshot.is_published(),
            facts: snapshot.facts(),
        })
    }
}

/// A volume without any page yet.
fn empty_volume(VolumeShape { name, page_kind, pages }: VolumeShape) -> Volume {
    Volume { name, page_kind, view: Arc::new(LiveView::new(View::lost(pages))) }
}
