//! The states of a snapshot, and the next state for each event: a table without effects.

/// Stage that a snapshot has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SnapshotState {
    /// Its bytes are frozen in RAM; it can be resumed, forked and paused over.
    Captured,
    /// Deleted before it was sealed; it is still sealed, for its children.
    CapturedForChildren,
    /// Its layers are on this node's disk, and it has a manifest.
    Sealed,
    /// Its manifest is in the store.
    Published,
    /// Deleted.
    Discarded,
    /// Found lost at a start of the engine: its bytes were in RAM that no keeper held, or in a missing file.
    Lost,
}

/// Events in a snapshot's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SnapshotEvent {
    /// Its seal succeeded.
    SealSucceeded,
    /// Its seal failed, by a full disk for instance.
    SealFailed,
    /// Its manifest is in the store.
    PublishSucceeded,
    /// The store failed.
    PublishFailed,
    /// The store was accepted in place of the one that had its manifest, and lacks it.
    ManifestMissing,
    /// Its owner deleted it.
    Deleted,
}

/// Work that a change of state calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SnapshotWork {
    /// Nothing.
    None,
    /// Try the same again, after a pause.
    Again,
    /// Publish it.
    Publish,
    /// Remove its manifest from the store.
    RemoveFromStore,
}

impl SnapshotState {
    /// The state after `event` and the work it asks for; `None` if the event cannot happen.
    pub fn after(self, event: SnapshotEvent) -> Option<(Self, SnapshotWork)> {
        use SnapshotEvent as Event;
        use SnapshotWork as Work;
        match (self, event) {
            (Self::Captured, Event::SealSucceeded) => Some((Self::Sealed, Work::Publish)),
            (Self::Captured | Self::CapturedForChildren, Event::SealFailed) => Some((self, Work::Again)),
            (Self::Captured, Event::Deleted) => Some((Self::CapturedForChildren, Work::None)),
            (Self::CapturedForChildren, Event::SealSucceeded) => Some((Self::Discarded, Work::None)),
            (Self::Sealed, Event::PublishSucceeded) => Some((Self::Published, Work::None)),
            (Self::Sealed, Event::PublishFailed) => Some((Self::Sealed, Work::Again)),
            (Self::Published, Event::ManifestMissing) => Some((Self::Sealed, Work::Publish)),
            // An upload may be under way, so its manifest may reach the store.
            (Self::Sealed | Self::Published | Self::Lost, Event::Deleted) => {
                Some((Self::Discarded, Work::RemoveFromStore))
            }
            // A put that reports failure may have succeeded, so the manifest is removed either way.
            (Self::Discarded, Event::PublishSucceeded | Event::PublishFailed) => {
                Some((Self::Discarded, Work::RemoveFromStore))
            }
            (Self::CapturedForChildren | Self::Discarded, Event::Deleted)
            | (Self::Sealed | Self::Discarded, Event::ManifestMissing) => Some((self, Work::None)),
            (
                Self::Captured | Self::CapturedForChildren,
                Event::PublishSucceeded | Event::PublishFailed | Event::ManifestMissing,
            )
            | (Self::Sealed | Self::Published | Self::Discarded, Event::SealSucceeded | Event::SealFailed)
            | (Self::Published, Event::PublishSucceeded | Event::PublishFailed)
            | (
                Self::Lost,
                Event::SealSucceeded
                | Event::SealFailed
                | Event::PublishSucceeded
                | Event::PublishFailed
                | Event::ManifestMissing,
            ) => None,
        }
    }

    /// True if it has a manifest.
    pub fn has_manifest(self) -> bool {
        matches!(self, Self::Sealed | Self::Published)
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn the_whole_table() {
        use SnapshotEvent::{
            Deleted, ManifestMissing, PublishFailed, PublishSucceeded, SealFailed, SealSucceeded,
        };
        use SnapshotState::{Captured, CapturedForChildren, Discarded, Lost, Published, Sealed};
        let mut table = String::new();
        for state in [Captured, CapturedForChildren, Sealed, Published, Discarded, Lost] {
            for event in
                [SealSucceeded, SealFailed, PublishSucceeded, PublishFailed, ManifestMissing, Deleted]
            {
                let after = state
                    .after(event)
                    .map_or("cannot happen".into(), |(next, work)| format!("{next:?}, {work:?}"));
                table += &format!("{state:?} + {event:?} -> {after}\n");
            }
        }
        assert_eq!(table, include_str!("lifecycle_table.txt"));
    }
}
