//! Expected content of sandboxes and snapshots, from the operations on them.

use std::collections::BTreeMap;

use rekindle_api::types::MemoryBacking;
use rekindle_guest::process::history::{Operation as Written, Share};
use rekindle_guest::process::protocol::{Command, DeviceState, DiscardHow};
use uuid::Uuid;

/// States that a guest can have by now: more than one if a command's answer was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GuestModel {
    states: Vec<DeviceState>,
}

/// A sandbox that was acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct SandboxModel {
    pub(crate) id: Uuid,
    pub(crate) memory_bytes: u64,
    pub(crate) backing: MemoryBacking,
    pub(crate) life: Life,
}

/// State of a sandbox.
#[derive(Clone, Debug)]
pub(crate) enum Life {
    /// Its guest runs.
    Running {
        guest: GuestModel,
        /// Origin of its pages.
        pages: Pages,
    },
    /// Its guest ended with this snapshot.
    Paused(Uuid),
}

/// Origin of a guest's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    /// Its memory began empty.
    Fresh,
    /// It came from a snapshot, so its page faults are served.
    Served,
    /// The same, and it may have those of its snapshot in common with other guests.
    Shared,
}

impl Pages {
    /// Those of guests that one request makes of a snapshot.
    pub(crate) fn of(made: usize, backing: MemoryBacking) -> Self {
        if made > 1 && backing == MemoryBacking::Shared { Self::Shared } else { Self::Served }
    }
}

/// A snapshot that was acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotModel {
    pub(crate) id: Uuid,
    pub(crate) backing: MemoryBacking,
    pub(crate) memory_bytes: u64,
    /// Content of a guest resumed from it.
    pub(crate) guest: GuestModel,
}

/// Things by id: in the order they were made in.
pub(crate) type ById<T> = BTreeMap<Uuid, T>;

impl GuestModel {
    /// A guest that has done nothing.
    pub(crate) fn fresh() -> Self {
        Self { states: vec![DeviceState::default()] }
    }

    /// True if the guest can be in this state.
    pub(crate) fn admits(&self, state: &DeviceState) -> bool {
        self.states.contains(state)
    }

    /// The guest was asked and is in this state.
    pub(crate) fn is_in(&mut self, state: DeviceState) {
        self.states = vec![state];
    }

    /// A command was answered.
    pub(crate) fn did(&mut self, command: &Command, backing: MemoryBacking) {
        self.states.iter_mut().for_each(|state| apply(command, backing, state));
    }

    /// A tick was answered by this count; false if it cannot have been.
    pub(crate) fn ticked(&mut self, count: u64) -> bool {
        self.states.iter_mut().for_each(|state| state.count += 1);
        self.states.retain(|state| state.count == count);
        !self.states.is_empty()
    }

    /// A command was not answered: it may have been done, or not.
    pub(crate) fn may_have_done(&mut self, command: &Command, backing: MemoryBacking) {
        let mut done = self.clone();
        done.did(command, backing);
        self.states.extend(done.states);
        self.states.dedup();
    }

    /// The states in few words.
    pub(crate) fn words(&self) -> String {
        let counts: Vec<String> = self.states.iter().map(|state| state.count.to_string()).collect();
        format!("a guest at count {}", counts.join(" or "))
    }
}

fn apply(command: &Command, backing: MemoryBacking, state: &mut DeviceState) {
    match command {
        Command::Fill { seed } => state.history.push(Written::Fill { seed: *seed }),
        Command::Rewrite(rewrite) => state.history.push(Written::Rewrite(*rewrite)),
        Command::Discard { share, how } => {
            if reads_zero(*how, backing) {
                state.history.push(Written::Clear(Share { run_pages: share.run_pages.max(1), ..*share }));
            }
        }
        Command::Tick { .. } => state.count += 1,
        Command::Verify
        | Command::Checksums { .. }
        | Command::TouchTrace(_)
        | Command::Place { .. }
        | Command::State
        | Command::Restore { .. }
        | Command::Exit => {}
    }
}

/// True if pages that were given back read zero: unmapping alone keeps a shared file's content.
fn reads_zero(how: DiscardHow, backing: MemoryBacking) -> bool {
    match (how, backing) {
        (DiscardHow::Remove, _)
        | (DiscardHow::DontNeed, MemoryBacking::Private | MemoryBacking::PrivateHuge) => true,
        (DiscardHow::DontNeed, MemoryBacking::Shared | MemoryBacking::Huge) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_without_an_answer_leaves_two_states_and_an_answer_decides() {
        let mut guest = GuestModel::fresh();
        let tick = Command::Tick { pages: 1 };
        guest.did(&tick, MemoryBacking::Shared);
        guest.may_have_done(&tick, MemoryBacking::Shared);
        let at = |count| DeviceState { count, ..DeviceState::default() };
        assert!(guest.admits(&at(1)) && guest.admits(&at(2)) && !guest.admits(&at(3)));
        assert!(guest.ticked(3));
        assert!(guest.admits(&at(3)) && !guest.admits(&at(2)));
        assert!(!guest.ticked(3));
    }

    #[test]
    fn shared_pages_that_are_only_unmapped_keep_their_content() {
        let share = Share { seed: 1, percent: 50, run_pages: 1 };
        let discard = Command::Discard { share, how: DiscardHow::DontNeed };
        let mut guest = GuestModel::fresh();
        guest.did(&discard, MemoryBacking::Shared);
        assert!(guest.admits(&DeviceState::default()));
        guest.did(&discard, MemoryBacking::Private);
        assert!(!guest.admits(&DeviceState::default()));
    }
}
