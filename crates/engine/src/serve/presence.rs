//! Huge pages that the kernel calls present although they are not.
//!
//! If no huge page is free, UFFDIO_COPY fails with EEXIST (seen with Linux 6.18). A guest that is woken then faults on
//! the page again, and so on. Each thread faults once on a page that is really there, so more faults than a guest has
//! threads show that it is not.

use std::collections::HashMap;

use crate::geometry::GuestPage;
use crate::limits;

/// Number of times the kernel called each huge page present since it was last installed.
#[derive(Debug, Default)]
pub(super) struct Presence(HashMap<GuestPage, u32>);

impl Presence {
    /// Notes that a huge page on which a thread had faulted was called present; true if that can be right.
    pub(super) fn is_credible(&mut self, page: GuestPage) -> bool {
        let times = self.0.entry(page).or_default();
        *times = times.saturating_add(1);
        *times <= limits::PRESENT_FAULTS_MAX
    }

    /// Notes that a page was installed.
    pub(super) fn installed(&mut self, page: GuestPage) {
        if !self.0.is_empty() {
            self.0.remove(&page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_called_present_in_vain_only_so_often_until_it_is_installed() {
        let mut presence = Presence::default();
        let [page, other] = [0, 512].map(GuestPage::new);
        for _ in 0..2 {
            assert!((0..limits::PRESENT_FAULTS_MAX).all(|_| presence.is_credible(page)));
            assert!(!presence.is_credible(page));
            assert!(!presence.is_credible(page));
            presence.installed(page);
        }
        assert!(presence.is_credible(other));
    }
}
