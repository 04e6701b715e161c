//! A node's task and acknowledgements, as one line for each snapshot.

use std::collections::BTreeMap;

use rekindle_engine::geometry::{GuestPage, GuestPages};
use rekindle_engine::identity::SnapshotId;
use rekindle_testkit::model::ModelMemory;
use rekindle_testkit::random::Random;

/// Pages of every guest.
pub(crate) const PAGES: u32 = 150;

/// Every snapshot that was begun, in the order of their ids.
#[derive(Debug, Default)]
pub(crate) struct Ledger(pub(crate) BTreeMap<SnapshotId, Entry>);

/// Entry of one snapshot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) parent: Option<SnapshotId>,
    /// Seed of its guest's changes.
    pub(crate) seed: u64,
    pub(crate) state: State,
}

/// The last message about a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The snapshot may exist.
    Begun,
    /// The snapshot must exist.
    Acknowledged,
    /// The snapshot may be gone.
    Deleting,
    /// The snapshot must be gone.
    Deleted,
}

/// One change by a guest.
pub(crate) enum Change {
    Write(GuestPage, Vec<u8>),
    Remove(GuestPages),
}

impl Ledger {
    /// Expected content of the pages of a snapshot.
    pub(crate) fn model(&self, id: SnapshotId) -> ModelMemory {
        let Entry { parent, seed, .. } = self.0[&id];
        let mut model = parent.map_or_else(|| ModelMemory::zeroes(PAGES), |parent| self.model(parent));
        for change in changes(seed) {
            match change {
                Change::Write(page, bytes) => model.write(page, 0, &bytes),
                Change::Remove(run) => model.remove(run),
            }
        }
        model
    }

    /// The entry as one line.
    pub(crate) fn to_line(&self) -> String {
        let word = |(id, Entry { parent, seed, state }): (&SnapshotId, &Entry)| {
            let parent = parent.map_or_else(|| "-".to_owned(), |parent| parent.to_string());
            format!("{id}/{parent}/{seed}/{}", state.letter())
        };
        self.0.iter().map(word).collect::<Vec<_>>().join(" ")
    }

    pub(crate) fn of_line(line: &str) -> Self {
        let entry = |word: &str| {
            let parts: Vec<&str> = word.split('/').collect();
            let parent = (parts[1] != "-").then(|| parts[1].parse().expect("an id"));
            let state = State::of_letter(parts[3]);
            let seed = parts[2].parse().expect("a number");
            (parts[0].parse().expect("an id"), Entry { parent, seed, state })
        };
        Self(line.split_whitespace().map(entry).collect())
    }
}

impl State {
    fn letter(self) -> char {
        match self {
            Self::Begun => 'b',
            Self::Acknowledged => 'a',
            Self::Deleting => 'd',
            Self::Deleted => 'D',
        }
    }

    fn of_letter(letter: &str) -> Self {
        match letter {
            "b" => Self::Begun,
            "a" => Self::Acknowledged,
            "d" => Self::Deleting,
            _ => Self::Deleted,
        }
    }
}

/// Changes by the guest of a snapshot: the same for the same seed.
pub(crate) fn changes(seed: u64) -> Vec<Change> {
    let mut random = Random::new(seed);
    let mut changes = Vec::new();
    for _ in 0..1 + random.below(6) {
        let start = random.below(PAGES);
        let run = GuestPages::new(GuestPage::new(start), (1 + random.below(25)).min(PAGES - start));
        match random.below(10) {
            0..2 => changes.push(Change::Remove(run)),
            2..3 => changes.extend(run.iter().map(|page| Change::Write(page, vec![0; 4096]))),
            _ => changes.extend(run.iter().map(|page| {
                let mut bytes = vec![0; 4096];
                random.fill(&mut bytes);
                Change::Write(page, bytes)
            })),
        }
    }
    changes
}
