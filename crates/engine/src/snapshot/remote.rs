//! A snapshot that another node has: how much of it is here, and the names that end that.

use std::sync::Arc;

use super::followed::{Followed, Follower};
use super::progress::{Lost, Progress, Standing};
use super::status::RemoteStatus;
use super::{Snapshot, SnapshotParts, Volume};
use crate::captured_facts::CapturedFacts;
use crate::lifecycle::{SnapshotEvent, SnapshotWork};
use crate::manifest::VolumeShape;
use crate::peer::Peer;
use crate::remote_pages::RemotePages;
use crate::snapshot_record::SealFacts;
use crate::sync::lock;
use crate::view::View;

impl Progress {
    fn follower(&mut self) -> Option<&mut Follower> {
        match &mut self.standing {
            Standing::Remote(followed) => Some(&mut followed.by),
            Standing::Captured(_) | Standing::Named { .. } | Standing::Lost(_) => None,
        }
    }
}

impl Snapshot {
    /// A snapshot that another node has; its views have that node's pages.
    pub(crate) fn remote(parts: SnapshotParts, peer: Arc<dyn Peer>) -> Self {
        Self::new(parts, Standing::Remote(Followed { peer, by: Follower::Life }), SealFacts::default())
    }

    /// Everything of it but its pages.
    pub(crate) fn facts(&self) -> CapturedFacts {
        let shape = |volume: &Volume| VolumeShape {
            name: volume.name.clone(),
            page_kind: volume.page_kind,
            pages: volume.view.pages(),
        };
        CapturedFacts {
            parent: self.parent_id,
            generation: self.generation,
            created_unix_ms: self.created_unix_ms,
            volumes: self.volumes.iter().map(shape).collect(),
            blobs: self.blobs.clone(),
        }
    }

    /// The other node, and how much has not come from there.
    pub(super) fn remote_status(&self, standing: &Standing) -> Option<RemoteStatus> {
        match standing {
            Standing::Remote(Followed { peer, by: _ }) => Some(RemoteStatus {
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
            Standing::Remote(Followed { peer, by: _ }) => Some(Arc::clone(peer)),
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
            progress.standing = Standing::Lost(Lost { reason, is_refuted: true, ..Lost::default() });
        })
    }

    /// The difference between what its node sent and its names, if that was found.
    pub fn refuted(&self) -> Option<String> {
        match &lock(&self.progress).standing {
            Standing::Lost(Lost { is_refuted: true, reason, .. }) => Some(reason.clone()),
            Standing::Captured(_) | Standing::Named { .. } | Standing::Remote(_) | Standing::Lost(_) => None,
        }
    }

    /// Tells the life that follows it to end.
    pub(crate) fn let_go(&self) {
        if let Some(by @ Follower::Life) = lock(&self.progress).follower() {
            *by = Follower::EndingLife;
        }
        self.tell();
    }

    /// Takes that back; true if that life has ended, so that a new one is needed.
    pub(crate) fn needs_new_follower(&self) -> bool {
        let mut progress = lock(&self.progress);
        let Some(by) = progress.follower() else { return false };
        std::mem::replace(by, Follower::Life) == Follower::Nobody
    }

    /// Waits until the life that follows it is told to end.
    pub(crate) async fn is_let_go(&self) {
        loop {
            // Made before the check, so that no later change is missed.
            let news = self.news.notified();
            if lock(&self.progress).follower().is_some_and(|by| *by == Follower::EndingLife) {
                return;
            }
            news.await;
        }
    }

    /// Ends the life that follows it, if it is still told to end.
    pub(crate) fn ends_following(&self) -> bool {
        let mut progress = lock(&self.progress);
        let ending = progress.follower().filter(|by| **by == Follower::EndingLife);
        ending.map(|by| *by = Follower::Nobody).is_some()
    }
}
