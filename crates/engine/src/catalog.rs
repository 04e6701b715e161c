//! What this node knows of its snapshots and sandboxes, on its disk: a few tables, changed only by whole transactions
//! that are on the disk when the call returns.
//!
//! The file has one user at a time. No lock is held while it is read or written: whoever uses the database takes it out
//! of its place and puts it back. Writers that wait meanwhile go together in the next transaction.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Builder, Database, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition};

use crate::limits;
use crate::sync::{Condvar, Mutex, MutexGuard, OnceLock, lock};

/// The format that is written, and the newest one that is read.
const FORMAT: u64 = 1;
const ABOUT: TableDefinition<'_, &str, u64> = TableDefinition::new("about");
const FORMAT_KEY: &str = "format";

type Table = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// A catalog. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Catalog(Arc<Shared>);

/// The tables of a catalog: each from key bytes to value bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// How far each snapshot has come.
    Snapshot,
    /// The manifest of each sealed snapshot.
    Manifest,
    /// The snapshots that were deleted and are not gone yet.
    Deletion,
    /// What guests resumed from a snapshot touched first.
    WorkingSet,
    /// The sandboxes.
    Sandbox,
    /// Answers to requests that may be repeated.
    Idempotency,
    /// Whatever there is one of.
    Meta,
}

const KINDS: [Kind; 7] = [
    Kind::Snapshot,
    Kind::Manifest,
    Kind::Deletion,
    Kind::WorkingSet,
    Kind::Sandbox,
    Kind::Idempotency,
    Kind::Meta,
];

/// One change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The value of a key, whatever it was before.
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

/// Why a catalog did not do what it was asked; nothing of the change was made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// Another daemon has it.
    #[error("{} is in use by another daemon: end that one, or give this one another state directory", path.display())]
    Held {
        /// The file.
        path: PathBuf,
    },
    /// A newer program wrote it.
    #[error("{} is of format {found}, this program knows up to {FORMAT}: run the newer one", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// Its bytes are not a catalog, or not a sound one.
    #[error("{} is damaged: {reason}; restore it, or move it away to begin an empty one", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The disk failed or is full.
    #[error("{}: {reason}", path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    /// Locked as long as the catalog lives, also while the database is opened anew.
    _lock: File,
    state: Mutex<State>,
    put_back: Condvar,
}

#[derive(Debug)]
struct State {
    place: Place,
    /// What goes into the next transaction.
    waiting: Vec<Change>,
    next: Arc<Batch>,
}

/// Where the database is.
#[derive(Debug)]
enum Place {
    Here(Database),
    /// Somebody uses it.
    Taken,
    /// It failed and was closed; whoever needs it next opens it.
    Closed,
}

/// The outcome of a transaction, for all who wait for it.
type Batch = OnceLock<Result<(), CatalogError>>;

impl Catalog {
    /// Opens the catalog in a file, which is made if it is not there.
    pub fn open(path: &Path) -> Result<Self, CatalogError> {
        let guard = locked(path)?;
        let database = open_database(path)?;
        let state = State { place: Place::Here(database), waiting: Vec::new(), next: Arc::new(Batch::new()) };
        let shared = Shared {
            path: path.to_owned(),
            _lock: guard,
            state: Mutex::new(state),
            put_back: Condvar::new(),
        };
        Ok(Self(Arc::new(shared)))
    }

    /// Makes all of the changes, in their order, or none; they are on the disk when this returns.
    pub fn write(&self, changes: &[Change]) -> Result<(), CatalogError> {
        let shared = &*self.0;
        let mut state = lock(&shared.state);
        state.waiting.extend_from_slice(changes);
        let batch = Arc::clone(&state.next);
        loop {
            if let Some(outcome) = batch.get() {
                return outcome.clone();
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

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0.path
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
    /// The database, unless somebody else has it.
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

/// The right to use the database; dropped, it puts it back.
struct Turn<'a> {
    shared: &'a Shared,
    database: Option<Database>,
}

impl Turn<'_> {
    /// Makes the changes that wait and tells those who wait for them.
    fn commit_waiting(&mut self) {
        let (changes, batch) = {
            let mut state = lock(&self.shared.state);
            (std::mem::take(&mut state.waiting), std::mem::replace(&mut state.next, Arc::new(Batch::new())))
        };
        let telling = Telling { batch, path: &self.shared.path };
        let outcome = self.with(|database| commit(database, &changes));
        telling.batch.set(outcome).expect("a batch is committed once");
    }

    /// Uses the database, opening it if need be. After a failure it is closed: it refuses all work until it is opened
    /// anew, and only then is it known what of a failed write is on the disk.
    fn with<T>(&mut self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, CatalogError> {
        let path = &self.shared.path;
        let database = match self.database.take() {
            Some(database) => database,
            None => open_database(path)?,
        };
        let done = work(&database).map_err(|error| failure(path, &error))?;
        self.database = Some(database);
        Ok(done)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.shared.state).place = self.database.take().map_or(Place::Closed, Place::Here);
        self.shared.put_back.notify_all();
    }
}

/// Sees to it that those who wait for a transaction hear of it, also if committing it panicked.
struct Telling<'a> {
    batch: Arc<Batch>,
    path: &'a Path,
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        let cut_short = || {
            Err(CatalogError::Disk { path: self.path.to_owned(), reason: "the write was cut short".into() })
        };
        self.batch.get_or_init(cut_short).as_ref().ok();
    }
}

/// The file beside the catalog, locked: the catalog's own lock ends whenever the database is opened anew.
fn locked(path: &Path) -> Result<File, CatalogError> {
    let disk = |error: io::Error| CatalogError::Disk { path: path.to_owned(), reason: error.to_string() };
    let beside = path.with_extension("lock");
    let file = private().open(beside).map_err(disk)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(CatalogError::Held { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(disk(error)),
    }
}

/// Device states are in it: nobody else may read it.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options
}

fn open_database(path: &Path) -> Result<Database, CatalogError> {
    let disk = |error: io::Error| CatalogError::Disk { path: path.to_owned(), reason: error.to_string() };
    private().open(path).map_err(disk)?;
    let database = Builder::new()
        .set_cache_size(limits::CATALOG_CACHE_BYTES)
        // Every page's checksum: damage is told here, and not by a read in the middle of something.
        .set_check_integrity_on_open(true)
        .create(path)
        .map_err(|error| failure(path, &error.into()))?;
    let found = format_of(&database).map_err(|error| failure(path, &error))?;
    if found > FORMAT {
        return Err(CatalogError::Newer { path: path.to_owned(), found });
    }
    if let Some(directory) = path.parent() {
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(disk)?;
    }
    Ok(database)
}

/// The format of a database; a new one gets its tables.
fn format_of(database: &Database) -> Result<u64, redb::Error> {
    match database.begin_read()?.open_table(ABOUT) {
        Ok(about) => return Ok(about.get(FORMAT_KEY)?.map_or(0, |format| format.value())),
        Err(redb::TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let transaction = database.begin_write()?;
    transaction.open_table(ABOUT)?.insert(FORMAT_KEY, FORMAT)?;
    for kind in KINDS {
        transaction.open_table(table_of(kind))?;
    }
    transaction.commit()?;
    Ok(FORMAT)
}

/// A table as it is; none where the catalog is older than what it is for, and nothing was written there yet.
fn table(database: &Database, kind: Kind) -> Result<Option<Table>, redb::Error> {
    match database.begin_read()?.open_table(table_of(kind)) {
        Ok(table) => Ok(Some(table)),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn commit(database: &Database, changes: &[Change]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    for change in changes {
        match change {
            Change::Put { kind, key, value } => {
                transaction.open_table(table_of(*kind))?.insert(&**key, &**value)?;
            }
            Change::Remove { kind, key } => {
                transaction.open_table(table_of(*kind))?.remove(&**key)?;
            }
        }
    }
    Ok(transaction.commit()?)
}

const fn table_of(kind: Kind) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
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

fn failure(path: &Path, error: &redb::Error) -> CatalogError {
    use redb::Error::{Corrupted, DatabaseAlreadyOpen, Io, LockProtocolMismatch, UpgradeRequired};
    let path = path.to_owned();
    if matches!(error, DatabaseAlreadyOpen | LockProtocolMismatch) {
        return CatalogError::Held { path };
    }
    // Invalid data is what redb calls a file that is not its own.
    let foreign = matches!(error, Io(error) if error.kind() == io::ErrorKind::InvalidData);
    let reason = error.to_string();
    if foreign || matches!(error, Corrupted(_) | UpgradeRequired(_)) {
        CatalogError::Damaged { path, reason }
    } else {
        CatalogError::Disk { path, reason }
    }
}
