//! Medians and the intervals that hold them, without assuming how samples are distributed.

use serde::Serialize;

/// Probability that an [`Interval`] holds the true median.
const CONFIDENCE: f64 = 0.95;

/// The median of some samples, and order statistics between which the true median lies with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Interval {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

impl Interval {
    /// The interval of `samples`, of which there is at least one; with fewer than six it is their whole range.
    pub(crate) fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let outside = ranks_outside(sorted.len());
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        };
        Self { low: sorted[outside], median, high: sorted[sorted.len() - 1 - outside] }
    }
}

/// Number of samples that may be left out at each end so that the rest still spans the median with [`CONFIDENCE`].
///
/// Each sample lies below the median with probability one half, so the count of those that do is binomial.
fn ranks_outside(samples: usize) -> usize {
    let mut probability = 0.5_f64.powf(as_float(samples));
    let mut below = 0.0;
    for rank in 0..samples.div_ceil(2) {
        below += probability;
        if 2.0 * below > 1.0 - CONFIDENCE {
            return rank.saturating_sub(1);
        }
        probability *= as_float(samples - rank) / as_float(rank + 1);
    }
    0
}

/// A count of samples, operations or bytes as a float.
pub(crate) fn as_float(count: usize) -> f64 {
    #[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "counts here lie far below 2^52")]
    let float = count as f64;
    float
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_thirty_samples_is_that_of_the_tables() {
        let samples: Vec<f64> = (1..=30).rev().map(f64::from).collect();
        assert_eq!(Interval::of(&samples), Interval { low: 10.0, median: 15.5, high: 21.0 });
        let samples: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(Interval::of(&samples), Interval { low: 40.0, median: 50.5, high: 61.0 });
    }

    #[test]
    fn few_samples_give_their_whole_range() {
        assert_eq!(Interval::of(&[3.0]), Interval { low: 3.0, median: 3.0, high: 3.0 });
        assert_eq!(Interval::of(&[4.0, 1.0, 2.0]), Interval { low: 1.0, median: 2.0, high: 4.0 });
    }
}
