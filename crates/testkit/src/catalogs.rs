//! A catalog that fails as a test sets it: before a write, after it, with an unknown outcome, or silently.
//!
//! [`crate::site::Site`] opens its catalog with the faults in `Site::catalog_faults`. To test every write of an
//! operation, a test runs it once, asks [`CatalogFaults::writes`] for the number of transactions, and runs it again
//! with a [`CatalogRule`] for each transaction and each [`Fate`]:
//!
//! - `Fate::Refused`: nothing is made, and the caller knows it.
//! - `Fate::UnknownMade`, `Fate::UnknownNotMade`: the transaction is on the disk, or is not, and the caller cannot know.
//!   As long as the [`InjectedFate`] lives it cannot be taken back either, as on a disk that goes on failing: reads and
//!   writes of the catalog fail. Dropping the engine then is a crash before anything was settled.
//! - `Fate::Forgotten`: it is reported as made, and is not on the disk.

use std::sync::{Arc, Mutex, MutexGuard};

use rekindle_engine::catalog::{Change, Kind};
use rekindle_engine::change::CatalogHook;

pub use rekindle_engine::change::Fate;

/// A fate and the transactions that it hits.
#[derive(Debug, Clone, Copy)]
pub struct CatalogRule {
    /// Their fate.
    pub fate: Fate,
    /// Only transactions that change this table; none for all.
    pub on: Option<Kind>,
    /// Number of such transactions that succeed first.
    pub after: usize,
    /// Number of transactions that are then hit.
    pub times: usize,
}

impl CatalogRule {
    /// Hits one transaction, after `after` others.
    pub fn nth(after: usize, fate: Fate) -> Self {
        Self { fate, on: None, after, times: 1 }
    }

    /// Hits the next transaction that changes a table.
    pub fn next_on(kind: Kind, fate: Fate) -> Self {
        Self { on: Some(kind), ..Self::nth(0, fate) }
    }
}

/// The faults of a catalog, from the test's side. Clones control the same catalog.
#[derive(Debug, Clone, Default)]
pub struct CatalogFaults(Arc<Mutex<CatalogFates>>);

#[derive(Debug, Default)]
struct CatalogFates {
    writes: usize,
    struck: usize,
    next: u64,
    active: Vec<ActiveRule>,
}

#[derive(Debug)]
struct ActiveRule {
    number: u64,
    rule: CatalogRule,
    seen: usize,
    left_unknown: bool,
}

/// A fault that lasts until this is dropped.
#[derive(Debug)]
#[must_use = "dropped, the fault ends"]
pub struct InjectedFate {
    faults: CatalogFaults,
    number: u64,
}

impl CatalogFaults {
    /// Applies `rule` until the result is dropped.
    pub fn inject(&self, rule: CatalogRule) -> InjectedFate {
        let mut fates = self.fates();
        let number = fates.next;
        fates.next += 1;
        fates.active.push(ActiveRule { number, rule, seen: 0, left_unknown: false });
        InjectedFate { faults: self.clone(), number }
    }

    /// Transactions so far, failed ones included.
    pub fn writes(&self) -> usize {
        self.fates().writes
    }

    /// Transactions that were hit by a fault.
    pub fn struck(&self) -> usize {
        self.fates().struck
    }

    fn fates(&self) -> MutexGuard<'_, CatalogFates> {
        self.0.lock().expect("no thread panics while it holds a lock")
    }
}

impl CatalogHook for CatalogFaults {
    fn fate(&self, changes: &[Change]) -> Fate {
        let mut fates = self.fates();
        fates.writes += 1;
        for active in &mut fates.active {
            let is_of = |change: &Change| {
                let (Change::Put { kind, .. } | Change::Remove { kind, .. }) = change;
                active.rule.on.is_none_or(|on| on == *kind)
            };
            if !changes.iter().any(is_of) {
                continue;
            }
            active.seen += 1;
            let CatalogRule { fate, after, times, .. } = active.rule;
            if active.seen > after && active.seen - after <= times {
                active.left_unknown |= matches!(fate, Fate::UnknownMade | Fate::UnknownNotMade);
                fates.struck += 1;
                return fate;
            }
        }
        Fate::Made
    }

    fn can_settle(&self) -> bool {
        !self.fates().active.iter().any(|active| active.left_unknown)
    }
}

impl Drop for InjectedFate {
    fn drop(&mut self) {
        self.faults.fates().active.retain(|active| active.number != self.number);
    }
}
