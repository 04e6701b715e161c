//! Frequency of the processor's time stamp counter, for guests that cannot measure it themselves.

use std::arch::x86_64::_rdtsc;
use std::time::{Duration, Instant};

/// Duration of the measurement; its error is that of reading both clocks, about a microsecond.
const WATCHED: Duration = Duration::from_millis(20);

/// Counts in a millisecond, measured against the monotonic clock.
pub fn tsc_khz() -> u64 {
    let (start, first) = (Instant::now(), counter());
    while start.elapsed() < WATCHED {
        std::hint::spin_loop();
    }
    let (counted, nanoseconds) = (counter().saturating_sub(first), start.elapsed().as_nanos());
    let khz = u128::from(counted) * 1_000_000 / nanoseconds.max(1);
    u64::try_from(khz).expect("counters count some billion times a second")
}

fn counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and it touches nothing but two registers.
    unsafe { _rdtsc() }
}
