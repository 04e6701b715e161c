//! Metrics of answers to requests: their times, and refusals.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use rekindle_api::problem::Code;

use super::series::{Label, answer_seconds};

/// Outcome of a checkpoint that a sandbox was due for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeriodicOutcome {
    /// It was taken.
    Taken,
    /// Nothing was written since the last one.
    Unchanged,
    /// It could not be taken.
    Failed,
}

impl PeriodicOutcome {
    const ALL: [Self; 3] = [Self::Taken, Self::Unchanged, Self::Failed];

    const fn name(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Unchanged => "unchanged",
            Self::Failed => "failed",
        }
    }
}

/// Pauses, checkpoints, resumes, and requests that were not done.
#[derive(Debug)]
pub(super) struct Pauses {
    pub(super) pause: Histogram,
    pub(super) frozen: Histogram,
    pub(super) checkpoint: Histogram,
    pub(super) checkpoint_frozen: Histogram,
    pub(super) resume: Histogram,
    pub(super) first_fault: Histogram,
    periodic: Family<[Label; 1], Counter>,
    refused: Family<[Label; 1], Counter>,
}

impl Pauses {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let answers = |registry: &mut Registry, name: &str, help: &str| {
            let histogram = answer_seconds();
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
            histogram
        };
        let pause = answers(registry, "pause_answer", "From a pause being asked for to its answer");
        let frozen = answers(registry, "pause_frozen", "Of that, the time in which the guest stood still");
        let checkpoint =
            answers(registry, "checkpoint_answer", "From a checkpoint being asked for to its answer");
        let checkpoint_frozen =
            answers(registry, "checkpoint_frozen", "Of that, the time in which the guest stood still");
        let resume =
            answers(registry, "resume_answer", "From a resume or fork being asked for to its answer");
        let first_fault = answers(
            registry,
            "pause_to_first_fault",
            "From the answer of a pause to the first page fault served from its snapshot",
        );
        let periodic = Family::<[Label; 1], Counter>::default();
        for outcome in PeriodicOutcome::ALL {
            drop(periodic.get_or_create(&[("outcome", outcome.name())]));
        }
        registry.register(
            "periodic_checkpoints",
            "Checkpoints that sandboxes were due for, by what came of them",
            periodic.clone(),
        );
        let refused = Family::<[Label; 1], Counter>::default();
        for code in Code::ALL {
            drop(refused.get_or_create(&[("code", code.name())]));
        }
        registry.register(
            "requests_refused",
            "Requests that were not done, by problem code",
            refused.clone(),
        );
        Self { pause, frozen, checkpoint, checkpoint_frozen, resume, first_fault, periodic, refused }
    }

    pub(super) fn periodic(&self, outcome: PeriodicOutcome) {
        self.periodic.get_or_create(&[("outcome", outcome.name())]).inc();
    }

    pub(super) fn refused(&self, code: Code) {
        self.refused.get_or_create(&[("code", code.name())]).inc();
    }
}
