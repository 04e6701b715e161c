//! The expected content of every page of a process guest, computed from the operations it has run.

use serde::{Deserialize, Serialize};

use super::content::{Content, mix};

/// One operation on the guest's memory, kept in its device state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Every page is written.
    Fill {
        /// The seed of the content.
        seed: u64,
    },
    /// A share of the pages is written.
    Rewrite(Rewrite),
    /// A share of the pages is made zero.
    Clear(Share),
}

/// A share of the guest's pages, chosen by seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Chooses the pages, and is the seed of their new content.
    pub seed: u64,
    /// Percentage of runs that are chosen.
    pub percent: u8,
    /// Pages of an aligned run, which is chosen as a whole or not at all.
    pub run_pages: u32,
}

/// Writes to a share of the pages: most get new content, some zeroes, some their old bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewrite {
    /// The pages that are written.
    pub share: Share,
    /// Percentage of written pages that get zeroes.
    pub zero_percent: u8,
    /// Percentage of written pages that get their old bytes.
    pub same_percent: u8,
}

/// The operations that are still visible in memory, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct History {
    operations: Vec<Operation>,
}

impl Share {
    /// True if `page` is among the chosen ones.
    #[inline]
    pub fn contains(&self, page: u32) -> bool {
        let run = page / self.run_pages.max(1);
        percentile(self.seed, Purpose::Choose, run) < u64::from(self.percent)
    }
}

impl Operation {
    /// Content of `page` after this operation; `None` if it does not change the page.
    #[inline]
    fn leaves(&self, page: u32) -> Option<Content> {
        match self {
            Self::Fill { seed } => Some(Content::Written { seed: *seed, page }),
            Self::Clear(share) => share.contains(page).then_some(Content::Zero),
            Self::Rewrite(rewrite) => rewrite.leaves(page),
        }
    }
}

impl Rewrite {
    /// Content written into `page`, if it is written; `before` is the history without this rewrite.
    #[inline]
    pub fn writes(&self, page: u32, before: &History) -> Option<Content> {
        let chosen = self.share.contains(page);
        chosen.then(|| self.leaves(page).unwrap_or_else(|| before.expected(page)))
    }

    #[inline]
    fn leaves(&self, page: u32) -> Option<Content> {
        if !self.share.contains(page) {
            return None;
        }
        let class = percentile(self.share.seed, Purpose::Classify, page);
        let zero = u64::from(self.zero_percent);
        if class < zero {
            Some(Content::Zero)
        } else if class < zero + u64::from(self.same_percent) {
            None
        } else {
            Some(Content::Written { seed: self.share.seed, page })
        }
    }
}

impl History {
    /// The content of `page`: that of the last operation that changed it, or zero.
    #[inline]
    pub fn expected(&self, page: u32) -> Content {
        let newest_first = self.operations.iter().rev();
        newest_first.filter_map(|operation| operation.leaves(page)).next().unwrap_or(Content::Zero)
    }

    /// The operations, oldest first.
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// Adds the newest operation; a fill makes all older ones invisible and drops them.
    pub fn push(&mut self, operation: Operation) {
        if matches!(operation, Operation::Fill { .. }) {
            self.operations.clear();
        }
        self.operations.push(operation);
    }
}

/// Purpose of a random number; numbers for different purposes are independent.
#[derive(Clone, Copy)]
enum Purpose {
    Choose,
    Classify,
}

/// A number below 100 that depends on the seed, the purpose and the page or run.
#[inline]
fn percentile(seed: u64, purpose: Purpose, number: u32) -> u64 {
    let salt = match purpose {
        Purpose::Choose => 0x6368_6F6F_7365,
        Purpose::Classify => 0x636C_6173_7369_6679,
    };
    mix(mix(seed ^ salt).wrapping_add(u64::from(number))) % 100
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: u32 = 10_000;

    fn share(seed: u64, percent: u8) -> Share {
        Share { seed, percent, run_pages: 1 }
    }

    #[test]
    fn the_last_operation_that_changed_a_page_decides_its_content() {
        let mut history = History::default();
        assert_eq!(history.expected(3), Content::Zero);
        history.push(Operation::Fill { seed: 1 });
        let rewrite = Rewrite { share: share(2, 50), zero_percent: 20, same_percent: 30 };
        history.push(Operation::Rewrite(rewrite));
        history.push(Operation::Clear(share(3, 10)));
        let mut counts = [0_u32; 3];
        for page in 0..PAGES {
            let class = match history.expected(page) {
                Content::Zero => 0,
                Content::Written { seed: 1, page: same } if same == page => 1,
                Content::Written { seed: 2, page: same } if same == page => 2,
                other @ Content::Written { .. } => unreachable!("page {page} holds {other:?}"),
            };
            counts[class] += 1;
        }
        let expected = [1_900, 5_850, 2_250];
        for (count, expected) in counts.into_iter().zip(expected) {
            assert!(count.abs_diff(expected) < 300, "{counts:?}");
        }
    }

    #[test]
    fn shares_of_nothing_and_everything_are_exact_and_runs_are_whole() {
        assert!((0..PAGES).all(|page| !share(9, 0).contains(page) && share(9, 100).contains(page)));
        let runs = Share { seed: 9, percent: 50, run_pages: 64 };
        for page in 0..PAGES {
            assert_eq!(runs.contains(page), runs.contains(page / 64 * 64));
        }
    }

    #[test]
    fn a_fill_leaves_nothing_of_what_was_before() {
        let mut history = History::default();
        history.push(Operation::Fill { seed: 1 });
        history.push(Operation::Clear(share(3, 10)));
        history.push(Operation::Fill { seed: 4 });
        assert_eq!(history.operations.len(), 1);
    }
}
