//! A snapshot that another node has: how much of it is here, and the names that end that.

use std::sync::Arc;

use super::progress::{Lost, Standing};
use super::status::RemoteStatus;
use super::{Snapshot, SnapshotParts, Volume};
use crate::lifecycle::{SnapshotEvent, SnapshotWork};
use crate::peer::Peer;
use crate::remote_pages::RemotePages;
use crate::snapshot_record::SealFacts;
use crate::sync::lock;
use crate::view::View;

impl Snapshot {
    /// A snapshot that another node has; its views have that node's pages.
    pub(crate) fn remote(parts: SnapshotParts, peer: Arc<dyn Peer>) -> Self {
        Self::new(parts, Standing::Remote(peer), SealFacts::default())
    }

    /// The other node, and how much has not come from there.
    pub(super) fn remote_status(&self, standing: &Standing) -> Option<RemoteStatus> {
        match standing {
            Standing::Remote(peer) => Some(RemoteStatus {
                node: peer.node().to_owned(),
                missing_bytes: self.remote_pages().iter().map(|pages| pages.missing_bytes()).sum(),
            }),
            Standing::Captured(_) | Standing::Named { .. } | Standing::Lost(_) => None,
        }
    }

    /// The pages of its volumes that another node has; none once they have names.
    pub(crate) fn remote_pages(&self) -> Vec<Arc<RemotePages>> {
        let pages = |volume: &Volume| volume.view.load().remote_pages().cloned();
        self.volumes.iter().filter_map(pages).collect()
    }

    /// The node that has it, if it has no names yet.
    pub(crate) fn peer(&self) -> Option<Arc<dyn Peer>> {
        match &lock(&self.progress).standing {
            Standing::Remote(peer) => Some(Arc::clone(peer)),
            Standing::Captured(_) | Standing::Named { .. } | Standing::Lost(_) => None,
        }
    }

    /// Gives this remote snapshot the names of `made`, which was found in the store.
    pub(crate) fn record_names(&self, made: &Self) -> SnapshotWork {
        // Before the state, as readers that see the new state use the views.
        for (volume, made) in self.volumes.iter().zip(&made.volumes) {
            volume.view.improve(&volume.view.load(), made.view.load());
        }
        self.editions.replace_by(&made.editions);
        let mut standing =
            std::mem::replace(&mut lock(&made.progress).standing, Standing::Lost(Lost::default()));
        let is_deleted = self.is_deleted();
        self.record_with(SnapshotEvent::NamesCame, |progress| {
            if is_deleted && let Standing::Named { published, .. } = &mut standing {
                *published = None;
            }
            std::mem::swap(&mut progress.standing, &mut standing);
            progress.failure = None;
        })
    }

    /// Gives the pages of this remote snapshot up: its node sent others than those that it named.
    pub(crate) fn record_wrong(&self, reason: String) -> SnapshotWork {
        for volume in &self.volumes {
            volume.view.improve(&volume.view.load(), View::lost(volume.view.pages()));
        }
        self.record_with(SnapshotEvent::RemoteWrong, |progress| {
            progress.standing = Standing::Lost(Lost { reason, ..Lost::default() });
        })
    }
}
