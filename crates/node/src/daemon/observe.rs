//! Observes the daemon's state for metrics and readiness.

use std::time::Duration;

use rekindle_api::types::{Readiness, SnapshotState};
use rekindle_metrics::{Captures, Observed};

use super::Daemon;
use super::clock::unix_ms;
use super::disk_room::no_room;
use super::known::Known;
use super::layer_disk::shortage;
use super::unnamed::aside_now;

impl Daemon {
    /// The metrics of this moment.
    pub(super) fn observe(&self) -> Observed {
        let mut observed = Observed {
            store: self.host.engine.traffic(),
            reads: self.host.engine.read_counts().into(),
            peers: self.host.engine.peer_counts(),
            store_away: self.host.engine.store_away().is_some(),
            // A failed count is repeated at the next look.
            set_aside: self.host.engine.aside().count().unwrap_or_default(),
            held_aside: aside_now(&self.host.keeping),
            cache: self.host.engine.cache_status(),
            collected: self.host.engine.collect_counts(),
            ..Observed::default()
        };
        for entry in self.guests.sandboxes.registry.all() {
            observed.sandboxes.count(entry.show().state);
        }
        let mut oldest = None;
        for known in self.snapshots.all() {
            let state = known.state();
            observed.snapshots.count(state);
            match state {
                SnapshotState::Captured => {
                    observed.seals_waiting += 1;
                    let created = known.snapshot.created_unix_ms();
                    oldest = oldest.min(Some(created)).or(Some(created));
                }
                SnapshotState::Sealed => observed.publishes_waiting += 1,
                SnapshotState::Published
                | SnapshotState::Remote
                | SnapshotState::Discarded
                | SnapshotState::Lost
                | SnapshotState::Undecided => {}
            }
        }
        observed.captures = Captures {
            bytes_held: self.host.engine.capture_bytes_held(),
            bytes_max: self.host.settings().capture_bytes_max,
            image_bytes: self.host.engine.image_bytes_held(),
            oldest_age: oldest
                .map_or(Duration::ZERO, |oldest| Duration::from_millis(unix_ms().saturating_sub(oldest))),
        };
        observed
    }

    /// Tells if requests can be done, and the obstacles to them or to saving paused sandboxes.
    pub(super) fn ready(&self) -> Readiness {
        let mut reasons: Vec<String> =
            self.host.keeping.trouble().into_iter().chain(no_room(&self.host.state_directory)).collect();
        if self.guests.sandboxes.room.is_closed() {
            reasons.push("this node is drained: `rekindle drain --undo` ends that".to_owned());
        }
        let ready = reasons.is_empty();
        let store =
            self.host.engine.store_away().map(|away| format!("{away}; what is published waits for it"));
        reasons.extend(store);
        reasons.extend(shortage(&self.host.engine.cache_status()));
        let aside = Some(aside_now(&self.host.keeping)).filter(|aside| aside.is_some());
        reasons.extend(aside.map(|aside| {
            format!(
                "{aside} are set aside, as the catalog does not name them: `rekindle doctor` says what to do"
            )
        }));
        reasons.extend(self.not_saved());
        Readiness { ready, reasons }
    }

    /// Reasons that snapshots are not saved: of the oldest that is not on the disk, and of the oldest that is not in
    /// the store.
    fn not_saved(&self) -> Vec<String> {
        let all = self.snapshots.all();
        let failing = |wanted: SnapshotState, verb: &str| {
            let failing =
                |known: &&Known| known.state() == wanted && known.snapshot.status().failure.is_some();
            let count = all.iter().filter(failing).count();
            let oldest = all.iter().find(failing)?;
            let failure = oldest.snapshot.status().failure.unwrap_or_default();
            Some(format!(
                "{count} snapshots cannot be {verb} now; the oldest is {}: {failure}",
                oldest.called()
            ))
        };
        let sealed = failing(SnapshotState::Captured, "sealed");
        sealed.into_iter().chain(failing(SnapshotState::Sealed, "published")).collect()
    }
}
