//! Pages whose installs failed, without pages that wait for a fetch.

use std::collections::BTreeMap;

use super::pending::Failing;
use crate::geometry::GuestPage;

/// Error of the last try to install each such page.
#[derive(Debug, Default)]
pub(super) struct Stalls(BTreeMap<GuestPage, String>);

impl Stalls {
    pub(super) fn put(&mut self, page: GuestPage, reason: &str) {
        self.0.insert(page, reason.to_owned());
    }

    /// True if `page` was stalled until now.
    pub(super) fn end(&mut self, page: GuestPage) -> bool {
        !self.0.is_empty() && self.0.remove(&page).is_some()
    }

    pub(super) fn first(&self) -> Option<Failing> {
        self.0.first_key_value().map(|(&page, reason)| Failing { page, reason: reason.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_page_is_named_until_it_ends() {
        let mut stalls = Stalls::default();
        assert!(!stalls.end(GuestPage::new(1)));
        stalls.put(GuestPage::new(9), "bad");
        stalls.put(GuestPage::new(3), "worse");
        assert_eq!(stalls.first().unwrap().reason, "worse");
        assert!(stalls.end(GuestPage::new(3)));
        assert_eq!(stalls.first().unwrap().page, GuestPage::new(9));
    }
}
