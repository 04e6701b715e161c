//! An actor's next request: random, within limits on the number of each thing.

use rekindle_api::types::MemoryBacking;
use rekindle_guest::process::history::{Rewrite, Share};
use rekindle_guest::process::protocol::{Command, DiscardHow};
use rekindle_testkit::random::Random;
use uuid::Uuid;

use super::model::{Life, Pages, SandboxModel};
use super::operation::Operation;
use super::shard::Shard;

/// Largest number of each thing that an actor has.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) sandboxes_max: usize,
    pub(crate) snapshots_max: usize,
    /// Sizes of new sandboxes, one as likely as the other.
    pub(crate) memory_bytes: Vec<u64>,
}

/// The fewest guests of a snapshot that share its pages.
const SHARING_MIN: usize = 2;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Create,
    /// Let a guest work.
    Tell,
    /// Let a guest work that was just resumed: its page faults are served.
    TellServed,
    /// The same of one that shares its pages with others.
    TellShared,
    Pause,
    Checkpoint,
    Resume,
    Fork,
    /// Make several guests of one snapshot, which share its pages.
    ForkShared,
    Delete,
}

/// The kinds that are drawn where none is wished for; a kind is drawn as often as it stands here.
const DRAWN: [Kind; 13] = [
    Kind::Tell,
    Kind::Tell,
    Kind::Tell,
    Kind::TellServed,
    Kind::TellServed,
    Kind::Create,
    Kind::Pause,
    Kind::Pause,
    Kind::Checkpoint,
    Kind::Resume,
    Kind::Resume,
    Kind::Fork,
    Kind::Delete,
];

impl Shard {
    /// The next request, of the wished kind or one that makes it possible.
    pub(crate) fn choose(&mut self, wish: Option<Kind>, limits: &Limits, random: &mut Random) -> Operation {
        if self.snapshots.len() > limits.snapshots_max {
            return self.delete_snapshot(random).unwrap_or_else(|| self.remove(random));
        }
        match wish.unwrap_or(DRAWN[random.position(DRAWN.len())]) {
            _ if self.sandboxes.is_empty() => self.create(limits, random),
            Kind::Tell => match self.one_of(random, SandboxModel::runs) {
                Some(sandbox) => self.tell(sandbox, random),
                None => self.resume(random),
            },
            Kind::TellServed => match self.one_of(random, SandboxModel::is_served) {
                Some(sandbox) if !random.percent(40) => self.tell(sandbox, random),
                Some(_) | None => self.pause_or_resume(random),
            },
            Kind::TellShared => match self.one_of(random, SandboxModel::shares) {
                Some(sandbox) => self.tell(sandbox, random),
                None => self.choose(Some(Kind::ForkShared), limits, random),
            },
            Kind::ForkShared if self.sandboxes.len() + SHARING_MIN > limits.sandboxes_max => {
                self.remove(random)
            }
            Kind::ForkShared => self.fork(SHARING_MIN, limits, random),
            Kind::Create | Kind::Fork if self.sandboxes.len() >= limits.sandboxes_max => self.remove(random),
            Kind::Create => self.create(limits, random),
            Kind::Pause => self.pause(random),
            Kind::Checkpoint => match self.one_of(random, SandboxModel::runs).map(|sandbox| sandbox.id) {
                Some(sandbox) => Operation::Checkpoint { sandbox, name: self.new_name("checkpoint") },
                None => self.resume(random),
            },
            Kind::Resume => self.resume(random),
            Kind::Fork => self.fork(1, limits, random),
            Kind::Delete => match self.delete_snapshot(random).filter(|_| random.percent(50)) {
                Some(delete) => delete,
                None if self.sandboxes.len() > 1 => self.remove(random),
                None => self.create(limits, random),
            },
        }
    }

    /// Kind of the request that `operation` is.
    pub(crate) fn kind_of(&self, operation: &Operation) -> Kind {
        match operation {
            Operation::Create { .. } => Kind::Create,
            Operation::Tell { sandbox, .. } => match self.sandboxes.get(sandbox) {
                Some(sandbox) if sandbox.shares() => Kind::TellShared,
                Some(sandbox) if sandbox.is_served() => Kind::TellServed,
                Some(_) | None => Kind::Tell,
            },
            Operation::Pause { .. } => Kind::Pause,
            Operation::Checkpoint { .. } => Kind::Checkpoint,
            Operation::ResumeSnapshot { count: 2.., .. } | Operation::Fork { count: 2.., .. } => {
                Kind::ForkShared
            }
            Operation::Resume { .. } | Operation::ResumeSnapshot { .. } => Kind::Resume,
            Operation::Fork { .. } => Kind::Fork,
            Operation::RemoveSandbox { .. } | Operation::DeleteSnapshot { .. } => Kind::Delete,
        }
    }

    /// Makes one more sandbox.
    pub(crate) fn create(&mut self, limits: &Limits, random: &mut Random) -> Operation {
        let memory_bytes = limits.memory_bytes[random.position(limits.memory_bytes.len())];
        let backing = if random.percent(30) { MemoryBacking::Private } else { MemoryBacking::Shared };
        Operation::Create { name: self.new_name("sandbox"), memory_bytes, backing }
    }

    fn remove(&self, random: &mut Random) -> Operation {
        let sandbox = self.one_of(random, |_| true).map(|sandbox| sandbox.id);
        Operation::RemoveSandbox { sandbox: sandbox.expect("only asked for where there is one") }
    }

    /// Deletes a snapshot that no sandbox is paused in, if there is one.
    fn delete_snapshot(&self, random: &mut Random) -> Option<Operation> {
        let paused_in = self.paused_in();
        let free: Vec<Uuid> = self.snapshots.keys().filter(|id| !paused_in.contains(id)).copied().collect();
        let snapshot = (!free.is_empty()).then(|| free[random.position(free.len())])?;
        Some(Operation::DeleteSnapshot { snapshot })
    }

    fn pause_or_resume(&mut self, random: &mut Random) -> Operation {
        if self.sandboxes.values().any(|sandbox| !sandbox.runs()) {
            self.resume(random)
        } else {
            self.pause(random)
        }
    }

    fn pause(&mut self, random: &mut Random) -> Operation {
        match self.one_of(random, SandboxModel::runs).map(|sandbox| sandbox.id) {
            Some(sandbox) => Operation::Pause { sandbox, name: self.new_name("snapshot") },
            None => self.resume(random),
        }
    }

    /// Resumes a paused sandbox, or makes another one of a snapshot, or makes either possible.
    fn resume(&mut self, random: &mut Random) -> Operation {
        match self.one_of(random, |sandbox| !sandbox.runs()).map(|sandbox| sandbox.id) {
            Some(sandbox) => Operation::Resume { sandbox },
            None => self.pause(random),
        }
    }

    /// Makes `least` to three guests of one snapshot.
    fn fork(&mut self, least: usize, limits: &Limits, random: &mut Random) -> Operation {
        let room = limits.sandboxes_max.saturating_sub(self.sandboxes.len()).clamp(least, 3);
        let count = u32::try_from(least + random.position(room - least + 1)).expect("three at most");
        let snapshots: Vec<Uuid> = self.snapshots.keys().copied().collect();
        if !snapshots.is_empty() && random.percent(40) {
            let snapshot = snapshots[random.position(snapshots.len())];
            return Operation::ResumeSnapshot { snapshot, name: self.new_name("resumed"), count };
        }
        let sandbox = self.one_of(random, |_| true).map(|sandbox| sandbox.id);
        let sandbox = sandbox.expect("only asked for where there is one");
        Operation::Fork { sandbox, name: self.new_name("fork"), count }
    }

    fn tell(&self, sandbox: &SandboxModel, random: &mut Random) -> Operation {
        Operation::Tell { sandbox: sandbox.id, command: command(sandbox.backing, random) }
    }

    fn one_of(
        &self,
        random: &mut Random,
        is_wanted: impl Fn(&SandboxModel) -> bool,
    ) -> Option<&SandboxModel> {
        let wanted: Vec<_> = self.sandboxes.values().filter(|sandbox| is_wanted(sandbox)).collect();
        (!wanted.is_empty()).then(|| wanted[random.position(wanted.len())])
    }
}

impl SandboxModel {
    fn runs(&self) -> bool {
        matches!(self.life, Life::Running { .. })
    }

    fn is_served(&self) -> bool {
        matches!(self.life, Life::Running { pages: Pages::Served | Pages::Shared, .. })
    }

    fn shares(&self) -> bool {
        matches!(self.life, Life::Running { pages: Pages::Shared, .. })
    }
}

/// Something for a guest to do.
fn command(backing: MemoryBacking, random: &mut Random) -> Command {
    match random.below(100) {
        0..10 => Command::Fill { seed: random.number() },
        10..45 => Command::Rewrite(Rewrite {
            share: share(random),
            zero_percent: percent(random, 30),
            same_percent: percent(random, 30),
        }),
        45..65 => Command::Discard { share: share(random), how: discard_how(backing, random) },
        65..85 => Command::Verify,
        _ => Command::Tick { pages: 64 },
    }
}

fn share(random: &mut Random) -> Share {
    let run_pages = [1, 1, 8, 64][random.position(4)];
    Share { seed: random.number(), percent: 1 + percent(random, 50), run_pages }
}

fn percent(random: &mut Random, end: u32) -> u8 {
    u8::try_from(random.below(end)).expect("below a hundred")
}

/// Private memory knows one way only. The other one has two outcomes for shared memory: a guest may run on pages that it
/// shares with others.
fn discard_how(backing: MemoryBacking, random: &mut Random) -> DiscardHow {
    match backing {
        MemoryBacking::Private | MemoryBacking::PrivateHuge => DiscardHow::DontNeed,
        MemoryBacking::Huge if random.percent(25) => DiscardHow::DontNeed,
        MemoryBacking::Shared | MemoryBacking::Huge => DiscardHow::Remove,
    }
}
