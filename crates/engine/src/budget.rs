//! A budget of bytes, lent as leases; a lease gives its bytes back when it is dropped.

use std::sync::Arc;
use std::time::Duration;

use crate::deadline::Deadline;
use crate::sync::{Condvar, Mutex, lock};

/// A number of bytes to lend. Clones lend from the same bytes.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    bytes_max: u64,
    bytes_held: Mutex<u64>,
    returned: Condvar,
}

/// Reason for a refused lease; nothing was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BudgetError {
    /// More bytes than the whole budget: waiting cannot help.
    #[error("{asked} bytes were asked for, but the whole budget is {bytes_max}: raise it")]
    NeverFits {
        /// Bytes asked for.
        asked: u64,
        /// Bytes of the whole budget.
        bytes_max: u64,
    },
    /// The bytes did not become free within the limit.
    #[error("{asked} bytes did not come free: {bytes_held} of {bytes_max} are held")]
    Exhausted {
        /// Bytes asked for.
        asked: u64,
        /// Bytes held by others at the end of the wait.
        bytes_held: u64,
        /// Bytes of the whole budget.
        bytes_max: u64,
    },
}

impl Budget {
    /// A budget of `bytes_max` bytes, none of them lent yet.
    pub fn new(bytes_max: u64) -> Self {
        Self(Arc::new(Shared { bytes_max, bytes_held: Mutex::new(0), returned: Condvar::new() }))
    }

    /// Bytes lent now.
    pub fn bytes_held(&self) -> u64 {
        *lock(&self.0.bytes_held)
    }

    /// Lends `bytes`, waiting up to `limit` for others to give theirs back.
    pub fn lease(&self, bytes: u64, limit: Duration) -> Result<Lease, BudgetError> {
        let bytes_max = self.0.bytes_max;
        if bytes > bytes_max {
            return Err(BudgetError::NeverFits { asked: bytes, bytes_max });
        }
        let deadline = Deadline::after(limit);
        let mut held = lock(&self.0.bytes_held);
        while *held > bytes_max - bytes {
            let left = deadline.left();
            if left.is_zero() {
                return Err(BudgetError::Exhausted { asked: bytes, bytes_held: *held, bytes_max });
            }
            held =
                self.0.returned.wait_timeout(held, left).expect("no thread panics while it holds a lock").0;
        }
        *held += bytes;
        Ok(Lease { budget: self.clone(), bytes })
    }
}

impl Budget {
    /// Lends `bytes` that are already in use, even beyond the budget; later leases then wait longer.
    pub fn take(&self, bytes: u64) -> Lease {
        *lock(&self.0.bytes_held) += bytes;
        Lease { budget: self.clone(), bytes }
    }
}

/// The right to hold some bytes of a budget until it is dropped.
#[derive(Debug)]
pub struct Lease {
    budget: Budget,
    bytes: u64,
}

impl Lease {
    /// Bytes of this lease.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Lends `bytes` more by this lease if they are free now; whether they were.
    pub fn grow(&mut self, bytes: u64) -> bool {
        let mut held = lock(&self.budget.0.bytes_held);
        let is_free = held.checked_add(bytes).is_some_and(|sum| sum <= self.budget.0.bytes_max);
        if is_free {
            *held += bytes;
            self.bytes += bytes;
        }
        is_free
    }

    /// Gives back all but `bytes`; a larger number changes nothing.
    pub fn shrink_to(&mut self, bytes: u64) {
        let returned = self.bytes.saturating_sub(bytes);
        self.bytes -= returned;
        self.give_back(returned);
    }

    /// Splits `bytes` off as a lease of their own. Bytes beyond this lease's are taken from the budget, even if it has
    /// fewer left: bytes in use are always counted.
    #[must_use]
    pub fn split_off(&mut self, bytes: u64) -> Self {
        let own = bytes.min(self.bytes);
        let mut lease = self.budget.take(bytes - own);
        self.bytes -= own;
        lease.bytes = bytes;
        lease
    }

    fn give_back(&self, bytes: u64) {
        *lock(&self.budget.0.bytes_held) -= bytes;
        self.budget.0.returned.notify_all();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_lease_gives_its_bytes_back() {
        let budget = Budget::new(10);
        let lease = budget.lease(7, Duration::ZERO).expect("7 of 10 fit");
        assert_eq!(
            budget.lease(4, Duration::ZERO).err(),
            Some(BudgetError::Exhausted { asked: 4, bytes_held: 7, bytes_max: 10 })
        );
        drop(lease);
        assert_eq!(budget.bytes_held(), 0);
        assert!(budget.lease(10, Duration::ZERO).is_ok());
    }

    #[test]
    fn shrinking_gives_back_the_difference_once() {
        let budget = Budget::new(10);
        let mut lease = budget.lease(10, Duration::ZERO).expect("all of it fits");
        lease.shrink_to(4);
        lease.shrink_to(9);
        assert_eq!((lease.bytes(), budget.bytes_held()), (4, 4));
        drop(lease);
        assert_eq!(budget.bytes_held(), 0);
    }

    #[test]
    fn a_lease_grows_by_what_is_free_and_gives_all_of_it_back() {
        let budget = Budget::new(10);
        let mut lease = budget.take(0);
        assert!(lease.grow(7) && !lease.grow(4) && lease.grow(3));
        assert_eq!((lease.bytes(), budget.bytes_held()), (10, 10));
        drop(lease);
        assert_eq!(budget.bytes_held(), 0);
    }

    #[test]
    fn a_split_lease_is_given_back_in_parts() {
        let budget = Budget::new(10);
        let mut lease = budget.lease(10, Duration::ZERO).expect("all of it fits");
        let part = lease.split_off(6);
        drop(lease);
        assert_eq!((part.bytes(), budget.bytes_held()), (6, 6));
    }

    #[test]
    fn what_is_split_off_beyond_a_lease_is_counted() {
        let budget = Budget::new(10);
        let mut lease = budget.lease(4, Duration::ZERO).expect("4 of 10 fit");
        let part = lease.split_off(9);
        assert_eq!((lease.bytes(), part.bytes(), budget.bytes_held()), (0, 9, 9));
        drop(lease);
        assert!(budget.lease(2, Duration::ZERO).is_err(), "one is left");
        drop(part);
        assert_eq!(budget.bytes_held(), 0);
    }

    #[test]
    fn what_can_never_fit_is_refused_at_once() {
        let asked = Budget::new(10).lease(11, Duration::from_secs(3600));
        assert_eq!(asked.err(), Some(BudgetError::NeverFits { asked: 11, bytes_max: 10 }));
    }
}
