//! The checkpoints that a sandbox has taken in its period: those of them that stay.

use std::collections::BTreeSet;

use rekindle_api::types::{Labels, SnapshotState};
use uuid::Uuid;

use super::about::About;
use super::known::Known;
use super::references::Named as _;

/// A checkpoint that a sandbox has taken in its period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Periodic {
    id: Uuid,
    stage: Stage,
    /// Its pages and disks are those of the one before it.
    repeats: bool,
}

/// The losses that a checkpoint survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It is in RAM.
    Captured,
    /// It is on this node's disk.
    Sealed,
    /// It is in the store.
    Published,
}

/// True if a snapshot was taken in the period of a sandbox, and has nothing that anybody else has given it.
pub(super) fn is_periodic(about: &About) -> bool {
    about.name.is_none() && about.labels.len() == 1 && about.labels.contains_key(Labels::PERIODIC)
}

impl Periodic {
    /// Those that `line` has, oldest first, without what cannot be read.
    pub(super) fn line(line: &[Known]) -> Vec<Self> {
        let before = std::iter::once(None).chain(line.iter().map(Some));
        let all = line.iter().zip(before).map(|(known, before)| {
            let repeats = before.is_some_and(|before| has_same_pages(before, known));
            Some(Self { id: known.id(), stage: stage_of(known)?, repeats })
        });
        all.flatten().collect()
    }
}

fn stage_of(known: &Known) -> Option<Stage> {
    match known.state() {
        SnapshotState::Captured => Some(Stage::Captured),
        SnapshotState::Sealed => Some(Stage::Sealed),
        SnapshotState::Published => Some(Stage::Published),
        SnapshotState::Remote | SnapshotState::Discarded | SnapshotState::Lost | SnapshotState::Undecided => {
            None
        }
    }
}

/// True if both have names by now, and each page has the same one in both.
fn has_same_pages(one: &Known, other: &Known) -> bool {
    let (one, other) = (one.snapshot.manifest_now(), other.snapshot.manifest_now());
    let (Some(one), Some(other)) = (one, other) else { return false };
    one.layers() == other.layers() && one.volumes() == other.volumes()
}

/// Those of a line, oldest first, that need not stay where `keep` are kept.
///
/// The newest `keep` on the disk stay, and those after them that are not there yet: so a kill leaves them. The newest one in
/// the store stays, as the loss of this node leaves no other, and so does the one after it: it is the next to get there, also
/// where the store is slower than the period.
pub(super) fn superfluous(line: &[Periodic], keep: usize) -> Vec<Uuid> {
    let is_repeated = |at: usize| {
        line.get(at + 1).is_some_and(|next: &Periodic| next.repeats && next.stage != Stage::Captured)
    };
    let on_disk = (0..line.len()).rev().filter(|at| line[*at].stage != Stage::Captured);
    let newest = on_disk.filter(|at| !is_repeated(*at)).take(keep).map(|at| &line[at]);
    let in_store = line.iter().rposition(|one| one.stage == Stage::Published);
    let next = line.get(in_store.map_or(0, |at| at + 1));
    let saved = in_store.map(|at| &line[at]).into_iter().chain(next);
    let stay: BTreeSet<Uuid> = newest.chain(saved).map(|one| one.id).collect();
    let may_go = line.iter().filter(|one| one.stage != Stage::Captured && !stay.contains(&one.id));
    may_go.map(|one| one.id).collect()
}

/// True if nothing of a line changes by itself any more.
pub(super) fn is_settled(line: &[Periodic]) -> bool {
    line.last().is_none_or(|newest| newest.stage == Stage::Published)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line from words such as `p` for published, `s` for sealed and `c` for captured; `=` after one that repeats the one
    /// before it.
    fn line(words: &str) -> Vec<Periodic> {
        let mut line: Vec<Periodic> = Vec::new();
        for word in words.chars() {
            let stage = match word {
                'p' => Stage::Published,
                's' => Stage::Sealed,
                'c' => Stage::Captured,
                _ => {
                    line.last_mut().expect("one comes before").repeats = true;
                    continue;
                }
            };
            let number = u128::try_from(line.len()).expect("a few") + 1;
            line.push(Periodic { id: Uuid::from_u128(number), stage, repeats: false });
        }
        line
    }

    fn go(words: &str, keep: usize) -> Vec<u128> {
        superfluous(&line(words), keep).into_iter().map(|id| id.as_u128()).collect()
    }

    #[test]
    fn the_newest_that_are_saved_stay_and_those_that_are_not_saved_yet() {
        assert_eq!(go("ppppp", 3), [1, 2]);
        assert_eq!(go("pppc", 3), [0; 0], "one that is in RAM only stands for no other");
        assert_eq!(go("ppppcc", 3), [1]);
        assert_eq!(go("", 3), [0; 0]);
        assert_eq!(go("pp", 1), [1]);
    }

    #[test]
    fn with_a_store_that_fails_the_last_one_there_stays_and_the_one_that_is_next_and_the_rest_is_bounded() {
        assert_eq!(go("pssssss", 3), [3, 4]);
        assert_eq!(go("ssssss", 3), [2, 3], "none is there yet: the first is the next to be");
        assert_eq!(go("ppsssss", 1), [1, 4, 5, 6]);
        assert_eq!(go("pssssp", 1), [1, 2, 3, 4, 5], "a later one has come there");
    }

    #[test]
    fn one_that_is_the_same_as_the_next_counts_no_more_once_that_is_saved() {
        assert_eq!(go("ppp=p=", 3), [2, 3], "the first and the last differ");
        assert_eq!(go("pppc=", 3), [0; 0]);
        assert_eq!(go("pps=", 3), [0; 0], "the newest in the store stays though the next is the same");
    }

    #[test]
    fn a_line_is_settled_when_its_newest_is_in_the_store() {
        assert!(is_settled(&line("")) && is_settled(&line("sp")));
        assert!(!is_settled(&line("ps")) && !is_settled(&line("pc")));
    }
}
