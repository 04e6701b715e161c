//! Formats measured values for people.

use super::row::{Target, Unit};
use super::statistics::Interval;

/// A value in its unit, scaled to three digits.
pub(crate) fn value(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Seconds => scaled(value, &[("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)]),
        Unit::Bytes => scaled(value, &[("GiB", GIB), ("MiB", MIB), ("KiB", 1024.0), ("B", 1.0)]),
        Unit::BytesPerSecond => scaled(value, &[("GB/s", 1e9), ("MB/s", 1e6)]),
        Unit::PagesPerSecond => scaled(value, &[("M pages/s", 1e6), ("k pages/s", 1e3), ("pages/s", 1.0)]),
        Unit::Count => digits(value),
    }
}

const MIB: f64 = 1024.0 * 1024.0;
const GIB: f64 = 1024.0 * MIB;

/// `value` in the largest of `scales`, largest first, in which it is at least one.
fn scaled(value: f64, scales: &[(&str, f64)]) -> String {
    let smallest = scales.last().expect("every unit has a scale");
    let (name, scale) = scales.iter().find(|(_, scale)| value.abs() >= *scale).unwrap_or(smallest);
    format!("{} {name}", digits(value / scale))
}

/// `value` with three digits or so.
pub(crate) fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A judged value: a plain ratio, or a value in the part's unit.
pub(crate) fn judged(target: Target, unit: Unit, judged: f64) -> String {
    match target {
        Target::RatioAtMost(_) | Target::RatioAtLeast(_) => digits(judged),
        Target::OursAtMost(_) | Target::BeyondReferenceAtMost(_) => value(unit, judged),
    }
}

/// The judged interval as `median [low, high]`.
pub(crate) fn interval(target: Target, unit: Unit, found: Interval) -> String {
    let [low, median, high] = [found.low, found.median, found.high].map(|each| judged(target, unit, each));
    format!("{median} [{low}, {high}]")
}

/// The target in words.
pub(crate) fn target(target: Target, unit: Unit) -> String {
    match target {
        Target::RatioAtMost(limit) => format!("at most {}x", digits(limit)),
        Target::RatioAtLeast(limit) => format!("at least {}x", digits(limit)),
        Target::OursAtMost(limit) => format!("at most {}", value(unit, limit)),
        Target::BeyondReferenceAtMost(limit) => format!("at most {} beyond", value(unit, limit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_scaled_to_three_digits() {
        assert_eq!(value(Unit::Seconds, 29.44e-9), "29.4 ns");
        assert_eq!(value(Unit::Seconds, 0.0), "0.00 ns");
        assert_eq!(value(Unit::Bytes, 3.0 * MIB), "3.00 MiB");
        assert_eq!(value(Unit::BytesPerSecond, 7.6e9), "7.60 GB/s");
        assert_eq!(target(Target::RatioAtMost(1.1), Unit::Seconds), "at most 1.10x");
    }
}
