//! Troubles that a round makes for a node.

use rekindle_api::problem::Code;

/// A trouble, made at a random instant of the phase aimed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Trouble {
    /// The daemon is killed.
    DaemonKilled,
    /// The daemon and the keeper are killed, one right after the other.
    BothKilled,
    /// The keeper is killed; the daemon gives everything to the next one.
    KeeperKilled,
    /// The daemon is stopped for a while, and goes on.
    DaemonStopped,
    /// The daemon is killed and started again while nothing can be read from the store or written to it.
    StoreAway,
    /// The disk is full for a while, at whose end the daemon is killed.
    DiskFull,
}

/// Troubles of ten rounds.
const ROUNDS: [Trouble; 10] = [
    Trouble::DaemonKilled,
    Trouble::KeeperKilled,
    Trouble::DaemonKilled,
    Trouble::DaemonStopped,
    Trouble::StoreAway,
    Trouble::DaemonKilled,
    Trouble::KeeperKilled,
    Trouble::DiskFull,
    Trouble::DaemonKilled,
    Trouble::BothKilled,
];

impl Trouble {
    pub(crate) const ALL: [Self; 6] = [
        Self::DaemonKilled,
        Self::BothKilled,
        Self::KeeperKilled,
        Self::DaemonStopped,
        Self::StoreAway,
        Self::DiskFull,
    ];

    /// Trouble of a round, by its number; the disk can be full only if it may be made so.
    pub(crate) fn of_round(number: u64, disk_can_be_full: bool) -> Self {
        let position = usize::try_from(number % 10).expect("less than ten");
        let trouble = ROUNDS[position];
        if matches!(trouble, Self::DiskFull) && !disk_can_be_full { Self::DaemonKilled } else { trouble }
    }

    /// Its name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::DaemonKilled => "daemon_killed",
            Self::BothKilled => "both_killed",
            Self::KeeperKilled => "keeper_killed",
            Self::DaemonStopped => "daemon_stopped",
            Self::StoreAway => "store_away",
            Self::DiskFull => "disk_full",
        }
    }

    /// True if the daemon does not outlive it.
    pub(crate) fn ends_daemon(self) -> bool {
        !matches!(self, Self::KeeperKilled | Self::DaemonStopped)
    }

    /// Codes with which requests may fail because of it. One that does was done whole or not at all, like one whose
    /// answer is lost.
    pub(crate) fn may_fail(self) -> &'static [Code] {
        match self {
            Self::DaemonKilled | Self::DaemonStopped | Self::StoreAway => &[],
            // Of both, either may go first, and the daemon may answer in between.
            Self::KeeperKilled | Self::BothKilled => &[Code::KeeperFailed],
            Self::DiskFull => &[Code::DiskFailed],
        }
    }
}
