//! Phases in the middle of which a daemon can be killed.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::load::Kind;

/// A phase of work. If several were under way, the first of them counts, unless another was aimed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// A daemon was starting on what another had left.
    Recovery,
    Fork,
    Create,
    Delete,
    Resume,
    Pause,
    Checkpoint,
    /// A snapshot was being compared and packed.
    Sealing,
    /// A snapshot was being stored.
    Publishing,
    /// A guest that had been resumed was at work.
    GuestFaulting,
    /// Several guests of one snapshot were being made, which share its pages.
    Sharing,
    /// One of those was at work.
    SharedFaulting,
    /// Nothing was asked of the daemon.
    Idle,
}

impl Phase {
    pub(crate) const ALL: [Self; 13] = [
        Self::Idle,
        Self::GuestFaulting,
        Self::Sharing,
        Self::SharedFaulting,
        Self::Create,
        Self::Pause,
        Self::Checkpoint,
        Self::Sealing,
        Self::Publishing,
        Self::Resume,
        Self::Fork,
        Self::Delete,
        Self::Recovery,
    ];

    /// Those in which something is handed to the keeper, most often the one in which the guest stands meanwhile.
    pub(crate) const OF_KEEPER: [Self; 10] = [
        Self::Pause,
        Self::Pause,
        Self::Pause,
        Self::Checkpoint,
        Self::Resume,
        Self::Resume,
        Self::Fork,
        Self::Sharing,
        Self::Create,
        Self::GuestFaulting,
    ];

    /// Its name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Recovery => "recovery",
            Self::Fork => "fork",
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Resume => "resume",
            Self::Pause => "pause",
            Self::Checkpoint => "checkpoint",
            Self::Sealing => "sealing",
            Self::Publishing => "publishing",
            Self::GuestFaulting => "guest_faulting",
            Self::Sharing => "sharing",
            Self::SharedFaulting => "shared_faulting",
            Self::Idle => "idle",
        }
    }

    /// Phase of a request of this kind; a guest that is not served works without the daemon.
    pub(crate) fn of(kind: Kind) -> Self {
        match kind {
            Kind::Create => Self::Create,
            Kind::Tell => Self::Idle,
            Kind::TellServed => Self::GuestFaulting,
            Kind::TellShared => Self::SharedFaulting,
            Kind::Pause => Self::Pause,
            Kind::Checkpoint => Self::Checkpoint,
            Kind::Resume => Self::Resume,
            Kind::Fork => Self::Fork,
            Kind::ForkShared => Self::Sharing,
            Kind::Delete => Self::Delete,
        }
    }

    /// The kind of request that brings it about.
    pub(crate) fn wish(self) -> Option<Kind> {
        match self {
            Self::Idle => None,
            Self::GuestFaulting | Self::Recovery => Some(Kind::TellServed),
            Self::Sharing => Some(Kind::ForkShared),
            Self::SharedFaulting => Some(Kind::TellShared),
            Self::Create => Some(Kind::Create),
            Self::Pause | Self::Sealing | Self::Publishing => Some(Kind::Pause),
            Self::Checkpoint => Some(Kind::Checkpoint),
            Self::Resume => Some(Kind::Resume),
            Self::Fork => Some(Kind::Fork),
            Self::Delete => Some(Kind::Delete),
        }
    }
}

/// Recent durations of each phase.
#[derive(Debug, Default)]
pub(crate) struct Durations(BTreeMap<Phase, Duration>);

/// Assumed duration of a phase that has not been seen.
const UNSEEN: Duration = Duration::from_millis(30);

impl Durations {
    /// One took so long.
    pub(crate) fn note(&mut self, phase: Phase, took: Duration) {
        let lately = self.0.entry(phase).or_insert(took);
        *lately = (*lately * 7 + took) / 8;
    }

    /// Duration of a phase.
    pub(crate) fn of(&self, phase: Phase) -> Duration {
        self.0.get(&phase).copied().unwrap_or(UNSEEN)
    }
}
