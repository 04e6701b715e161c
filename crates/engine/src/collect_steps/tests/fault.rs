//! Faults of the protocol, which the exploration must find.

/// A step that is taken otherwise than the project's code asks for it. Each must be found wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Fault {
    /// Collectors list manifests before roots.
    ManifestsBeforeRoots,
    /// Collectors do not look a second time.
    NoSecondLook,
    /// Collectors put their list after the second look.
    ListAfterSecondLook,
    /// Collectors take their list away before they delete.
    ListGoesFirst,
    /// Publishers do not read condemned lists.
    NoCondemned,
    /// Publishers do not ask whether a copy is there.
    NotSeen,
    /// Publishers ask that before they read the lists.
    SeenBeforeListed,
    /// Publishers put their root after they read the lists.
    RootAfterLists,
    /// Publishers take their root away before they put the manifest.
    RootGoesFirst,
    /// Nobody puts tombstones.
    NoTombstone,
    /// Nobody puts tombstones, and a root stays as long as a put is open.
    RootInsteadOfTombstone,
    /// The tombstone is put when the root is gone.
    TombstoneAfterRoot,
    /// Readers put their root after they read the lists.
    ReadersRootAfterLists,
    /// Readers do not read condemned lists.
    ReaderReadsNoLists,
    /// Readers do not ask whether a copy is there.
    ReaderSeesNothing,
}

pub(super) const FAULTS: [Fault; 12] = [
    Fault::ManifestsBeforeRoots,
    Fault::NoSecondLook,
    Fault::ListAfterSecondLook,
    Fault::ListGoesFirst,
    Fault::NoCondemned,
    Fault::NotSeen,
    Fault::SeenBeforeListed,
    Fault::RootAfterLists,
    Fault::RootGoesFirst,
    Fault::NoTombstone,
    Fault::RootInsteadOfTombstone,
    Fault::TombstoneAfterRoot,
];

/// Those that need a reader.
pub(super) const READERS_FAULTS: [Fault; 3] =
    [Fault::ReadersRootAfterLists, Fault::ReaderReadsNoLists, Fault::ReaderSeesNothing];
