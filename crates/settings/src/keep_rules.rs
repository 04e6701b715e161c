//! Rules that say which snapshots are kept, as the setting `keep` has them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::times::{parse_time, show_time};

/// A rule of the setting `keep`: snapshots with all of its labels that are none of the newest of their line, and older
/// than it says, are deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeepRule {
    /// Labels of the snapshots that it is for; all snapshots without.
    pub labels: Vec<(String, String)>,
    /// True if it is for snapshots with names too.
    pub named: bool,
    /// Number of the newest snapshots of each line that stay.
    pub newest: usize,
    /// Age up to which snapshots stay.
    pub within: Duration,
}

impl FromStr for KeepRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            "rules such as \"newest 3 within 7d\", each with labels of the snapshots that it is for (\"team=blue newest \
             3\") and the word `named` if it is for those with names too"
                .to_owned()
        };
        let (mut newest, mut within, mut named, mut labels) = (None, None, false, Vec::new());
        let mut words = text.split_whitespace();
        while let Some(word) = words.next() {
            match word.split_once('=') {
                Some(("", _)) => return Err(expected()),
                Some((name, value)) => labels.push((name.to_owned(), value.to_owned())),
                None if word == "named" && !named => named = true,
                None if word == "newest" && newest.is_none() => {
                    let count = words.next().and_then(|word| word.parse().ok());
                    newest = Some(count.ok_or_else(expected)?);
                }
                None if word == "within" && within.is_none() => {
                    let time = words.next().and_then(|word| parse_time(word).ok());
                    within = Some(time.ok_or_else(expected)?);
                }
                None => return Err(expected()),
            }
        }
        if newest.is_none() && within.is_none() {
            return Err(expected());
        }
        Ok(Self { labels, named, newest: newest.unwrap_or(0), within: within.unwrap_or_default() })
    }
}

impl fmt::Display for KeepRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> =
            self.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        words.extend(self.named.then(|| "named".to_owned()));
        if self.newest > 0 || self.within.is_zero() {
            words.push(format!("newest {}", self.newest));
        }
        if !self.within.is_zero() {
            words.push(format!("within {}", show_time(self.within)));
        }
        f.write_str(&words.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_shown_as_it_was_written() {
        for text in ["newest 3 within 7d", "team=blue newest 1", "named within 30d", "a=b c= newest 0"] {
            assert_eq!(text.parse::<KeepRule>().expect("it is one").to_string(), text);
        }
    }

    #[test]
    fn a_rule_that_keeps_nothing_or_says_a_thing_twice_is_none() {
        let wrong = [
            "",
            "team=blue",
            "named",
            "newest",
            "newest x",
            "within soon",
            "newest 1 newest 2",
            "=b newest 1",
        ];
        for text in wrong {
            let refused = text.parse::<KeepRule>().expect_err(text);
            assert!(refused.starts_with("rules such as"), "{refused}");
        }
    }
}
