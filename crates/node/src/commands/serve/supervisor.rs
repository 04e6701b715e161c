//! Reports to the service manager that started the daemon, if one did.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// The service manager.
#[derive(Debug)]
pub(super) struct Supervisor {
    /// Time within which it wants a sign that the daemon works.
    within: Option<Duration>,
    turns: Option<Interval>,
}

impl Supervisor {
    /// The one this process's environment names, or none.
    pub(super) fn of_process() -> Self {
        Self { within: sd_notify::watchdog_enabled(), turns: None }
    }

    /// The daemon serves.
    pub(super) fn ready(&self) {
        tell(&[NotifyState::Ready]);
    }

    /// The daemon reads its settings again; [`Self::ready`] follows.
    pub(super) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(_) => tell(&[NotifyState::Reloading]),
        }
    }

    /// The daemon ends.
    pub(super) fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }

    /// The daemon works.
    pub(super) fn alive(&self) {
        tell(&[NotifyState::Watchdog]);
    }

    /// Returns when [`Self::alive`] is due; never without a service manager that waits for it.
    pub(super) async fn due(&mut self) {
        let Some(within) = self.within else { return std::future::pending().await };
        let turns = self.turns.get_or_insert_with(|| {
            let mut turns = interval(within / 2);
            turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
            turns
        });
        turns.tick().await;
    }
}

/// A service manager that does not listen changes nothing for the daemon.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager was not told");
    }
}
