//! The rows of measurements, their parts, and their targets.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::statistics::Interval;

/// One thing that is measured and compared with a reference taken in the same run.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// Subject of the row, in one sentence.
    pub(crate) what: &'static str,
    pub(crate) ours: &'static str,
    pub(crate) reference: &'static str,
    /// True if the row takes seconds rather than minutes and needs nothing of the machine, so that CI runs it.
    pub(crate) fast: bool,
    pub(crate) measure: fn(Effort) -> anyhow::Result<Vec<Part>>,
}

/// Amount of work a run puts into each row.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) quick: bool,
}

impl Effort {
    /// Pairs of a row: at least 30, so that the median's interval means something.
    pub(crate) fn pairs(self) -> u32 {
        self.choose(60, 6)
    }

    /// Pairs of a row in which each takes seconds.
    pub(crate) fn heavy_pairs(self) -> u32 {
        self.choose(30, 2)
    }

    /// `full`, or `quick` where the run is a quick one.
    pub(crate) fn choose<T>(self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

/// One measured line of a row, for instance one size.
#[derive(Debug, Serialize)]
pub(crate) struct Part {
    pub(crate) label: String,
    pub(crate) unit: Unit,
    pub(crate) pairs: Pairs,
    pub(crate) target: Target,
}

/// Unit of samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    Seconds,
    Bytes,
    BytesPerSecond,
    PagesPerSecond,
    Count,
}

/// Samples of both sides; the two at one index were taken one right after the other.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Pairs {
    pub(crate) ours: Vec<f64>,
    pub(crate) reference: Vec<f64>,
}

/// Target of a part.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    /// Ours divided by the reference.
    RatioAtMost(f64),
    /// Ours divided by the reference.
    RatioAtLeast(f64),
    /// Ours alone, in the part's unit.
    OursAtMost(f64),
    /// Ours less the reference, in the part's unit.
    BeyondReferenceAtMost(f64),
}

impl Part {
    /// The samples the target speaks of: ratios, differences, or ours.
    pub(crate) fn judged(&self) -> Vec<f64> {
        let both = self.pairs.ours.iter().zip(&self.pairs.reference);
        match self.target {
            Target::RatioAtMost(_) | Target::RatioAtLeast(_) => {
                both.map(|(ours, reference)| ours / reference).collect()
            }
            Target::BeyondReferenceAtMost(_) => both.map(|(ours, reference)| ours - reference).collect(),
            Target::OursAtMost(_) => self.pairs.ours.clone(),
        }
    }

    /// Position of the judged samples' interval to the target.
    pub(crate) fn verdict(&self) -> Verdict {
        let Interval { low, high, .. } = Interval::of(&self.judged());
        let (best, worst, limit) = match self.target {
            Target::RatioAtMost(limit) | Target::OursAtMost(limit) | Target::BeyondReferenceAtMost(limit) => {
                (low, high, limit)
            }
            // Turned round, so that less is better here too.
            Target::RatioAtLeast(limit) => (-high, -low, -limit),
        };
        if worst <= limit {
            Verdict::Met
        } else if best <= limit {
            Verdict::NotShown
        } else {
            Verdict::Missed
        }
    }
}

/// Verdict on a part, or a whole row, against its target; the worst part's verdict is the row's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// The whole interval is at the target or better.
    Met,
    /// The interval straddles the target: this run does not say which.
    NotShown,
    /// No part of the interval reaches the target.
    Missed,
}

impl Verdict {
    /// The verdict as tables show it.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::NotShown => "not shown",
            Self::Missed => "missed",
        }
    }
}

/// Takes `pairs` samples of each side, one right after the other, the side that goes first changing each time.
pub(crate) fn interleave(
    pairs: u32,
    mut ours: impl FnMut() -> anyhow::Result<f64>,
    mut reference: impl FnMut() -> anyhow::Result<f64>,
) -> anyhow::Result<Pairs> {
    let mut taken = Pairs::default();
    for pair in 0..pairs {
        if pair % 2 == 0 {
            taken.ours.push(ours()?);
            taken.reference.push(reference()?);
        } else {
            taken.reference.push(reference()?);
            taken.ours.push(ours()?);
        }
    }
    Ok(taken)
}

/// Seconds that each of `operations` takes when `work` does them all.
pub(crate) fn seconds_each(operations: u32, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    per_operation(start.elapsed(), operations)
}

/// Seconds of one of `operations` that together took `elapsed`.
pub(crate) fn per_operation(elapsed: Duration, operations: u32) -> f64 {
    elapsed.as_secs_f64() / f64::from(operations)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(ours: &[f64], reference: &[f64], target: Target) -> Part {
        let pairs = Pairs { ours: ours.to_vec(), reference: reference.to_vec() };
        Part { label: String::new(), unit: Unit::Seconds, pairs, target }
    }

    #[test]
    fn a_verdict_tells_whether_the_whole_interval_part_of_it_or_none_reaches_the_target() {
        let (ours, reference) = ([2.0, 2.2, 2.4], [2.0, 2.0, 2.0]);
        let verdict = |target| part(&ours, &reference, target).verdict();
        for (met, not_shown, missed) in [
            (Target::RatioAtMost(1.2), Target::RatioAtMost(1.05), Target::RatioAtMost(0.99)),
            (Target::RatioAtLeast(1.0), Target::RatioAtLeast(1.15), Target::RatioAtLeast(1.25)),
            (Target::OursAtMost(2.4), Target::OursAtMost(2.1), Target::OursAtMost(1.9)),
            (
                Target::BeyondReferenceAtMost(0.5),
                Target::BeyondReferenceAtMost(0.1),
                Target::BeyondReferenceAtMost(-0.1),
            ),
        ] {
            assert_eq!(verdict(met), Verdict::Met, "{met:?}");
            assert_eq!(verdict(not_shown), Verdict::NotShown, "{not_shown:?}");
            assert_eq!(verdict(missed), Verdict::Missed, "{missed:?}");
        }
    }

    #[test]
    fn a_row_stands_as_its_worst_part_does() {
        assert!(Verdict::Met < Verdict::NotShown && Verdict::NotShown < Verdict::Missed);
    }

    #[test]
    fn the_side_that_goes_first_changes_with_each_pair() {
        let order = std::cell::RefCell::new(String::new());
        let take = |name| {
            order.borrow_mut().push(name);
            Ok(1.0)
        };
        let pairs = interleave(3, || take('o'), || take('r')).expect("both sides succeed");
        assert_eq!((pairs.ours.len(), pairs.reference.len()), (3, 3));
        assert_eq!(order.into_inner(), "orroor");
    }
}
