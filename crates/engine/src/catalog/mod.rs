//! The node's record of its snapshots and sandboxes on its disk: a few tables, changed only by whole transactions that
//! are on the disk when the call returns.
//!
//! One thread uses the database at a time: it takes the handle out of a slot and puts it back, so no lock is held
//! during I/O. Changes of writers that wait meanwhile are made together in the next transaction.

mod turn;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Database, ReadableTable};

use crate::catalog_file::{locked, open_database, table, transactions};
use crate::catalog_room::Room;
use crate::change::{CatalogHook, CatalogListener, ValuesBefore};
use crate::sync::{Condvar, Mutex, MutexGuard, OnceLock, lock};

pub use crate::catalog_file::CatalogError;
pub use crate::change::{Change, Entry, Kind};

use turn::Turn;

/// A catalog. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Catalog(Arc<Shared>);

/// Reason that a change was not reported as made.
///
/// It converts into no other error: a caller has to decide what to do about a change of unknown outcome.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The change was not made, and will not be there after a crash.
    #[error(transparent)]
    NotMade(CatalogError),
    /// The disk failed during the change.
    #[error("{0}; a crash of this process now may leave the change made")]
    Unknown(Unsettled),
}

impl WriteError {
    /// The reason, for a caller whose other state fits either outcome: after a crash the change may be found made.
    pub fn either_way(self) -> CatalogError {
        match self {
            Self::NotMade(reason) | Self::Unknown(Unsettled { reason, .. }) => reason,
        }
    }

    fn is_of_disk(&self) -> bool {
        let (Self::NotMade(reason) | Self::Unknown(Unsettled { reason, .. })) = self;
        matches!(reason, CatalogError::Disk { .. })
    }
}

/// A change that may be on the disk, completely or not at all.
///
/// The catalog undoes it before it reads or writes anything else, so this process never sees it. Until that has
/// succeeded, the next start after a crash may find the change: its owner keeps everything that the start needs for
/// either outcome.
#[derive(Debug, Clone)]
#[must_use = "the next start may find the change made: keep what it needs for both outcomes"]
pub struct Unsettled {
    catalog: Catalog,
    reason: CatalogError,
}

impl Unsettled {
    /// The reason without the changes.
    pub fn into_reason(self) -> CatalogError {
        self.reason
    }

    /// Tries to undo the change; on success nothing of it is on the disk.
    pub fn settle(&self) -> Result<(), CatalogError> {
        self.catalog.read(|_| Ok(()))
    }
}

impl std::fmt::Display for Unsettled {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.reason.fmt(out)
    }
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    hook: Option<Arc<dyn CatalogHook>>,
    listener: OnceLock<Arc<dyn CatalogListener>>,
    room: Room,
    /// Locked as long as the catalog lives, also while the database is reopened.
    _lock: File,
    state: Mutex<State>,
    put_back: Condvar,
}

#[derive(Debug)]
struct State {
    place: Place,
    /// Changes for the next transaction.
    waiting: Vec<Change>,
    next: Arc<Batch>,
    /// The old values that undo a transaction of unknown outcome.
    unsettled: ValuesBefore,
}

/// The slot of the database handle: full, taken by a thread, or closed.
#[derive(Debug)]
enum Place {
    Here(Database),
    /// A thread uses the database.
    Taken,
    /// The database failed and was closed; its next user opens it.
    Closed,
}

/// The outcome of a transaction, for all its writers.
type Batch = OnceLock<Result<(), Failed>>;

/// Reason that a transaction was not reported as made.
#[derive(Debug, Clone)]
enum Failed {
    NotMade(CatalogError),
    Unknown(CatalogError),
}

impl Catalog {
    /// Opens the catalog in a file, which is made if it does not exist.
    pub fn open(path: &Path) -> Result<Self, CatalogError> {
        Self::opened(path, None)
    }

    /// The same, with a test's hook for its transactions.
    pub fn open_with(path: &Path, hook: Arc<dyn CatalogHook>) -> Result<Self, CatalogError> {
        Self::opened(path, Some(hook))
    }

    fn opened(path: &Path, hook: Option<Arc<dyn CatalogHook>>) -> Result<Self, CatalogError> {
        let guard = locked(path)?;
        let room = Room::of(path);
        let database = match open_database(path) {
            Err(CatalogError::Disk { .. }) if room.lend().had_any => open_database(path)?,
            opened => opened?,
        };
        // If the disk has no room now, the first write tries again.
        room.hold().ok();
        let state = State {
            place: Place::Here(database),
            waiting: Vec::new(),
            next: Arc::new(Batch::new()),
            unsettled: ValuesBefore::default(),
        };
        let shared = Shared {
            path: path.to_owned(),
            hook,
            listener: OnceLock::new(),
            room,
            _lock: guard,
            state: Mutex::new(state),
            put_back: Condvar::new(),
        };
        Ok(Self(Arc::new(shared)))
    }

    /// Makes all of the changes, in their order, or none; on success they are on the disk. After a failure this catalog
    /// reads as before, and the error says if the next start may still find the changes made.
    ///
    /// Refused on a disk that has no room left except the room that is reserved for [`Self::write_with_last_room`].
    pub fn write(&self, changes: &[Change]) -> Result<(), WriteError> {
        let Shared { path, room, .. } = &*self.0;
        room.hold().map_err(|error| {
            let reason = format!(
                "{error}; the last room is kept for deleting: delete what is not needed, or make room"
            );
            WriteError::NotMade(CatalogError::Disk { path: path.clone(), reason })
        })?;
        self.write_now(changes)
    }

    /// The same for changes that free something or record a fact, which must not fail on a full disk.
    pub fn write_with_last_room(&self, changes: &[Change]) -> Result<(), WriteError> {
        match self.write_now(changes) {
            Err(error) if error.is_of_disk() && self.0.hook.is_none() => {
                let lent = self.0.room.lend();
                let done = self.write_now(changes);
                drop(lent);
                done
            }
            done => done,
        }
    }

    fn write_now(&self, changes: &[Change]) -> Result<(), WriteError> {
        let shared = &*self.0;
        let mut state = lock(&shared.state);
        state.waiting.extend_from_slice(changes);
        let batch = Arc::clone(&state.next);
        loop {
            if let Some(outcome) = batch.get() {
                return outcome.clone().map_err(|failed| self.write_error(failed));
            }
            state = match shared.take_turn(state) {
                Ok(mut turn) => {
                    turn.commit_waiting();
                    drop(turn);
                    lock(&shared.state)
                }
                Err(state) => shared.wait(state),
            };
        }
    }

    /// The value of a key.
    pub fn get(&self, kind: Kind, key: &[u8]) -> Result<Option<Vec<u8>>, CatalogError> {
        self.read(|database| {
            let Some(table) = table(database, kind)? else { return Ok(None) };
            let value = table.get(key)?;
            Ok(value.map(|value| value.value().to_vec()))
        })
    }

    /// All keys of a table with their values, sorted by key.
    pub fn all(&self, kind: Kind) -> Result<Vec<Entry>, CatalogError> {
        self.read(|database| {
            let Some(table) = table(database, kind)? else { return Ok(Vec::new()) };
            let mut entries = Vec::new();
            for entry in table.iter()? {
                let (key, value) = entry?;
                entries.push((key.value().to_vec(), value.value().to_vec()));
            }
            Ok(entries)
        })
    }

    /// The keys of a table that begin with `prefix`, with their values, sorted by key.
    pub fn under(&self, kind: Kind, prefix: &[u8]) -> Result<Vec<Entry>, CatalogError> {
        self.read(|database| {
            let Some(table) = table(database, kind)? else { return Ok(Vec::new()) };
            let mut entries = Vec::new();
            for entry in table.range(prefix..)? {
                let (key, value) = entry?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                entries.push((key.value().to_vec(), value.value().to_vec()));
            }
            Ok(entries)
        })
    }

    /// True if any of these tables has the key.
    pub fn has(&self, kinds: &[Kind], key: &[u8]) -> Result<bool, CatalogError> {
        self.read(|database| {
            for kind in kinds {
                if let Some(table) = table(database, *kind)?
                    && table.get(key)?.is_some()
                {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// Number of transactions so far; an older copy of the catalog has fewer.
    pub fn transactions(&self) -> Result<u64, CatalogError> {
        self.read(transactions)
    }

    /// Sets the listener that is told of each transaction, unless there is one already.
    pub fn tell(&self, listener: Arc<dyn CatalogListener>) {
        self.0.listener.set(listener).ok();
    }

    /// The catalog's file.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    fn write_error(&self, failed: Failed) -> WriteError {
        match failed {
            Failed::NotMade(reason) => WriteError::NotMade(reason),
            Failed::Unknown(reason) => WriteError::Unknown(Unsettled { catalog: self.clone(), reason }),
        }
    }

    fn read<T>(&self, read: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, CatalogError> {
        let shared = &*self.0;
        let mut state = lock(&shared.state);
        loop {
            state = match shared.take_turn(state) {
                Ok(mut turn) => return turn.with(read),
                Err(state) => shared.wait(state),
            };
        }
    }
}

impl Shared {
    /// The database, unless another thread has it.
    fn take_turn<'a>(&'a self, mut state: MutexGuard<'a, State>) -> Result<Turn<'a>, MutexGuard<'a, State>> {
        match std::mem::replace(&mut state.place, Place::Taken) {
            Place::Taken => Err(state),
            Place::Here(database) => Ok(Turn { shared: self, database: Some(database) }),
            Place::Closed => Ok(Turn { shared: self, database: None }),
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.put_back.wait(state).expect("no thread panics while it holds a lock")
    }
}
