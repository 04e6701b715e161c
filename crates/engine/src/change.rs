//! Changes of a catalog: a table, a key, a value, and the old values that take a change back.

use std::collections::BTreeMap;
use std::fmt::Debug;

use redb::TableDefinition;

/// The tables of a catalog: each from key bytes to value bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Stage that each snapshot has reached.
    Snapshot,
    /// The manifest of each sealed snapshot.
    Manifest,
    /// The snapshots that were deleted and are not gone yet.
    Deletion,
    /// The pages that guests resumed from a snapshot touched first.
    WorkingSet,
    /// The sandboxes.
    Sandbox,
    /// Answers to requests that may be repeated.
    Idempotency,
    /// Single values.
    Meta,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Snapshot,
        Self::Manifest,
        Self::Deletion,
        Self::WorkingSet,
        Self::Sandbox,
        Self::Idempotency,
        Self::Meta,
    ];
}

/// One change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The new value of a key, which may have had another one before.
    Put {
        /// The table.
        kind: Kind,
        /// The key.
        key: Vec<u8>,
        /// The value.
        value: Vec<u8>,
    },
    /// A key goes, if it is there.
    Remove {
        /// The table.
        kind: Kind,
        /// The key.
        key: Vec<u8>,
    },
}

/// A key with its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// The values that the keys of a transaction had before it; none where the key was not there.
#[derive(Debug, Clone, Default)]
pub(crate) struct ValuesBefore(BTreeMap<(Kind, Vec<u8>), Option<Vec<u8>>>);

impl ValuesBefore {
    /// Notes a key's value; the first one stays.
    pub(crate) fn note(&mut self, kind: Kind, key: &[u8], value: Option<Vec<u8>>) {
        self.0.entry((kind, key.to_vec())).or_insert(value);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The changes that give every key its value again.
    pub(crate) fn changes(&self) -> Vec<Change> {
        let change = |((kind, key), value): (&(Kind, Vec<u8>), &Option<Vec<u8>>)| match value.clone() {
            Some(value) => Change::Put { kind: *kind, key: key.clone(), value },
            None => Change::Remove { kind: *kind, key: key.clone() },
        };
        self.0.iter().map(change).collect()
    }
}

/// The table of a kind in the catalog's file.
pub(crate) const fn table_of(kind: Kind) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(match kind {
        Kind::Snapshot => "snapshot",
        Kind::Manifest => "manifest",
        Kind::Deletion => "deletion",
        Kind::WorkingSet => "working-set",
        Kind::Sandbox => "sandbox",
        Kind::Idempotency => "idempotency",
        Kind::Meta => "meta",
    })
}

/// Fate that a test gives to a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is made and reported, as the disk does it.
    Made,
    /// It is not made, and reported so.
    Refused,
    /// It is not made, and its outcome is reported as unknown.
    UnknownNotMade,
    /// It is made, and its outcome is reported as unknown.
    UnknownMade,
    /// It is not made, and reported as made.
    Forgotten,
}

/// A test's hand on the transactions of a catalog; called with no lock held. Nothing in the program sets one.
pub trait CatalogHook: Debug + Send + Sync {
    /// The fate of the next transaction, which makes these changes.
    fn fate(&self, changes: &[Change]) -> Fate;

    /// True if a transaction of unknown outcome can be taken back now.
    fn can_settle(&self) -> bool;
}

/// Is told how far a catalog has come.
pub trait CatalogListener: Debug + Send + Sync {
    /// The catalog was made by this many transactions. Called by the thread that has the database, before the callers
    /// of the last transaction get their answer: the listener must not use the catalog.
    fn made(&self, transactions: u64);
}
