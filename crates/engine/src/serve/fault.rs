//! A page fault: the page that a guest waits for, and its access.

use crate::geometry::GuestPage;

/// A page that a guest thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) page: GuestPage,
    pub(super) access: Access,
}

/// The access that the guest wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Read a page that is missing.
    Read,
    /// Write a page that is missing.
    Write,
    /// Write a page that is there, but protected to track the first write.
    WriteProtected,
    /// Use a page that is in the memory file but not mapped, if the VMM asked for such faults.
    Unmapped,
}

impl Access {
    /// The access that satisfies two threads that wait for one missing page.
    pub(super) fn join(self, other: Self) -> Self {
        match (self, other) {
            (Self::Read, Self::Read) => Self::Read,
            (Self::Read | Self::Write | Self::WriteProtected | Self::Unmapped, _) => Self::Write,
        }
    }
}
