//! The bytes that all uploads together may hold in RAM, lent to the oldest snapshot first.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::identity::SnapshotId;
use crate::sync::{Mutex, lock};

/// A number of bytes to lend. Clones lend from the same bytes.
#[derive(Debug, Clone)]
pub struct UploadBudget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    bytes_max: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes_held: u64,
    /// Waiting requests, of the oldest snapshot first; the number distinguishes several requests of one snapshot.
    waiting: BTreeMap<(SnapshotId, u64), Waiting>,
    asked: u64,
}

#[derive(Debug)]
struct Waiting {
    bytes: u64,
    granted: oneshot::Sender<UploadLease>,
}

/// The right to hold some bytes of the budget until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it gives the bytes back"]
pub struct UploadLease {
    budget: UploadBudget,
    bytes: u64,
}

impl UploadBudget {
    /// A budget of `bytes_max` bytes, none of them lent yet.
    pub fn new(bytes_max: u64) -> Self {
        Self(Arc::new(Shared { bytes_max, state: Mutex::default() }))
    }

    /// Lends `bytes` to the snapshot `of`, at most the whole budget, after older snapshots have got theirs.
    pub async fn lease(&self, of: SnapshotId, bytes: u64) -> UploadLease {
        let (granted, lease) = oneshot::channel();
        let waiting = Waiting { bytes: bytes.min(self.0.bytes_max), granted };
        lock(&self.0.state).add(of, waiting);
        self.grant();
        lease.await.expect("what waits is granted or given up by its caller")
    }

    /// Bytes lent now.
    pub fn bytes_held(&self) -> u64 {
        lock(&self.0.state).bytes_held
    }

    /// Lends to the waiting requests, in their order, as long as there are enough bytes.
    fn grant(&self) {
        loop {
            let mut state = lock(&self.0.state);
            let granted = state.next(self.0.bytes_max);
            drop(state);
            let Some(Waiting { bytes, granted }) = granted else { return };
            // If the caller is gone, the bytes are given back at once.
            drop(granted.send(UploadLease { budget: self.clone(), bytes }));
        }
    }
}

impl State {
    fn add(&mut self, of: SnapshotId, waiting: Waiting) {
        self.waiting.insert((of, self.asked), waiting);
        self.asked += 1;
    }

    /// Takes the first waiting request, if there are enough bytes for it. The others wait behind it.
    fn next(&mut self, bytes_max: u64) -> Option<Waiting> {
        self.waiting.retain(|_, waiting| !waiting.granted.is_closed());
        let first = self.waiting.first_entry()?;
        let bytes = first.get().bytes;
        if self.bytes_held + bytes > bytes_max {
            return None;
        }
        self.bytes_held += bytes;
        Some(first.remove())
    }
}

impl Drop for UploadLease {
    fn drop(&mut self) {
        lock(&self.budget.0.state).bytes_held -= self.bytes;
        self.budget.grant();
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::sync::block_on;

    fn poll(lease: &mut std::pin::Pin<&mut impl Future<Output = UploadLease>>) -> Option<UploadLease> {
        match lease.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(lease) => Some(lease),
            Poll::Pending => None,
        }
    }

    fn snapshot(age: u8) -> SnapshotId {
        SnapshotId::from_bytes([age; 16])
    }

    #[test]
    fn the_oldest_snapshot_that_waits_is_lent_to_first() {
        let budget = UploadBudget::new(10);
        let all = block_on(budget.lease(snapshot(5), 10));
        let mut young = pin!(budget.lease(snapshot(9), 1));
        let mut old = pin!(budget.lease(snapshot(1), 6));
        assert!(poll(&mut young).is_none() && poll(&mut old).is_none(), "all bytes are lent");
        drop(all);
        let old = poll(&mut old).expect("it is first");
        assert_eq!(budget.bytes_held(), 7, "the young one fits beside it");
        drop((old, poll(&mut young).expect("it was lent to")));
        assert_eq!(budget.bytes_held(), 0);
    }

    #[test]
    fn a_large_lease_is_not_overtaken_by_younger_small_ones() {
        let budget = UploadBudget::new(10);
        let some = block_on(budget.lease(snapshot(1), 4));
        let mut large = pin!(budget.lease(snapshot(2), 8));
        let mut small = pin!(budget.lease(snapshot(3), 1));
        assert!(poll(&mut large).is_none() && poll(&mut small).is_none());
        drop(some);
        assert!(poll(&mut large).is_some(), "it was first");
    }

    #[test]
    fn a_caller_that_goes_leaves_the_bytes_to_others() {
        let budget = UploadBudget::new(10);
        let all = block_on(budget.lease(snapshot(1), 99));
        {
            let mut gone = pin!(budget.lease(snapshot(2), 10));
            assert!(poll(&mut gone).is_none());
        }
        drop(all);
        assert_eq!(budget.bytes_held(), 0);
        drop(block_on(budget.lease(snapshot(3), 10)));
    }
}
