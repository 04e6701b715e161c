//! Numbers on the command line: a refusal says what to write instead.

use std::ops::RangeInclusive;

/// Reads a whole number in `range`.
pub fn number<T>(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: TryFrom<u64>,
{
    move |given| {
        let number = given.parse().ok().filter(|number| range.contains(number));
        number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| expected(&range))
    }
}

fn expected(range: &RangeInclusive<u64>) -> String {
    let (least, most) = (range.start(), range.end());
    match *most {
        u64::MAX => format!("write a whole number from {least} on, such as {}", (*least).max(12)),
        _ => format!("write a whole number from {least} to {most}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_read_where_it_is_in_range_and_else_refused_with_the_range() {
        let percent = number::<u8>(0..=100);
        assert_eq!(percent("100"), Ok(100));
        for wrong in ["101", "-1", "", "1.5", "many", "99999999999999999999"] {
            assert_eq!(percent(wrong), Err("write a whole number from 0 to 100".to_owned()), "{wrong}");
        }
        let id = number::<u64>(0..=u64::MAX);
        assert_eq!(id("x"), Err("write a whole number from 0 on, such as 12".to_owned()));
        assert_eq!(id("18446744073709551615"), Ok(u64::MAX));
    }
}
