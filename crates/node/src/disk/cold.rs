//! Requests of one connection that wait for pages which are not in memory.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};

use rekindle_engine::fetch::{Fetcher, FrameWaiter};
use rekindle_engine::frame::FrameNumber;
use rekindle_engine::identity::LayerId;

use super::content::ColdFrame;
use super::limits;
use super::nbd::request::Request;

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
    awaited: HashMap<(LayerId, FrameNumber), Option<String>>,
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
    /// Puts a request here that needs `frames`. Waits while too many are here already; false if the connection ends.
    pub(super) fn put(
        self: &Arc<Self>,
        request: ColdRequest,
        frames: Vec<ColdFrame>,
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
        self.put_back(request, frames, fetcher);
        !ended
    }

    /// Puts a request back that was tried and needs `frames`.
    pub(super) fn put_back(
        self: &Arc<Self>,
        request: ColdRequest,
        frames: Vec<ColdFrame>,
        fetcher: &Fetcher,
    ) {
        let missing = |(layer, frame): &ColdFrame| !layer.is_verified(*frame);
        let missing: Vec<_> = frames.into_iter().filter(missing).collect();
        let mut state = self.lock();
        state.waiting.push(request);
        if missing.is_empty() {
            state.news = true;
            self.changed.notify_all();
        }
        let asked = |(layer, frame): &ColdFrame| match state.awaited.entry((layer.id(), *frame)) {
            Entry::Vacant(free) => {
                free.insert(None);
                true
            }
            Entry::Occupied(_) => false,
        };
        let new: Vec<_> = missing.into_iter().filter(asked).collect();
        drop(state);
        // Without the lock: the news of a frame that is there already comes at once.
        for (layer, frame) in new {
            let waiter: Weak<Self> = Arc::downgrade(self);
            fetcher.request(&layer, frame, waiter);
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
        self.lock().awaited.values().flatten().next().cloned()
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

impl FrameWaiter for Cold {
    fn frame_ready(&self, layer: LayerId, frame: FrameNumber) {
        let mut state = self.lock();
        state.awaited.remove(&(layer, frame));
        state.news = true;
        self.changed.notify_all();
    }

    fn frame_failing(&self, layer: LayerId, frame: FrameNumber, reason: &str) {
        if let Some(failure) = self.lock().awaited.get_mut(&(layer, frame)) {
            *failure = Some(reason.to_owned());
        }
    }
}
