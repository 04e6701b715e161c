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
    /// Undeleters say that a deletion is undone after they read the lists.
    UndoneAfterLists,
    /// Undeleters do not read condemned lists.
    UndeleterReadsNoLists,
    /// Undeleters do not ask for a tombstone.
    UndeleterLooksForNoTombstone,
    /// Undeleters ask for a tombstone before they read the lists.
    TombstoneBeforeLists,
    /// Undeleters take the sign of the deletion away.
    SignTakenAway,
    /// Collectors put no tombstone when the window has passed, and delete the manifest.
    NoTombstoneAtEnd,
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

/// Those that need an undeletion.
pub(super) const UNDELETERS_FAULTS: [Fault; 8] = [
    Fault::UndoneAfterLists,
    Fault::UndeleterReadsNoLists,
    Fault::UndeleterLooksForNoTombstone,
    Fault::TombstoneBeforeLists,
    Fault::SignTakenAway,
    Fault::NoTombstoneAtEnd,
    Fault::NoSecondLook,
    Fault::ListGoesFirst,
];

/// Those that need a reader.
pub(super) const READERS_FAULTS: [Fault; 3] =
    [Fault::ReadersRootAfterLists, Fault::ReaderReadsNoLists, Fault::ReaderSeesNothing];
