//! The progress of a snapshot: the place of its pages, with everything that belongs to it.

use std::sync::Arc;

use super::Snapshot;
use super::followed::Followed;
use super::status::SealParts;
use crate::capture::Capture;
use crate::layer::{Confirmed, Layer, NeededHere};
use crate::lifecycle::SnapshotState;
use crate::named::Named;
use crate::snapshot_record::SealFacts;

/// Progress of a snapshot; its state follows from this.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) standing: Standing,
    pub(super) is_deleted: bool,
    pub(super) seal_facts: SealFacts,
    pub(super) seal_parts: Option<SealParts>,
    /// Error of the last failed try.
    pub(super) failure: Option<String>,
}

/// Place of a snapshot's pages, with everything that belongs to it.
#[derive(Debug)]
pub(super) enum Standing {
    /// In RAM, over the parent's pages.
    Captured(Captured),
    /// In layers that a manifest names.
    Named {
        named: Named,
        published: Option<Published>,
        /// Held until it is published.
        needed_here: Vec<Arc<NeededHere>>,
    },
    /// At another node, without names.
    Remote(Followed),
    /// Nowhere, or unavailable now.
    Lost(Lost),
}

/// The word of a published snapshot that its layers are in the store: their local files may be evicted.
#[derive(Debug)]
pub(super) struct Published {
    _confirmed: Vec<Arc<Confirmed>>,
}

/// The parts of an unsealed snapshot.
#[derive(Debug, Clone)]
pub(super) struct Captured {
    pub(super) parent: Option<Arc<Snapshot>>,
    /// The captures that the keeper has.
    pub(super) kept: Vec<Arc<Capture>>,
}

/// A snapshot without its pages.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    /// The reason.
    pub(crate) reason: String,
    /// True if it counts as lost only until that is decided.
    pub(crate) is_undecided: bool,
    /// True if another node has it, which sent other bytes than those.
    pub(crate) is_refuted: bool,
    /// The layers of its record that could be opened: holding them keeps their files, as the catalog names them.
    pub(crate) _layers: Vec<Arc<Layer>>,
    /// Keeps them from being evicted too.
    pub(crate) _needed_here: Vec<Arc<NeededHere>>,
}

impl Published {
    pub(super) fn of(named: &Named) -> Self {
        Self { _confirmed: named.confirm() }
    }
}

impl Progress {
    pub(super) fn state(&self) -> SnapshotState {
        match (&self.standing, self.is_deleted) {
            (Standing::Captured(_), false) => SnapshotState::Captured,
            (Standing::Captured(_), true) => SnapshotState::CapturedForChildren,
            (Standing::Named { published: None, .. }, false) => SnapshotState::Sealed,
            (Standing::Named { published: Some(_), .. }, false) => SnapshotState::Published,
            (Standing::Remote(_), false) => SnapshotState::Remote,
            (Standing::Lost(_), false) => SnapshotState::Lost,
            (Standing::Named { .. } | Standing::Remote(_) | Standing::Lost(_), true) => {
                SnapshotState::Discarded
            }
        }
    }

    pub(super) fn named(&self) -> Option<&Named> {
        match &self.standing {
            Standing::Named { named, .. } => Some(named),
            Standing::Captured(_) | Standing::Remote(_) | Standing::Lost(_) => None,
        }
    }

    pub(super) fn is_undecided(&self) -> bool {
        matches!(&self.standing, Standing::Lost(lost) if lost.is_undecided)
    }

    /// Its manifest goes, and with it the word that its layers are in the store.
    pub(super) fn set_deleted(&mut self) {
        self.is_deleted = true;
        if let Standing::Named { published, .. } = &mut self.standing {
            *published = None;
        }
    }

    pub(super) fn set_published(&mut self, now: Option<Published>) {
        if let Standing::Named { published, needed_here, .. } = &mut self.standing {
            self.failure = self.failure.take().filter(|_| now.is_none());
            *published = now;
            if published.is_some() {
                // Its record names the place of each layer by now.
                needed_here.clear();
            }
        }
    }
}
