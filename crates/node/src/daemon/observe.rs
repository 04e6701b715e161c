//! How things stand, for whoever watches: metrics and readiness.

use std::time::Duration;

use super::Daemon;
use super::clock::unix_ms;
use crate::api::types::SnapshotState;
use crate::metrics::{Captures, Observed};

impl Daemon {
    /// What metrics show of this moment.
    pub(super) fn observe(&self) -> Observed {
        let mut observed = Observed {
            store: self.engine.traffic(),
            store_away: self.engine.store_away().is_some(),
            // What cannot be counted now is counted at the next look.
            set_aside: self.engine.aside().count().unwrap_or_default(),
            ..Observed::default()
        };
        for entry in self.sandboxes.all() {
            observed.sandboxes.count(entry.show().state);
        }
        let mut oldest = None;
        for known in self.known_snapshots() {
            let shown = known.show();
            observed.snapshots.count(shown.state);
            match shown.state {
                SnapshotState::Captured => {
                    observed.seals_waiting += 1;
                    oldest = oldest.min(Some(shown.created_unix_ms)).or(Some(shown.created_unix_ms));
                }
                SnapshotState::Sealed => observed.publishes_waiting += 1,
                SnapshotState::Published
                | SnapshotState::Discarded
                | SnapshotState::Lost
                | SnapshotState::Undecided => {}
            }
        }
        observed.captures = Captures {
            bytes_held: self.engine.capture_bytes_held(),
            bytes_max: self.settings().capture_bytes_max,
            oldest_age: oldest
                .map_or(Duration::ZERO, |oldest| Duration::from_millis(unix_ms().saturating_sub(oldest))),
        };
        observed
    }

    /// What stands in the way of requests.
    pub(super) fn not_ready(&self) -> Vec<String> {
        let keeper = self.keeping.client().list().err();
        let keeper = keeper.map(|error| format!("the keeper cannot be reached: {error}"));
        let store = self.engine.store_away().map(|away| format!("{away}; what is published waits for it"));
        keeper.into_iter().chain(store).collect()
    }
}
