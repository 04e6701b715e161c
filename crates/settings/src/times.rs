//! Times as settings and options have them.

use std::time::Duration;

const DAY_SECONDS: u64 = 24 * 3600;

/// A time such as `500ms`, `30s`, `5m`, `1h` or `7d`; a bare number is seconds.
pub fn parse_time(given: &str) -> Result<Duration, String> {
    let expected = || "a time such as 500ms, 30s, 5m, 1h or 7d".to_owned();
    let digits = given.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(given.len());
    let (number, unit) = given.split_at(digits);
    let number: u64 = number.parse().map_err(|_| expected())?;
    let seconds = |each: u64| number.checked_mul(each).map(Duration::from_secs).ok_or_else(expected);
    match unit.trim() {
        "ms" => Ok(Duration::from_millis(number)),
        "" | "s" => seconds(1),
        "m" | "min" => seconds(60),
        "h" => seconds(3600),
        "d" => seconds(DAY_SECONDS),
        _ => Err(expected()),
    }
}

/// A time as [`parse_time`] reads it.
pub(super) fn show_time(time: Duration) -> String {
    let seconds = time.as_secs();
    if time.subsec_millis() == 0 && seconds > 0 && seconds.is_multiple_of(DAY_SECONDS) {
        return format!("{}d", seconds / DAY_SECONDS);
    }
    if time.subsec_millis() == 0 { format!("{}s", time.as_secs()) } else { format!("{}ms", time.as_millis()) }
}
