//! Requests of one connection that wait for pages which are not in memory.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};

use rekindle_engine::fetch::{FetchError, Fetcher, FrameKey};
use rekindle_engine::single_flight::Waiter;
use rekindle_engine::view::FoundWaiter;

use super::content::ColdSource;
use super::limits;
use super::nbd::request::Request;

/// Reason that a request for pages waits which have no bytes.
const LOST: &str =
    "the disk's snapshot is lost, or cannot be read now: `rekindle show` of the snapshot says why";

/// The waiting requests of a connection. A thread of the connection takes them when a frame has come.
#[derive(Debug, Default)]
pub(super) struct Cold {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<ColdRequest>,
    /// Requests that were put here and are not answered, those that are being tried included.
    requests: usize,
    data_bytes: usize,
    /// Frames asked for, each with what the last failed try said.
    awaited: HashMap<FrameKey, Option<String>>,
    /// True if a request waits for pages that cannot be had.
    waits_for_lost: bool,
    /// Something has come since the requests were last taken.
    news: bool,
    ended: bool,
}

/// A request that waits, with the data that came with it.
#[derive(Debug)]
pub(super) struct ColdRequest {
    pub(super) request: Request,
    pub(super) data: Vec<u8>,
}

impl Cold {
    /// Puts a request here that needs `sources`. Waits while too many are here already; false if the connection ends.
    pub(super) fn put(
        self: &Arc<Self>,
        request: ColdRequest,
        sources: Vec<ColdSource>,
        fetcher: &Fetcher,
    ) -> bool {
        let mut state = self.lock();
        while !state.has_room_for(request.data.len()) && !state.ended {
            state = self.changed.wait(state).expect("no thread panics while it holds a lock");
        }
        state.requests += 1;
        state.data_bytes += request.data.len();
        let ended = state.ended;
        drop(state);
        self.put_back(request, sources, fetcher);
        !ended
    }

    /// Puts a request back that was tried and needs `sources`.
    pub(super) fn put_back(
        self: &Arc<Self>,
        request: ColdRequest,
        sources: Vec<ColdSource>,
        fetcher: &Fetcher,
    ) {
        let is_missing = |source: &ColdSource| match source {
            ColdSource::Frame(missing) => !missing.is_here(),
            ColdSource::Lost(_) => true,
        };
        let missing: Vec<_> = sources.into_iter().filter(is_missing).collect();
        let mut state = self.lock();
        state.waiting.push(request);
        if missing.is_empty() {
            state.news = true;
            self.changed.notify_all();
        }
        let asked = |source: &ColdSource| match source {
            ColdSource::Frame(missing) => match state.awaited.entry(missing.key()) {
                Entry::Vacant(free) => {
                    free.insert(None);
                    true
                }
                Entry::Occupied(_) => false,
            },
            ColdSource::Lost(_) => !std::mem::replace(&mut state.waits_for_lost, true),
        };
        let new: Vec<_> = missing.into_iter().filter(asked).collect();
        drop(state);
        // Without the lock: the news of what is there already comes at once.
        for source in new {
            match source {
                ColdSource::Frame(missing) => {
                    let waiter: Weak<Self> = Arc::downgrade(self);
                    missing.request(fetcher, waiter);
                }
                ColdSource::Lost(lost) => {
                    let waiter: Weak<Self> = Arc::downgrade(self);
                    lost.wait(waiter);
                }
            }
        }
    }

    /// The requests that are here, once something has come; none when the connection ends.
    pub(super) fn take(&self) -> Option<Vec<ColdRequest>> {
        let mut state = self.lock();
        while (!state.news || state.waiting.is_empty()) && !state.ended {
            state = self.changed.wait(state).expect("no thread panics while it holds a lock");
        }
        state.news = false;
        (!state.ended).then(|| std::mem::take(&mut state.waiting))
    }

    /// A request that was taken is answered.
    pub(super) fn answered(&self, request: &ColdRequest) {
        let mut state = self.lock();
        state.requests -= 1;
        state.data_bytes -= request.data.len();
        self.changed.notify_all();
    }

    /// No request waits here any more.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// The reason that an awaited frame does not come, if it fails.
    pub(super) fn failing(&self) -> Option<String> {
        let state = self.lock();
        let of_lost = || state.waits_for_lost.then(|| LOST.to_owned());
        state.awaited.values().flatten().next().cloned().or_else(of_lost)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds a lock")
    }
}

impl State {
    fn has_room_for(&self, data_bytes: usize) -> bool {
        self.requests == 0
            || self.requests < limits::COLD_REQUESTS_MAX
                && self.data_bytes + data_bytes <= limits::COLD_REQUEST_BYTES_MAX
    }
}

impl Waiter<FrameKey, FetchError> for Cold {
    fn ready(&self, key: FrameKey) {
        let mut state = self.lock();
        state.awaited.remove(&key);
        state.news = true;
        self.changed.notify_all();
    }

    fn failing(&self, key: FrameKey, error: &Arc<FetchError>) {
        if let Some(failure) = self.lock().awaited.get_mut(&key) {
            *failure = Some(error.to_string());
        }
    }
}

impl FoundWaiter for Cold {
    fn pages_found(&self) {
        let mut state = self.lock();
        state.waits_for_lost = false;
        state.news = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use rekindle_engine::geometry::GuestPage;
    use rekindle_engine::key_ring::KeyRing;
    use rekindle_engine::page_map::PageMap;
    use rekindle_engine::sources::Sources;
    use rekindle_engine::stop::Stop;
    use rekindle_engine::store::Store;
    use rekindle_engine::view::{LiveView, PieceSource, View};

    use super::*;
    use crate::nbd::request::REQUEST_BYTES;

    #[test]
    fn a_request_for_pages_of_an_undecided_snapshot_is_tried_again_once_that_is_decided() {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let store = Store::directory(directory.path()).unwrap();
        let sources = Sources::new(store, KeyRing::of_name("default"));
        let fetcher = Fetcher::new(runtime.handle().clone(), sources, Stop::default());
        let view = LiveView::new(View::lost(1));
        let PieceSource::Lost(lost) = view.piece_at(GuestPage::FIRST, 1).source else {
            unreachable!("it is of lost pages")
        };
        let mut bytes = [0; REQUEST_BYTES];
        bytes[..4].copy_from_slice(&0x2560_9513_u32.to_be_bytes());
        let request = ColdRequest { request: Request::decode(&bytes).unwrap(), data: Vec::new() };
        let cold = Arc::new(Cold::default());
        assert!(cold.put(request, vec![ColdSource::Lost(lost)], &fetcher));
        assert_eq!(cold.failing().as_deref(), Some(LOST));
        assert!(view.improve(&view.load(), View::flat(PageMap::zero(1), Arc::from([]))));
        assert_eq!(cold.failing(), None);
        assert_eq!(cold.take().unwrap().len(), 1);
    }
}
