//! The bytes that all transfers of one kind together may hold in RAM, lent in an order: uploads to the oldest snapshot
//! first, reads by their class.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::sync::{Mutex, lock};

/// A number of bytes to lend. Clones lend from the same bytes.
#[derive(Debug, Clone)]
pub struct ByteBudget<K: Ord>(Arc<Shared<K>>);

#[derive(Debug)]
struct Shared<K: Ord> {
    bytes_max: u64,
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K: Ord> {
    bytes_held: u64,
    /// Waiting requests in their order; the number distinguishes equal ones, by when they asked.
    waiting: BTreeMap<(K, u64), Waiting<K>>,
    asked: u64,
}

#[derive(Debug)]
struct Waiting<K: Ord> {
    bytes: u64,
    /// Bytes that may be lent in all once these are.
    share: u64,
    granted: oneshot::Sender<ByteLease<K>>,
}

/// The right to hold some bytes of the budget until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it gives the bytes back"]
pub struct ByteLease<K: Ord> {
    budget: ByteBudget<K>,
    bytes: u64,
}

impl<K: Ord> ByteBudget<K> {
    /// A budget of `bytes_max` bytes, none of them lent.
    pub fn new(bytes_max: u64) -> Self {
        let state = State { bytes_held: 0, waiting: BTreeMap::new(), asked: 0 };
        Self(Arc::new(Shared { bytes_max, state: Mutex::new(state) }))
    }

    /// Lends `bytes`, at most the whole budget, after requests that come before `of` have got theirs.
    pub async fn lease(&self, of: K, bytes: u64) -> ByteLease<K> {
        self.lease_within(of, bytes, self.0.bytes_max).await
    }

    /// The same, while at most `share` bytes are lent in all, these included: the rest is left to others.
    pub async fn lease_within(&self, of: K, bytes: u64, share: u64) -> ByteLease<K> {
        let (granted, lease) = oneshot::channel();
        let share = share.min(self.0.bytes_max);
        let waiting = Waiting { bytes: bytes.min(share), share, granted };
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
            let granted = state.next();
            drop(state);
            let Some(Waiting { bytes, granted, share: _ }) = granted else { return };
            // If the caller is gone, the bytes are given back at once.
            drop(granted.send(ByteLease { budget: Self(Arc::clone(&self.0)), bytes }));
        }
    }
}

impl<K: Ord> State<K> {
    fn add(&mut self, of: K, waiting: Waiting<K>) {
        self.waiting.insert((of, self.asked), waiting);
        self.asked += 1;
    }

    /// Takes the first waiting request, if there are enough bytes for it. The others wait behind it.
    fn next(&mut self) -> Option<Waiting<K>> {
        self.waiting.retain(|_, waiting| !waiting.granted.is_closed());
        let first = self.waiting.first_entry()?;
        let (bytes, share) = (first.get().bytes, first.get().share);
        if self.bytes_held + bytes > share {
            return None;
        }
        self.bytes_held += bytes;
        Some(first.remove())
    }
}

impl<K: Ord> Drop for ByteLease<K> {
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
    use crate::identity::SnapshotId;
    use crate::sync::block_on;

    type Lease = ByteLease<SnapshotId>;

    fn poll(lease: &mut std::pin::Pin<&mut impl Future<Output = Lease>>) -> Option<Lease> {
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
        let budget = ByteBudget::new(10);
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
        let budget = ByteBudget::new(10);
        let some = block_on(budget.lease(snapshot(1), 4));
        let mut large = pin!(budget.lease(snapshot(2), 8));
        let mut small = pin!(budget.lease(snapshot(3), 1));
        assert!(poll(&mut large).is_none() && poll(&mut small).is_none());
        drop(some);
        assert!(poll(&mut large).is_some(), "it was first");
    }

    #[test]
    fn a_caller_that_goes_leaves_the_bytes_to_others() {
        let budget = ByteBudget::new(10);
        let all = block_on(budget.lease(snapshot(1), 99));
        {
            let mut gone = pin!(budget.lease(snapshot(2), 10));
            assert!(poll(&mut gone).is_none());
        }
        drop(all);
        assert_eq!(budget.bytes_held(), 0);
        drop(block_on(budget.lease(snapshot(3), 10)));
    }

    #[test]
    fn what_is_beyond_a_share_is_left_to_those_who_may_have_more() {
        let budget = ByteBudget::new(10);
        let some = block_on(budget.lease_within(snapshot(1), 4, 6));
        let mut small_share = pin!(budget.lease_within(snapshot(1), 3, 6));
        assert!(poll(&mut small_share).is_none(), "it would be the seventh byte");
        let whole_share = block_on(budget.lease(snapshot(0), 6));
        assert!(poll(&mut small_share).is_none());
        drop((some, whole_share));
        assert!(poll(&mut small_share).is_some());
    }
}
