//! Changes of a catalog: a table, a key and a value, and the old values that undo them.

use std::collections::BTreeMap;
use std::fmt::Debug;

use redb::TableDefinition;

/// The tables of a catalog: each from key bytes to value bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The record of each snapshot: its stage and facts.
    Snapshot,
    /// The manifest of each sealed snapshot.
    Manifest,
    /// The snapshots that were deleted but are still held.
    Deletion,
    /// The pages that guests resumed from a snapshot touched first.
    WorkingSet,
    /// The unfinished uploads of layers, and their parts that the store has.
    Upload,
    /// The sandboxes.
    Sandbox,
    /// Answers to requests that may be repeated.
    Idempotency,
    /// Single values.
    Meta,
}

impl Kind {
    /// All tables.
    pub const ALL: [Self; 8] = [
        Self::Snapshot,
        Self::Manifest,
        Self::Deletion,
        Self::WorkingSet,
        Self::Upload,
        Self::Sandbox,
        Self::Idempotency,
        Self::Meta,
    ];
}

/// One change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A new value of a key, in place of any old one.
    Put {
        /// The table.
        kind: Kind,
        /// The key.
        key: Vec<u8>,
        /// The value.
        value: Vec<u8>,
    },
    /// The removal of a key, if it exists.
    Remove {
        /// The table.
        kind: Kind,
        /// The key.
        key: Vec<u8>,
    },
}

/// A key with its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// The values of a transaction's keys before it; none for a key that did not exist.
#[derive(Debug, Clone, Default)]
pub(crate) struct ValuesBefore(BTreeMap<(Kind, Vec<u8>), Option<Vec<u8>>>);

impl ValuesBefore {
    /// Notes a key's old value, unless one is noted already.
    pub(crate) fn note(&mut self, kind: Kind, key: &[u8], value: Option<Vec<u8>>) {
        self.0.entry((kind, key.to_vec())).or_insert(value);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The changes that restore every old value.
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
        Kind::Upload => "upload",
        Kind::Sandbox => "sandbox",
        Kind::Idempotency => "idempotency",
        Kind::Meta => "meta",
    })
}

/// Fate that a test gives to a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is made, and reported as made.
    Made,
    /// It is not made, and reported as not made.
    Refused,
    /// It is not made, and its outcome is reported as unknown.
    UnknownNotMade,
    /// It is made, and its outcome is reported as unknown.
    UnknownMade,
    /// It is not made, and reported as made.
    Forgotten,
}

/// A test's hook for the transactions of a catalog; called with no lock held. The program sets none.
pub trait CatalogHook: Debug + Send + Sync {
    /// The fate of the next transaction, which makes these changes.
    fn fate(&self, changes: &[Change]) -> Fate;

    /// True if a transaction of unknown outcome can be undone now.
    fn can_settle(&self) -> bool;
}

/// Receiver of a catalog's number of transactions.
pub trait CatalogListener: Debug + Send + Sync {
    /// Tells the number of transactions so far. Called by the thread that has the database, before the writers of the
    /// last transaction get their answer: the listener must not use the catalog.
    fn made(&self, transactions: u64);
}
