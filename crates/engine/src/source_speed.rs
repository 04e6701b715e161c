//! The running estimate of a source's speed: the time until an answer begins, and the bytes of it that come in a second.

use std::time::Duration;

use crate::limits;
use crate::sync::{Mutex, lock};

/// Speed of a source, as its last answers were.
#[derive(Debug, Default)]
pub(crate) struct SourceSpeed(Mutex<Estimate>);

#[derive(Debug, Default)]
struct Estimate {
    first_byte: Option<Duration>,
    bytes_a_second: Option<u64>,
}

/// Weight of what was known, against one new answer.
const KNOWN_WEIGHT: u32 = 7;

impl SourceSpeed {
    /// Notes the time that an answer took to begin.
    pub(crate) fn note_first_byte(&self, time: Duration) {
        let mut estimate = lock(&self.0);
        let known = estimate.first_byte.unwrap_or(time);
        estimate.first_byte = Some((known * KNOWN_WEIGHT + time) / (KNOWN_WEIGHT + 1));
    }

    /// Notes the time that the bytes of an answer took once it had begun. Short answers say nothing.
    pub(crate) fn note_body(&self, bytes: u64, time: Duration) {
        let micros = time.as_micros().max(1);
        if bytes < limits::SPEED_BYTES_MIN {
            return;
        }
        let rate = u64::try_from(u128::from(bytes) * 1_000_000 / micros).unwrap_or(u64::MAX);
        let mut estimate = lock(&self.0);
        let (weight, known) = (u128::from(KNOWN_WEIGHT), u128::from(estimate.bytes_a_second.unwrap_or(rate)));
        let mixed = (known * weight + u128::from(rate)) / (weight + 1);
        estimate.bytes_a_second = u64::try_from(mixed).ok();
    }

    /// The time that an answer takes to begin, once one came.
    pub(crate) fn first_byte(&self) -> Option<Duration> {
        lock(&self.0).first_byte
    }

    /// Bytes of one answer that come in the time in which another one begins, within bounds: a gap as long is worth
    /// fetching, instead of a request of its own for what follows it.
    pub(crate) fn bytes_worth_a_request(&self) -> u64 {
        let estimate = lock(&self.0);
        let first_byte = estimate.first_byte.unwrap_or(limits::FIRST_BYTE_GUESS).as_micros();
        let rate = estimate.bytes_a_second.unwrap_or(limits::BYTES_A_SECOND_GUESS);
        let bytes = u64::try_from(u128::from(rate) * first_byte / 1_000_000).unwrap_or(u64::MAX);
        bytes.clamp(limits::BYTES_WORTH_A_REQUEST_MIN, limits::BYTES_WORTH_A_REQUEST_MAX)
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_request_is_worth_the_bytes_that_come_until_its_answer_begins() {
        let speed = SourceSpeed::default();
        speed.note_first_byte(Duration::from_millis(20));
        speed.note_body(10 * MIB, Duration::from_millis(100));
        assert_eq!(speed.bytes_worth_a_request(), 2 * MIB);
        speed.note_body(1, Duration::from_secs(1));
        assert_eq!(speed.bytes_worth_a_request(), 2 * MIB, "a short answer says nothing of the rate");
    }

    #[test]
    fn the_estimate_follows_a_source_that_becomes_slower() {
        let speed = SourceSpeed::default();
        speed.note_body(100 * MIB, Duration::from_secs(1));
        (0..40).for_each(|_| speed.note_first_byte(Duration::from_millis(10)));
        let before = speed.bytes_worth_a_request();
        (0..40).for_each(|_| speed.note_first_byte(Duration::from_millis(40)));
        let after = speed.bytes_worth_a_request();
        assert!(after > 3 * before && after <= 4 * before, "{before} and {after} bytes");
    }

    #[test]
    fn no_measurement_makes_the_bound_absurd() {
        let speed = SourceSpeed::default();
        speed.note_first_byte(Duration::ZERO);
        assert_eq!(speed.bytes_worth_a_request(), limits::BYTES_WORTH_A_REQUEST_MIN);
        (0..100).for_each(|_| speed.note_first_byte(Duration::from_secs(60)));
        assert_eq!(speed.bytes_worth_a_request(), limits::BYTES_WORTH_A_REQUEST_MAX);
    }
}
