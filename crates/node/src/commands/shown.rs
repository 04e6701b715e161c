//! Ids, sizes and times in the forms that people read.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytesize::ByteSize;
use uuid::Uuid;

/// The domain of nodes whose settings say none.
pub const DOMAIN_DEFAULT: &str = "default";

/// Letters of an id that are always shown: its last ones, which are random. The first ones are its time.
const ID_LETTERS_MIN: usize = 8;

/// The ends of ids, each as long as it takes to mean that id alone among everything a reference may mean.
#[derive(Debug, Default)]
pub struct ShortIds {
    /// All ids in order, and their letters from last to first in order.
    forwards: Vec<String>,
    backwards: Vec<String>,
    names: BTreeSet<String>,
}

impl ShortIds {
    /// For all ids there are, and all names: a name goes before an id when a reference is looked up.
    pub fn new<'a>(
        ids: impl IntoIterator<Item = &'a Uuid>,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let mut forwards: Vec<String> = ids.into_iter().map(Uuid::to_string).collect();
        let mut backwards: Vec<String> = forwards.iter().map(|id| reversed(id)).collect();
        forwards.sort();
        backwards.sort();
        Self { forwards, backwards, names: names.into_iter().map(str::to_owned).collect() }
    }

    /// The end of an id, whether it is among the others or not.
    pub fn of(&self, id: &Uuid) -> String {
        let whole = id.to_string();
        let ends = (ID_LETTERS_MIN..whole.len()).map(|letters| &whole[whole.len() - letters..]);
        let end = ends.into_iter().find(|end| !end.starts_with('-') && self.means_only(end, &whole));
        end.unwrap_or(&whole).to_owned()
    }

    fn means_only(&self, part: &str, whole: &str) -> bool {
        let (part_backwards, whole_backwards) = (reversed(part), reversed(whole));
        !self.names.contains(part)
            && beginning_with(&self.forwards, part).all(|id| id == whole)
            && beginning_with(&self.backwards, &part_backwards).all(|id| *id == whole_backwards)
    }
}

/// Those of `sorted` that begin with `part`.
fn beginning_with<'a>(sorted: &'a [String], part: &'a str) -> impl Iterator<Item = &'a String> {
    let first = sorted.partition_point(|id| id.as_str() < part);
    sorted[first..].iter().take_while(move |id| id.starts_with(part))
}

fn reversed(text: &str) -> String {
    text.chars().rev().collect()
}

/// `web`, or its id where it has no name.
pub fn name_or_id(name: Option<&str>, id: &Uuid) -> String {
    name.map_or_else(|| id.to_string(), str::to_owned)
}

/// A text of at most this many letters, the last of them `…` if it was longer.
pub fn cut(text: &str, letters_max: usize) -> String {
    match text.char_indices().nth(letters_max) {
        Some(_) => text.chars().take(letters_max.saturating_sub(1)).chain(['…']).collect(),
        None => text.to_owned(),
    }
}

/// A size.
pub fn size(bytes: u64) -> String {
    ByteSize::b(bytes).to_string()
}

/// Milliseconds since 1970, now.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Age of a time, in one word: `12s`, `5m`, `3h`, `9d`.
pub fn age(then_ms: u64, now_ms: u64) -> String {
    let seconds = now_ms.saturating_sub(then_ms) / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A duration, to two or three digits.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds {
        ..0.001 => format!("{:.0} µs", seconds * 1e6),
        ..1.0 => format!("{:.1} ms", seconds * 1e3),
        ..120.0 => format!("{seconds:.1} s"),
        _ => format!("{:.0} min", seconds / 60.0),
    }
}

/// A time as RFC 3339 has it, in UTC, to the millisecond.
pub fn utc(unix_ms: u64) -> String {
    let (seconds, ms) = (unix_ms / 1000, unix_ms % 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// The date of a day since 1970: `civil_from_days` of Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> Uuid {
        text.parse().expect("it is an id")
    }

    #[test]
    fn an_id_is_shown_by_its_end_as_far_as_that_means_no_other() {
        let one = id("019a0000-1111-7aaa-8000-000aaaaaaaaa");
        let near = id("019a0000-1111-7aaa-8001-000aaaaaaaaa");
        let other = id("019a0000-1111-7aaa-8000-0000bbbbbbbb");
        let ids = ShortIds::new([&one, &other, &near, &one], []);
        assert_eq!(
            [&one, &near, &other].map(|id| ids.of(id)),
            ["0-000aaaaaaaaa", "1-000aaaaaaaaa", "bbbbbbbb"]
        );
        let absent = id("019a0000-1111-7aaa-8000-0001bbbbbbbb");
        assert_eq!(ids.of(&absent), "1bbbbbbbb", "one that is not listed");
        assert_eq!(ShortIds::default().of(&one), "aaaaaaaa");
    }

    #[test]
    fn what_is_shown_of_an_id_is_no_name_and_begins_no_other_id() {
        let one = id("019a0000-1111-7aaa-8000-00000badcafe");
        let ids = ShortIds::new([&one], ["0badcafe"]);
        assert_eq!(ids.of(&one), "00badcafe");
        let other = id("0badcafe-1111-7aaa-8000-000000000001");
        let ids = ShortIds::new([&one, &other], ["00badcafe"]);
        assert_eq!(ids.of(&one), "000badcafe");
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(utc(951_782_399_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(utc(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(utc(1_763_850_000_123), "2025-11-22T22:20:00.123Z");
        assert_eq!(utc(4_107_542_399_000), "2100-02-28T23:59:59.000Z");
        assert_eq!(utc(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn ages_have_one_unit() {
        let ages =
            [0, 59, 60, 3599, 3600, 86_399, 86_400 * 9].map(|seconds| age(1000, 1000 + seconds * 1000));
        assert_eq!(ages, ["0s", "59s", "1m", "59m", "1h", "23h", "9d"]);
        assert_eq!(age(5000, 1000), "0s", "a clock that went back");
    }

    #[test]
    fn durations_have_the_unit_that_fits() {
        let of = |ms: u64| duration(Duration::from_millis(ms));
        assert_eq!([of(2), of(1500), of(600_000)], ["2.0 ms", "1.5 s", "10 min"]);
        assert_eq!(duration(Duration::from_micros(40)), "40 µs");
    }
}
