//! A guest that ticks all the time: it shows for how long guests stall.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rekindle_api::client::{Client, ClientError};
use rekindle_guest::process::history::Share;
use rekindle_guest::process::protocol::{Command, DiscardHow};
use uuid::Uuid;

use crate::load::{Findings, Operation, Shard};

/// The guest's sandbox.
#[derive(Debug)]
pub(crate) struct Ticker {
    pub(crate) shard: Shard,
    sandbox: Option<Uuid>,
    /// Number of its resumes.
    resumes: u64,
}

/// Signals to a thread that ticks.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// The daemon was killed: the first tick that is begun now and answered is the end of the stall.
    pub(crate) killed: AtomicBool,
    /// No one waits for that any more.
    pub(crate) over: AtomicBool,
}

const TICK: Command = Command::Tick { pages: 8 };
const MEMORY_BYTES: u64 = 16 << 20;
/// Longest stall of a guest before it counts as hung.
const STALL_MAX: Duration = Duration::from_secs(60);
/// Between two tries to reach a daemon that is not there.
const TRY_EVERY: Duration = Duration::from_millis(1);

impl Ticker {
    pub(crate) fn new() -> Self {
        Self { shard: Shard::new("ticker".to_owned()), sandbox: None, resumes: 0 }
    }

    /// Brings the guest into a state in which its pages are yet to be served, and some of them are given back and not
    /// touched since: after a kill it is the epoch's journal alone that knows of those.
    pub(crate) fn resume(&mut self, client: &Client, findings: &mut Findings) -> Result<(), ClientError> {
        let known = self.sandbox.filter(|sandbox| self.shard.sandboxes.contains_key(sandbox));
        let sandbox = match known {
            Some(sandbox) => sandbox,
            None => self.create(client, findings)?,
        };
        let before: Vec<Uuid> = self.shard.snapshots.keys().copied().collect();
        let name = self.shard.new_name("snapshot");
        self.ask(client, &Operation::Pause { sandbox, name }, findings)?;
        self.ask(client, &Operation::Resume { sandbox }, findings)?;
        self.resumes += 1;
        let share = Share { seed: self.resumes, percent: 10, run_pages: 4 };
        let command = Command::Discard { share, how: DiscardHow::Remove };
        self.ask(client, &Operation::Tell { sandbox, command }, findings)?;
        for snapshot in before {
            self.ask(client, &Operation::DeleteSnapshot { snapshot }, findings)?;
        }
        Ok(())
    }

    fn create(&mut self, client: &Client, findings: &mut Findings) -> Result<Uuid, ClientError> {
        let name = self.shard.new_name("sandbox");
        let backing = Default::default();
        self.ask(client, &Operation::Create { name, memory_bytes: MEMORY_BYTES, backing }, findings)?;
        let sandbox = *self.shard.sandboxes.keys().last().expect("it was just made");
        self.sandbox = Some(sandbox);
        self.ask(client, &Operation::Tell { sandbox, command: Command::Fill { seed: 1 } }, findings)?;
        Ok(sandbox)
    }

    fn ask(
        &mut self,
        client: &Client,
        operation: &Operation,
        findings: &mut Findings,
    ) -> Result<(), ClientError> {
        let outcome = operation.ask(client)?;
        self.shard.answered(operation, &outcome, findings);
        Ok(())
    }

    /// Ticks until a tick is answered that was begun after the kill, and returns its time. None once the waiter is
    /// gone.
    pub(crate) fn tick(&mut self, client: &Client, told: &Told, findings: &mut Findings) -> Option<Instant> {
        let sandbox = self.sandbox?;
        let operation = Operation::Tell { sandbox, command: TICK };
        let mut last_answer = Instant::now();
        while !told.over.load(Ordering::Acquire) {
            let was_killed = told.killed.load(Ordering::Acquire);
            match operation.ask(client) {
                Ok(outcome) => {
                    last_answer = Instant::now();
                    self.shard.answered(&operation, &outcome, findings);
                    if was_killed {
                        return Some(last_answer);
                    }
                }
                Err(ClientError::Broken { .. }) => self.may_have_ticked(),
                Err(error) if error.is_unreachable() => thread::park_timeout(TRY_EVERY),
                Err(error) => {
                    // A daemon that lost the guest with its keeper says so, and is asked no more.
                    if !told.over.load(Ordering::Acquire) {
                        findings.guest_failed("the ticking guest", &error);
                    }
                    return None;
                }
            }
            if last_answer.elapsed() > STALL_MAX {
                findings.hung_guest(format!("the ticking guest has not answered for {STALL_MAX:?}"));
                return None;
            }
        }
        None
    }

    fn may_have_ticked(&mut self) {
        for sandbox in self.shard.sandboxes.values_mut() {
            let backing = sandbox.backing;
            if let Some(guest) = sandbox.guest() {
                guest.may_have_done(&TICK, backing);
            }
        }
    }
}
