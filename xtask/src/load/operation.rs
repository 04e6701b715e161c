//! One request to the daemon: sent, and sent again if its answer was lost.

use rekindle_api::client::{Client, ClientError};
use rekindle_api::types::{
    CheckpointSandbox, CreateSandbox, ForkSandbox, MemoryBacking, PauseSandbox, ResumeSandbox,
    ResumeSnapshot, Sandbox, Snapshot,
};
use rekindle_guest::process::protocol::{Command, Ticked, Verified};
use rekindle_testkit::black_box::Told;
use uuid::Uuid;

/// A request. Those with a name use it as idempotency key too, so that asking again is asking the same.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Create { name: String, memory_bytes: u64, backing: MemoryBacking },
    Tell { sandbox: Uuid, command: Command },
    Pause { sandbox: Uuid, name: String },
    Checkpoint { sandbox: Uuid, name: String },
    Resume { sandbox: Uuid },
    ResumeSnapshot { snapshot: Uuid, name: String, count: u32 },
    Fork { sandbox: Uuid, name: String, count: u32 },
    RemoveSandbox { sandbox: Uuid },
    DeleteSnapshot { snapshot: Uuid },
}

/// Answer to a request.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Made(Vec<Sandbox>),
    Resumed,
    Paused(Snapshot),
    Checkpointed(Snapshot),
    Verified(Verified),
    Ticked(Ticked),
    Told,
    Gone,
}

impl Operation {
    /// Asks for it.
    pub(crate) fn ask(&self, client: &Client) -> Result<Outcome, ClientError> {
        match self {
            Self::Create { name, memory_bytes, backing } => {
                let wanted = CreateSandbox {
                    domain: None,
                    name: Some(name.parse().expect("it is a name")),
                    labels: Default::default(),
                    vmm: Default::default(),
                    memory_bytes: *memory_bytes,
                    backing: *backing,
                    machine: None,
                    checkpoints: None,
                };
                client.create_sandbox(Some(name), &wanted).map(|sandbox| Outcome::Made(vec![sandbox]))
            }
            Self::Tell { sandbox, command } => tell(client, *sandbox, command),
            Self::Pause { sandbox, name } => {
                let how =
                    PauseSandbox { name: Some(name.parse().expect("it is a name")), ..Default::default() };
                client.pause_sandbox(&sandbox.to_string(), Some(name), &how).map(Outcome::Paused)
            }
            Self::Checkpoint { sandbox, name } => {
                let name_of = Some(name.parse().expect("it is a name"));
                let how = CheckpointSandbox { name: name_of, ..Default::default() };
                let taken = client.checkpoint_sandbox(&sandbox.to_string(), Some(name), &how);
                taken.map(Outcome::Checkpointed)
            }
            Self::Resume { sandbox } => {
                let how = ResumeSandbox::default();
                client.resume_sandbox(&sandbox.to_string(), &how).map(|_| Outcome::Resumed)
            }
            Self::ResumeSnapshot { snapshot, name, count } => {
                let how = ResumeSnapshot {
                    count: (*count).try_into().expect("a few"),
                    name: Some(name.parse().expect("it is a name")),
                    ..ResumeSnapshot::default()
                };
                client.resume_snapshot(&snapshot.to_string(), Some(name), &how).map(Outcome::Made)
            }
            Self::Fork { sandbox, name, count } => {
                let how = ForkSandbox {
                    count: (*count).try_into().expect("a few"),
                    name: Some(name.parse().expect("it is a name")),
                    ..ForkSandbox::default()
                };
                client.fork_sandbox(&sandbox.to_string(), Some(name), &how).map(Outcome::Made)
            }
            Self::RemoveSandbox { sandbox } => {
                client.remove_sandbox(&sandbox.to_string()).map(|()| Outcome::Gone)
            }
            Self::DeleteSnapshot { snapshot } => {
                client.delete_snapshot(&snapshot.to_string()).map(|_| Outcome::Gone)
            }
        }
    }
}

fn tell(client: &Client, sandbox: Uuid, command: &Command) -> Result<Outcome, ClientError> {
    let guest = Told::new(client, sandbox);
    match command {
        Command::Verify => guest.verify().map(Outcome::Verified),
        Command::Tick { pages } => guest.tick(*pages).map(Outcome::Ticked),
        Command::Fill { .. }
        | Command::Rewrite(_)
        | Command::Discard { .. }
        | Command::Checksums { .. }
        | Command::TouchTrace(_)
        | Command::Place { .. }
        | Command::State
        | Command::Restore { .. }
        | Command::Exit => guest.tell::<serde_json::Value>(command).map(|_| Outcome::Told),
    }
}
