//! A guest of the demo: it fills its memory, changes it, counts steps and checks every page, whether it is told so at a
//! process guest's control socket or at a machine's console.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rekindle_api::types::{CreateSandbox, Sandbox, SandboxCount, Snapshot, VmmKind};
use rekindle_guest::machine::ConsoleLines;
use rekindle_guest::process::history::{Rewrite, Share};
use rekindle_guest::process::protocol::{Command, Ticked, Verified, Written};

use crate::commands::private_node::PrivateNode;

/// Longest time for a guest to answer a line.
const ANSWER_LIMIT: Duration = Duration::from_secs(300);

/// Longest wait of one request for console output.
const TURN: Duration = Duration::from_millis(500);

/// Pages that a process guest looks at in one step.
const STEP_PAGES: u32 = 64;

/// A running guest.
#[derive(Debug)]
pub(super) struct Guest<'a> {
    node: &'a PrivateNode,
    sandbox: Sandbox,
    console: Console,
}

/// Output of a machine's console so far.
#[derive(Debug, Default)]
struct Console {
    read_to: Option<u64>,
    lines: ConsoleLines,
}

impl<'a> Guest<'a> {
    /// Starts a guest on empty memory.
    pub(super) fn create(node: &'a PrivateNode, wanted: CreateSandbox) -> anyhow::Result<Self> {
        Ok(Self { node, sandbox: node.create(wanted)?, console: Console::default() })
    }

    /// A guest that goes on from a snapshot, before the snapshot is sealed if `early`.
    pub(super) fn resume(node: &'a PrivateNode, snapshot: &Snapshot, early: bool) -> anyhow::Result<Self> {
        Ok(Self { node, sandbox: node.resume(snapshot, early)?, console: Console::default() })
    }

    /// So many guests that go on from a snapshot.
    pub(super) fn fork(
        node: &'a PrivateNode,
        snapshot: &Snapshot,
        count: SandboxCount,
        early: bool,
    ) -> anyhow::Result<Vec<Self>> {
        let guest = |sandbox| Self { node, sandbox, console: Console::default() };
        Ok(node.fork(snapshot, count, early)?.into_iter().map(guest).collect())
    }

    /// Pauses it; the snapshot, and how long that took.
    pub(super) fn pause(&self) -> anyhow::Result<(Snapshot, Duration)> {
        let asked = Instant::now();
        let snapshot = self.node.pause(self.sandbox.id)?;
        Ok((snapshot, asked.elapsed()))
    }

    /// Takes a snapshot of it while it goes on; and how long that took.
    pub(super) fn checkpoint(&self) -> anyhow::Result<(Snapshot, Duration)> {
        let asked = Instant::now();
        let snapshot = self.node.checkpoint(self.sandbox.id)?;
        Ok((snapshot, asked.elapsed()))
    }

    /// The process of its VMM.
    pub(super) fn pid(&self) -> Option<u32> {
        self.sandbox.pid
    }

    /// Writes every page, of Linux' memory as many as `mib` says; the number of pages.
    pub(super) fn fill(&mut self, mib: Option<u64>) -> anyhow::Result<u64> {
        match self.sandbox.vmm {
            VmmKind::Process => {
                let written: Written = self.node.tell(self.sandbox.id, &Command::Fill { seed: 1 })?;
                Ok(written.pages().into())
            }
            VmmKind::Qemu | VmmKind::Firecracker => {
                let line = mib.map_or_else(|| "fill 1".to_owned(), |mib| format!("fill 1 {mib}"));
                Ok(self.ask(&line, "filled ")?.parse()?)
            }
        }
    }

    /// Rewrites a share of its pages, chosen by `seed`; a description of their number.
    pub(super) fn rewrite(&mut self, seed: u64, percent: u8) -> anyhow::Result<String> {
        match self.sandbox.vmm {
            VmmKind::Process => {
                let share = Share { seed, percent, run_pages: 8 };
                let rewrite = Rewrite { share, zero_percent: 10, same_percent: 10 };
                let written: Written = self.node.tell(self.sandbox.id, &Command::Rewrite(rewrite))?;
                Ok(written.pages().to_string())
            }
            VmmKind::Qemu | VmmKind::Firecracker => self.ask(&format!("dirty {seed} {percent}"), "dirtied "),
        }
    }

    /// Lets it count one step, and returns its count.
    pub(super) fn step(&mut self) -> anyhow::Result<u64> {
        match self.sandbox.vmm {
            VmmKind::Process => {
                let ticked: Ticked = self.node.tell(self.sandbox.id, &Command::Tick { pages: STEP_PAGES })?;
                let wrong = ticked.verified.mismatches;
                ensure!(wrong == 0, "the guest's step found {wrong} wrong pages");
                Ok(ticked.count)
            }
            VmmKind::Qemu | VmmKind::Firecracker => Ok(self.ask("tick", "tick ")?.parse()?),
        }
    }

    /// Has it check all of its memory: pages, and those that were wrong.
    pub(super) fn verify(&mut self) -> anyhow::Result<(u64, u64)> {
        match self.sandbox.vmm {
            VmmKind::Process => {
                let verified: Verified = self.node.tell(self.sandbox.id, &Command::Verify)?;
                Ok((verified.pages.into(), verified.mismatches.into()))
            }
            VmmKind::Qemu | VmmKind::Firecracker => {
                let answer = self.ask("verify", "verified ")?;
                let mut numbers = answer.split_whitespace();
                let mut next = || numbers.next().and_then(|word| word.parse().ok());
                next().zip(next()).with_context(|| format!("the guest verified {answer:?}"))
            }
        }
    }

    /// A way to ask for the bytes that were served to it so far.
    pub(super) fn served_bytes(&self) -> impl Fn() -> u64 + Sync + use<'a> {
        let (node, id) = (self.node, self.sandbox.id);
        move || {
            let served = node.sandbox(id).ok().and_then(|sandbox| sandbox.served).unwrap_or_default();
            (served.from_capture + served.from_layer + served.from_peer + served.zero) * 4096
        }
    }

    /// Pages it was given from captures so far.
    pub(super) fn pages_from_capture(&self) -> anyhow::Result<u64> {
        Ok(self.node.sandbox(self.sandbox.id)?.served.map_or(0, |served| served.from_capture))
    }

    /// Ends it.
    pub(super) fn end(self) -> anyhow::Result<()> {
        self.node.remove(self.sandbox.id)
    }

    /// Waits for a line of its console that begins with `start`, and gives the rest of it.
    pub(super) fn wait_line(&mut self, start: &str) -> anyhow::Result<String> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        let Self { node, sandbox, console } = self;
        loop {
            if let Some(rest) = console.lines.answer(start)? {
                return Ok(rest);
            }
            let output = node.console(sandbox.id, console.read_to, TURN)?;
            console.read_to = Some(output.next);
            console.lines.add(&BASE64_STANDARD.decode(&output.bytes)?);
            if Instant::now() > deadline {
                let state = node.sandbox(sandbox.id)?.state;
                bail!(
                    "the guest said nothing that begins with {start:?} within {ANSWER_LIMIT:?}; it is {state:?}"
                );
            }
        }
    }

    /// Types a line, and gives the rest of the answer, which begins with `start`.
    fn ask(&mut self, line: &str, start: &str) -> anyhow::Result<String> {
        self.node.type_console(self.sandbox.id, &format!("{line}\n"))?;
        self.wait_line(start)
    }
}
