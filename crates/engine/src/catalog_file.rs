//! The catalog's file in redb: locked, opened and checked; its tables; the steps of a transaction.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use redb::{
    Builder, Database, ReadOnlyDatabase, ReadOnlyTable, ReadableDatabase, ReadableTable as _,
    TableDefinition, WriteTransaction,
};

use crate::change::{Change, Fate, Kind, ValuesBefore, table_of};
use crate::limits;
use crate::private;

/// The format that is written, and the newest one that is read.
const FORMAT: u64 = 1;
const ABOUT: TableDefinition<'_, &str, u64> = TableDefinition::new("about");
const FORMAT_KEY: &str = "format";
const TRANSACTIONS_KEY: &str = "transactions";

pub(crate) type Table = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// Reason that a catalog could not be opened, read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// Another daemon uses it.
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
    /// Its bytes are not a catalog, or are damaged.
    #[error("{} is damaged: {reason}; restore it from a back-up; to begin anew, move the whole state directory away", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The fault found.
        reason: String,
    },
    /// The disk failed or is full.
    #[error("{}: {reason}", path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
}

/// Locks a file beside the catalog: the catalog's own lock ends whenever the database is reopened.
pub(crate) fn locked(path: &Path) -> Result<File, CatalogError> {
    let disk = |error: io::Error| CatalogError::Disk { path: path.to_owned(), reason: error.to_string() };
    let beside = path.with_extension("lock");
    let file = private::open(&beside, private::options().create(true).truncate(false)).map_err(disk)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(CatalogError::Held { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(disk(error)),
    }
}

/// Opens the database, which is made if it does not exist, and checks every page of it.
pub(crate) fn open_database(path: &Path) -> Result<Database, CatalogError> {
    let disk = |error: io::Error| CatalogError::Disk { path: path.to_owned(), reason: error.to_string() };
    // Device states are in it: no other user may read it.
    private::open(path, private::options().create(true).truncate(false)).map_err(disk)?;
    private::restrict(path, private::OTHERS).map_err(disk)?;
    let database = Builder::new()
        .set_cache_size(limits::CATALOG_CACHE_BYTES)
        // The checksum of every page is checked, so that damage is found here and not by a later read.
        .set_check_integrity_on_open(true)
        .create(path)
        .map_err(|error| failure(path, &error.into()))?;
    match format_of(&database).map_err(|error| failure(path, &error))? {
        FORMAT => {}
        0 => {
            let reason = "it does not say of which format it is".to_owned();
            return Err(CatalogError::Damaged { path: path.to_owned(), reason });
        }
        found => return Err(CatalogError::Newer { path: path.to_owned(), found }),
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
    for kind in Kind::ALL {
        transaction.open_table(table_of(kind))?;
    }
    transaction.commit()?;
    Ok(FORMAT)
}

/// A table; none if the catalog is older than that table, and nothing was written to it yet.
pub(crate) fn table(database: &Database, kind: Kind) -> Result<Option<Table>, redb::Error> {
    match database.begin_read()?.open_table(table_of(kind)) {
        Ok(table) => Ok(Some(table)),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The value of a key of the catalog in a file, which is only read; none if there is no such file, or it is empty. An
/// error if another process uses it, or the last one that did was killed.
pub(crate) fn value_in(path: &Path, kind: Kind, key: &[u8]) -> Result<Option<Vec<u8>>, CatalogError> {
    match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Ok(found) if found.len() == 0 => return Ok(None),
        Ok(_) => {}
        Err(error) => return Err(CatalogError::Disk { path: path.to_owned(), reason: error.to_string() }),
    }
    let value = || -> Result<Option<Vec<u8>>, redb::Error> {
        let database = ReadOnlyDatabase::open(path)?;
        match database.begin_read()?.open_table(table_of(kind)) {
            Ok(table) => Ok(table.get(key)?.map(|value| value.value().to_vec())),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    };
    value().map_err(|error| failure(path, &error))
}

/// Number of transactions of the database; zero if it was written by a program that did not count them.
pub(crate) fn transactions(database: &Database) -> Result<u64, redb::Error> {
    let about = database.begin_read()?.open_table(ABOUT)?;
    Ok(about.get(TRANSACTIONS_KEY)?.map_or(0, |count| count.value()))
}

/// A transaction before its last step.
pub(crate) struct Prepared {
    pub(crate) transaction: WriteTransaction,
    /// The old values.
    pub(crate) before: ValuesBefore,
    /// Number of transactions, this one included.
    pub(crate) number: u64,
}

/// A transaction with these changes.
pub(crate) fn prepare(database: &Database, changes: &[Change]) -> Result<Prepared, redb::Error> {
    let transaction = database.begin_write()?;
    let number = {
        let mut about = transaction.open_table(ABOUT)?;
        let number = about.get(TRANSACTIONS_KEY)?.map_or(0, |count| count.value()) + 1;
        about.insert(TRANSACTIONS_KEY, number)?;
        number
    };
    let mut values = ValuesBefore::default();
    for change in changes {
        let (Change::Put { kind, key, .. } | Change::Remove { kind, key }) = change;
        let mut table = transaction.open_table(table_of(*kind))?;
        let before = match change {
            Change::Put { value, .. } => table.insert(&**key, &**value)?.map(|value| value.value().to_vec()),
            Change::Remove { .. } => table.remove(&**key)?.map(|value| value.value().to_vec()),
        };
        values.note(*kind, key, before);
    }
    Ok(Prepared { transaction, before: values, number })
}

/// The last step of a transaction.
pub(crate) fn end(transaction: WriteTransaction, fate: Fate) -> Result<(), redb::Error> {
    match fate {
        Fate::Made | Fate::UnknownMade => Ok(transaction.commit()?),
        Fate::UnknownNotMade | Fate::Refused | Fate::Forgotten => Ok(transaction.abort()?),
    }
}

/// Translates a failure of the database for its user.
pub(crate) fn failure(path: &Path, error: &redb::Error) -> CatalogError {
    use redb::Error::{Corrupted, DatabaseAlreadyOpen, Io, LockProtocolMismatch, UpgradeRequired};
    let path = path.to_owned();
    if matches!(error, DatabaseAlreadyOpen | LockProtocolMismatch) {
        return CatalogError::Held { path };
    }
    // redb reports a file that is not its own as invalid data.
    let foreign = matches!(error, Io(error) if error.kind() == io::ErrorKind::InvalidData);
    let reason = error.to_string();
    if foreign || matches!(error, Corrupted(_) | UpgradeRequired(_)) {
        CatalogError::Damaged { path, reason }
    } else {
        CatalogError::Disk { path, reason }
    }
}
