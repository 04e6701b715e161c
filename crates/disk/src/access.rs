//! The right of a disk's clients to write it.

/// Rights of a disk's clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    ReadWrite,
    /// Read only.
    ReadOnly,
}
