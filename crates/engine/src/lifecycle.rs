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
    /// Another node has it, and it is not in the store yet: its pages come from there.
    Remote,
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
    /// The manifest that its node made is in the store.
    NamesCame,
    /// Its node cannot be reached, or gave an answer that cannot be used.
    RemoteFailed,
    /// Its node gave pages that are not those of its manifest.
    RemoteWrong,
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
            (Self::Remote, Event::NamesCame) => Some((Self::Published, Work::None)),
            (Self::Remote, Event::RemoteFailed) => Some((Self::Remote, Work::Again)),
            (Self::Remote, Event::RemoteWrong) => Some((Self::Lost, Work::None)),
            (Self::Published, Event::ManifestMissing) => Some((Self::Sealed, Work::Publish)),
            // An upload may be under way, so its manifest may reach the store.
            (Self::Sealed | Self::Published | Self::Remote | Self::Lost, Event::Deleted) => {
                Some((Self::Discarded, Work::RemoveFromStore))
            }
            // A put that reports failure may have succeeded, so the manifest is removed either way.
            (Self::Discarded, Event::PublishSucceeded | Event::PublishFailed) => {
                Some((Self::Discarded, Work::RemoveFromStore))
            }
            (Self::CapturedForChildren | Self::Discarded, Event::Deleted)
            | (Self::Discarded, Event::NamesCame | Event::RemoteFailed | Event::RemoteWrong)
            | (Self::Sealed | Self::Discarded, Event::ManifestMissing) => Some((self, Work::None)),
            (
                Self::Captured | Self::CapturedForChildren,
                Event::PublishSucceeded
                | Event::PublishFailed
                | Event::ManifestMissing
                | Event::NamesCame
                | Event::RemoteFailed
                | Event::RemoteWrong,
            )
            | (Self::Sealed | Self::Published, Event::NamesCame | Event::RemoteFailed | Event::RemoteWrong)
            | (
                Self::Remote,
                Event::SealSucceeded
                | Event::SealFailed
                | Event::PublishSucceeded
                | Event::PublishFailed
                | Event::ManifestMissing,
            )
            | (Self::Sealed | Self::Published | Self::Discarded, Event::SealSucceeded | Event::SealFailed)
            | (Self::Published, Event::PublishSucceeded | Event::PublishFailed)
            | (
                Self::Lost,
                Event::SealSucceeded
                | Event::SealFailed
                | Event::PublishSucceeded
                | Event::PublishFailed
                | Event::ManifestMissing
                | Event::NamesCame
                | Event::RemoteFailed
                | Event::RemoteWrong,
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
            Deleted, ManifestMissing, NamesCame, PublishFailed, PublishSucceeded, RemoteFailed, RemoteWrong,
            SealFailed, SealSucceeded,
        };
        use SnapshotState::{Captured, CapturedForChildren, Discarded, Lost, Published, Remote, Sealed};
        let mut table = String::new();
        for state in [Captured, CapturedForChildren, Sealed, Published, Remote, Discarded, Lost] {
            for event in [
                SealSucceeded,
                SealFailed,
                PublishSucceeded,
                PublishFailed,
                ManifestMissing,
                NamesCame,
                RemoteFailed,
                RemoteWrong,
                Deleted,
            ] {
                let after = state
                    .after(event)
                    .map_or("cannot happen".into(), |(next, work)| format!("{next:?}, {work:?}"));
                table += &format!("{state:?} + {event:?} -> {after}\n");
            }
        }
        assert_eq!(table, include_str!("lifecycle_table.txt"));
    }
}
