//! The end of a wait: an instant, or never if the limit is too long for an instant.

use std::time::{Duration, Instant};

use crate::limits::WAIT_TURN;

/// The end of a wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// `limit` from now.
    pub(crate) fn after(limit: Duration) -> Self {
        Self(Instant::now().checked_add(limit))
    }

    /// Time left; zero once it is over.
    pub(crate) fn left(self) -> Duration {
        self.0.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()))
    }

    /// Longest single wait between two checks if the wait is still wanted.
    pub(crate) fn turn(self) -> Duration {
        self.left().min(WAIT_TURN)
    }

    /// True once the instant has come.
    pub(crate) fn is_over(self) -> bool {
        self.left().is_zero()
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_wait_without_end_has_no_last_instant() {
        assert_eq!(Deadline::after(Duration::MAX).left(), Duration::MAX);
        assert!(!Deadline::after(Duration::MAX).is_over());
        assert!(Deadline::after(Duration::ZERO).is_over());
        assert!(Deadline::after(Duration::from_secs(3600)).left() > Duration::from_secs(3000));
    }
}
