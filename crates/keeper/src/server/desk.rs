//! Carries out each request.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rekindle_kernel::Spawner;
use serde_json::Value;
use uuid::Uuid;

use super::holdings::{Holdings, KeptProcess};
use super::link::Letter;
use super::processes::{self, Ends};
use super::worker::Worker;
use crate::error::Refusal;
use crate::key::{FdName, Key};
use crate::wire::{Identified, PROTOCOL, Request, SentRole, Spawn, Started};

/// Longest time for killed children to end: the kernel takes their memory down first.
const CHILDREN_END_WITHIN: Duration = Duration::from_secs(20);

/// State that requests act on. Each is checked whole before it changes anything.
#[derive(Debug)]
pub(super) struct Desk {
    instance: Uuid,
    spawner: Spawner,
    holdings: Holdings,
    ends: Ends,
    /// Closes descriptors: the last one of a large memory file takes a tenth of a second a GiB.
    closer: Worker<Vec<OwnedFd>>,
}

/// Decision of the keeper to go on after a request, or to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    GoOn,
    End,
}

impl Desk {
    pub(super) fn new(spawner: Spawner, ends: Ends) -> Self {
        let closer = Worker::start("closer", || {}, drop);
        Self { instance: Uuid::now_v7(), spawner, ends, holdings: Holdings::default(), closer }
    }

    /// Does what a line asks, with the descriptors beside it, and says what to answer.
    pub(super) fn answer(&mut self, line: &[u8], fds: Vec<OwnedFd>) -> Result<(Letter<'_>, Next), Refusal> {
        let request = serde_json::from_slice(line);
        let request = request.map_err(|error| Refusal::Malformed { why: error.to_string() })?;
        let letter = match request {
            Request::Put { key, note, names } => self.put(key, note.as_ref(), names, fds)?,
            Request::Spawn { key, number, spawn, roles } => self.spawn(&key, number, &spawn, roles, fds)?,
            _ if !fds.is_empty() => {
                return Err(Refusal::Malformed { why: "this request takes no descriptors".to_owned() });
            }
            Request::Identify => {
                let (pid, instance) = (std::process::id(), self.instance);
                Letter::done(Identified { pid, instance, protocol: PROTOCOL })
            }
            Request::Get { key } => match self.holdings.get(&key) {
                Some((held, fds)) => Letter::done_with(held, fds),
                None => Letter::done(()),
            },
            Request::Forget { key } => {
                self.closer.hand(self.holdings.forget(&key));
                Letter::done(())
            }
            Request::List { after } => Letter::done(self.holdings.list(after.as_ref())),
            Request::Shutdown { force } => {
                if force {
                    self.end_children()?;
                } else {
                    self.may_end()?;
                }
                return Ok((Letter::done(()), Next::End));
            }
        };
        Ok((letter, Next::GoOn))
    }

    /// Descriptor that is readable once a child has ended.
    pub(super) fn ends(&self) -> BorrowedFd<'_> {
        self.ends.as_fd()
    }

    /// Notes which children have ended and how, and closes what was their memory: here and now, as the kernel may be
    /// about to end another one for want of it.
    pub(super) fn note_ends(&mut self) {
        while let Some((pid, status)) = self.ends.next() {
            drop(self.holdings.ended(pid, status));
        }
    }

    /// True if the keeper can end now without a loss.
    pub(super) fn may_end(&self) -> Result<(), Refusal> {
        match self.holdings.count() {
            (0, 0) => Ok(()),
            (keys, processes) => {
                let count = |count| u64::try_from(count).unwrap_or(u64::MAX);
                Err(Refusal::Holding { keys: count(keys), processes: count(processes) })
            }
        }
    }

    /// Kills every child and waits until all have ended.
    fn end_children(&mut self) -> Result<(), Refusal> {
        let deadline = Instant::now() + CHILDREN_END_WITHIN;
        self.holdings.running().for_each(processes::kill);
        loop {
            self.note_ends();
            let processes: Vec<u32> = self.holdings.running().collect();
            if processes.is_empty() {
                return Ok(());
            }
            if !self.ends.wait(deadline.saturating_duration_since(Instant::now())) {
                return Err(Refusal::NotEnded { processes });
            }
        }
    }

    fn put(
        &mut self,
        key: Key,
        note: Option<&Value>,
        names: Vec<FdName>,
        fds: Vec<OwnedFd>,
    ) -> Result<Letter<'static>, Refusal> {
        let addition = self.holdings.check(key, note, names, fds)?;
        self.closer.hand(self.holdings.put(addition));
        Ok(Letter::done(()))
    }

    fn spawn(
        &mut self,
        key: &Key,
        number: Uuid,
        spawn: &Spawn,
        roles: Vec<SentRole>,
        fds: Vec<OwnedFd>,
    ) -> Result<Letter<'_>, Refusal> {
        if self.holdings.may_start(key, number)?.is_none() {
            if roles.len() != fds.len() {
                let why = format!("{} descriptors came for {} roles", fds.len(), roles.len());
                return Err(Refusal::Malformed { why });
            }
            let (mut of_child, mut names, mut held) = (Vec::new(), Vec::new(), Vec::new());
            for (role, fd) in roles.into_iter().zip(fds) {
                match role {
                    SentRole::Child(at) => of_child.push((at, fd)),
                    SentRole::Held(name) => {
                        names.push(name);
                        held.push(fd);
                    }
                }
            }
            let addition = self.holdings.check(key.clone(), None, names, held)?;
            let child = processes::start(&self.spawner, &self.ends, spawn, of_child)?;
            let process = KeptProcess { number, pid: child.pid, pidfd: child.pidfd, exited: None };
            self.closer.hand(self.holdings.started(addition, process));
        }
        let process = self.holdings.may_start(key, number)?;
        let process = process.ok_or_else(|| Refusal::Unknown { key: key.as_str().to_owned() })?;
        Ok(Letter::done_with(Started { pid: process.pid }, vec![process.pidfd.as_fd()]))
    }
}
