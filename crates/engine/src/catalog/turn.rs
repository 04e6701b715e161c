//! One thread's turn at the database: it makes the waiting changes, and undoes a change of unknown outcome.

use std::path::Path;
use std::sync::Arc;

use redb::Database;

use super::{Batch, Failed, Place, Shared};
use crate::catalog_file::{CatalogError, Prepared, end, failure, open_database, prepare};
use crate::change::{Change, Fate, ValuesBefore};
use crate::sync::lock;

/// The right to use the database; puts the handle back on drop.
pub(super) struct Turn<'a> {
    pub(super) shared: &'a Shared,
    pub(super) database: Option<Database>,
}

impl Turn<'_> {
    /// Makes the waiting changes, and tells their writers.
    pub(super) fn commit_waiting(&mut self) {
        let (changes, batch) = {
            let mut state = lock(&self.shared.state);
            (std::mem::take(&mut state.waiting), std::mem::replace(&mut state.next, Arc::new(Batch::new())))
        };
        let telling = Telling { batch, path: &self.shared.path };
        let outcome = self.commit(&changes);
        telling.batch.set(outcome).expect("a batch is committed once");
    }

    /// Makes changes in one transaction. A failure of the last step leaves the outcome unknown until the database was
    /// reopened and the old values were written again.
    fn commit(&mut self, changes: &[Change]) -> Result<(), Failed> {
        let path = &self.shared.path;
        let database = self.settled_database().map_err(Failed::NotMade)?;
        let fate = self.shared.hook.as_ref().map_or(Fate::Made, |hook| hook.fate(changes));
        if matches!(fate, Fate::Refused | Fate::Forgotten) {
            self.database = Some(database);
            return if fate == Fate::Forgotten { Ok(()) } else { Err(Failed::NotMade(by_test(path))) };
        }
        let not_made = |error: &redb::Error| Failed::NotMade(failure(path, error));
        let prepared = prepare(&database, changes).map_err(|error| not_made(&error))?;
        let Prepared { transaction, before, number } = prepared;
        // Before the last step: if that panics, the next turn still undoes the change.
        lock(&self.shared.state).unsettled = before;
        let reason = match (fate, end(transaction, fate)) {
            (Fate::Made, Ok(())) => {
                lock(&self.shared.state).unsettled = ValuesBefore::default();
                self.database = Some(database);
                if let Some(listener) = self.shared.listener.get() {
                    listener.made(number);
                }
                return Ok(());
            }
            (_, Err(error)) => failure(path, &error),
            (_, Ok(())) => by_test(path),
        };
        drop(database);
        match self.settled_database() {
            Ok(database) => {
                self.database = Some(database);
                Err(Failed::NotMade(reason))
            }
            Err(_) => Err(Failed::Unknown(reason)),
        }
    }

    /// Uses the database. A failure closes it, since it then refuses all work until it is reopened.
    pub(super) fn with<T>(
        &mut self,
        work: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, CatalogError> {
        let database = self.settled_database()?;
        let done = work(&database).map_err(|error| failure(&self.shared.path, &error))?;
        self.database = Some(database);
        Ok(done)
    }

    /// The database, opened if need be, after undoing a change of unknown outcome. On a full disk this uses the
    /// reserved room, since nothing can be read before the change is settled.
    fn settled_database(&mut self) -> Result<Database, CatalogError> {
        match self.try_settled_database() {
            Err(error @ CatalogError::Disk { .. }) if self.shared.hook.is_none() => {
                let lent = self.shared.room.lend();
                if lent.had_any { self.try_settled_database() } else { Err(error) }
            }
            settled => settled,
        }
    }

    fn try_settled_database(&mut self) -> Result<Database, CatalogError> {
        let Shared { path, hook, state, .. } = self.shared;
        let database = match self.database.take() {
            Some(database) => database,
            None => open_database(path)?,
        };
        // Only this turn changes it.
        let unsettled = lock(state).unsettled.clone();
        if !unsettled.is_empty() {
            if hook.as_ref().is_some_and(|hook| !hook.can_settle()) {
                return Err(by_test(path));
            }
            let settled = prepare(&database, &unsettled.changes())
                .and_then(|prepared| Ok(prepared.transaction.commit()?));
            settled.map_err(|error| failure(path, &error))?;
            lock(state).unsettled = ValuesBefore::default();
        }
        Ok(database)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.shared.state).place = self.database.take().map_or(Place::Closed, Place::Here);
        self.shared.put_back.notify_all();
    }
}

/// Tells the writers of a transaction its outcome, even if the commit panicked.
struct Telling<'a> {
    batch: Arc<Batch>,
    path: &'a Path,
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        let cut_short = || {
            let reason = "the write was cut short".into();
            Err(Failed::Unknown(CatalogError::Disk { path: self.path.to_owned(), reason }))
        };
        self.batch.get_or_init(cut_short).as_ref().ok();
    }
}

fn by_test(path: &Path) -> CatalogError {
    CatalogError::Disk { path: path.to_owned(), reason: "a test lets this fail".to_owned() }
}
