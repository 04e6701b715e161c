//! Faults found, counted by what they mean for users.

use rekindle_api::client::ClientError;

/// Everything that was found so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    /// Pages that held something else than they must.
    pub(crate) wrong_pages: u64,
    /// Snapshots that were acknowledged and cannot be had any more.
    pub(crate) lost_snapshots: u64,
    /// Guests that do not go on.
    pub(crate) hung_guests: u64,
    /// Each of them, and everything else, in words.
    pub(crate) words: Vec<String>,
}

impl Findings {
    /// True if no fault was found.
    pub(crate) fn is_clean(&self) -> bool {
        self.words.is_empty()
    }

    /// Pages are wrong.
    pub(crate) fn wrong_pages(&mut self, pages: u64, words: String) {
        self.wrong_pages += pages;
        self.words.push(words);
    }

    /// A snapshot is lost.
    pub(crate) fn lost_snapshot(&mut self, words: String) {
        self.lost_snapshots += 1;
        self.words.push(words);
    }

    /// A guest hangs.
    pub(crate) fn hung_guest(&mut self, words: String) {
        self.hung_guests += 1;
        self.words.push(words);
    }

    /// Something else is wrong.
    pub(crate) fn wrong(&mut self, words: String) {
        self.words.push(words);
    }

    /// A guest did not do what it was told.
    pub(crate) fn guest_failed(&mut self, what: &str, error: &ClientError) {
        let words = format!("{what}: {error}");
        match error {
            ClientError::Silent { .. } => self.hung_guest(words),
            ClientError::Problem(_)
            | ClientError::Unreachable { .. }
            | ClientError::Broken { .. }
            | ClientError::Strange { .. }
            | ClientError::EventsLost { .. }
            | ClientError::Address { .. }
            | ClientError::Secret { .. } => self.wrong(words),
        }
    }

    /// Everything of `other` as well.
    pub(crate) fn take_in(&mut self, other: Self) {
        self.wrong_pages += other.wrong_pages;
        self.lost_snapshots += other.lost_snapshots;
        self.hung_guests += other.hung_guests;
        self.words.extend(other.words);
    }
}
