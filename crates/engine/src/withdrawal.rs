//! A deletion that can be undone for a while, as the names of its signs in the store say it.
//!
//! `manifests/<snapshot>/withdrawn-<id>-<seconds>` says that the snapshot is deleted, and that it can be brought back for so
//! long. `manifests/<snapshot>/undone-<id>` says that it was brought back. Both lie beside the manifest, so a list of its
//! editions shows them too. Neither is ever put under one id a second time with another meaning: a put that lands late
//! changes nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use uuid::Uuid;

/// One deletion that can be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Withdrawal {
    /// No two deletions share one.
    pub id: Uuid,
    /// Seconds for which it can be undone at least.
    pub window_seconds: u64,
}

/// The signs at one snapshot's manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Signs {
    /// All deletions that can, or could, be undone.
    pub withdrawn: BTreeSet<Withdrawal>,
    /// The ids of those that were undone.
    pub undone: BTreeSet<Uuid>,
}

/// Text that is no withdrawal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no withdrawal")]
pub struct NotWithdrawal;

const WITHDRAWN: &str = "withdrawn-";
const UNDONE: &str = "undone-";
/// Length of a UUID as text.
const UUID_BYTES: usize = 36;

impl Withdrawal {
    /// A new one; parts of a second count as one.
    #[must_use]
    pub fn new(window: Duration) -> Self {
        let window_seconds = window.as_secs() + u64::from(window.subsec_nanos() > 0);
        Self { id: Uuid::now_v7(), window_seconds }
    }

    /// The time at which it can be undone no more, if it was written at this time; both in milliseconds since 1970.
    #[must_use]
    pub fn ends_unix_ms(self, written_unix_ms: i64) -> i64 {
        let window = i64::try_from(self.window_seconds.saturating_mul(1000)).unwrap_or(i64::MAX);
        written_unix_ms.saturating_add(window)
    }
}

impl fmt::Display for Withdrawal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{WITHDRAWN}{}-{}", self.id, self.window_seconds)
    }
}

impl FromStr for Withdrawal {
    type Err = NotWithdrawal;

    fn from_str(name: &str) -> Result<Self, NotWithdrawal> {
        let read = || {
            let (id, seconds) = name.strip_prefix(WITHDRAWN)?.split_at_checked(UUID_BYTES)?;
            let window_seconds = seconds.strip_prefix('-')?.parse().ok()?;
            Some(Self { id: id.parse().ok()?, window_seconds })
        };
        // It has one name.
        read().filter(|read: &Self| read.to_string() == name).ok_or(NotWithdrawal)
    }
}

impl Signs {
    /// The deletions that stand.
    pub fn standing(&self) -> impl Iterator<Item = Withdrawal> {
        self.withdrawn.iter().copied().filter(|withdrawal| !self.undone.contains(&withdrawal.id))
    }

    /// Notes the sign with this last part of a name; false if it is none.
    pub fn note(&mut self, name: &str) -> bool {
        if let Ok(withdrawal) = name.parse() {
            self.withdrawn.insert(withdrawal);
            return true;
        }
        let undone = undone_id(name);
        self.undone.extend(undone);
        undone.is_some()
    }
}

/// The last part of the name of the sign that a deletion was undone.
pub(crate) fn undone_name(id: Uuid) -> String {
    format!("{UNDONE}{id}")
}

/// The deletion that a sign of this name says was undone.
pub(crate) fn undone_id(name: &str) -> Option<Uuid> {
    let id = name.strip_prefix(UNDONE)?.parse().ok()?;
    (undone_name(id) == name).then_some(id)
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn signs_have_one_name_each_and_a_deletion_stands_until_the_one_of_its_id_is_undone() {
        let [first, second] = [Duration::from_millis(1), Duration::from_secs(60)].map(Withdrawal::new);
        assert_eq!((first.window_seconds, second.window_seconds), (1, 60));
        let mut signs = Signs::default();
        for (name, is_sign) in [
            (first.to_string(), true),
            (second.to_string(), true),
            ("1".to_owned(), false),
            (format!("{second}x"), false),
        ] {
            assert_eq!(signs.note(&name), is_sign, "{name}");
        }
        assert_eq!(signs.standing().collect::<BTreeSet<_>>(), BTreeSet::from([first, second]));
        assert!(signs.note(&undone_name(first.id)));
        assert_eq!(signs.standing().collect::<Vec<_>>(), [second]);
        for other in
            [format!("{first}/"), first.to_string().to_uppercase(), format!("{WITHDRAWN}{}-01", first.id)]
        {
            assert_eq!(other.parse::<Withdrawal>(), Err(NotWithdrawal), "{other}");
        }
    }

    #[test]
    fn a_window_without_end_has_an_end_that_can_be_written() {
        let withdrawal = Withdrawal { id: Uuid::nil(), window_seconds: u64::MAX };
        assert_eq!(withdrawal.ends_unix_ms(7), i64::MAX);
    }
}
