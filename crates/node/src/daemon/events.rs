//! Events in order: the last ones are remembered, new ones are sent to all listeners.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use rekindle_api::types::Event;
use rekindle_engine::catalog::{Catalog, CatalogError, Change, Kind, WriteError};
use tokio::sync::broadcast;
use uuid::Uuid;

use super::clock::unix_ms;

/// Events a listener may be behind before it is told that it lost some.
const LISTENER_EVENTS_MAX: usize = 1024;
/// Ids taken at once from the catalog, so that one write is enough for many events and no id comes twice.
const IDS_AT_ONCE: u64 = 1 << 20;
/// Key in the catalog of the first unused id.
const NEXT_ID_KEY: &[u8] = b"events/next";

/// The events of this daemon and those before it.
#[derive(Debug)]
pub(super) struct EventLog {
    recent: Mutex<Recent>,
    listeners: broadcast::Sender<Event>,
    remembered_max: usize,
}

#[derive(Debug)]
struct Recent {
    next_id: u64,
    events: VecDeque<Event>,
}

/// The things that an event is about.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct About {
    pub(super) sandbox: Option<Uuid>,
    pub(super) snapshot: Option<Uuid>,
}

impl EventLog {
    /// A log whose ids go on where those of the last daemon may have ended.
    pub(super) fn open(catalog: &Catalog, remembered_max: usize) -> Result<Self, CatalogError> {
        let stored = catalog.get(Kind::Meta, NEXT_ID_KEY)?;
        let next_id = stored.and_then(|bytes| bytes.try_into().ok()).map_or(1, u64::from_le_bytes);
        let value = (next_id + IDS_AT_ONCE).to_le_bytes().to_vec();
        let change = Change::Put { kind: Kind::Meta, key: NEXT_ID_KEY.to_vec(), value };
        catalog.write_with_last_room(&[change]).map_err(WriteError::either_way)?;
        let (listeners, _) = broadcast::channel(LISTENER_EVENTS_MAX);
        let recent = Mutex::new(Recent { next_id, events: VecDeque::new() });
        Ok(Self { recent, listeners, remembered_max })
    }

    /// Something happened.
    pub(super) fn say(&self, kind: &str, about: About, detail: Option<String>) {
        tracing::info!(
            kind,
            sandbox = about.sandbox.map(tracing::field::display),
            snapshot = about.snapshot.map(tracing::field::display),
            detail,
            "event"
        );
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let event = Event {
            id: recent.next_id,
            unix_ms: unix_ms(),
            kind: kind.to_owned(),
            sandbox: about.sandbox,
            snapshot: about.snapshot,
            detail,
        };
        recent.next_id += 1;
        if recent.events.len() == self.remembered_max {
            recent.events.pop_front();
        }
        recent.events.push_back(event.clone());
        // Sent under the lock, so that listeners see ids in order; an error says that there is no listener.
        self.listeners.send(event).ok();
    }

    /// The id of the newest event; the one before the first if there is none.
    pub(super) fn last(&self) -> u64 {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).next_id.saturating_sub(1)
    }

    /// The remembered events after `after`, and a receiver of new ones.
    pub(super) fn since(&self, after: Option<u64>) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let listener = self.listeners.subscribe();
        let Some(after) = after else { return (Vec::new(), listener) };
        (recent.events.iter().filter(|event| event.id > after).cloned().collect(), listener)
    }
}

impl About {
    pub(super) fn sandbox(id: Uuid) -> Self {
        Self { sandbox: Some(id), snapshot: None }
    }

    pub(super) fn both(sandbox: Uuid, snapshot: Uuid) -> Self {
        Self { sandbox: Some(sandbox), snapshot: Some(snapshot) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(remembered_max: usize) -> (EventLog, tempfile::TempDir) {
        let directory = tempfile::tempdir().expect("a directory");
        let catalog = Catalog::open(&directory.path().join("catalog")).expect("a catalog");
        (EventLog::open(&catalog, remembered_max).expect("a log"), directory)
    }

    #[test]
    fn events_are_told_again_from_any_id_that_is_remembered() {
        let (log, _directory) = log(2);
        for detail in ["a", "b", "c"] {
            log.say("daemon.started", About::default(), Some(detail.into()));
        }
        let details = |after| {
            let (events, _) = log.since(after);
            events.into_iter().filter_map(|event| event.detail).collect::<Vec<_>>()
        };
        assert_eq!(details(Some(0)), ["b", "c"]);
        assert_eq!(details(Some(2)), ["c"]);
        assert!(details(None).is_empty());
    }

    #[test]
    fn ids_go_up_over_a_restart() {
        let directory = tempfile::tempdir().expect("a directory");
        let catalog = Catalog::open(&directory.path().join("catalog")).expect("a catalog");
        let newest = |log: &EventLog| {
            log.say("daemon.started", About::default(), None);
            log.since(Some(0)).0.last().expect("one was said").id
        };
        let first = newest(&EventLog::open(&catalog, 8).expect("a log"));
        let second = newest(&EventLog::open(&catalog, 8).expect("a log"));
        assert!(second > first);
    }
}
