//! A keeper as its clients see it: a call for each request, over one connection that is made again when it breaks.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

use super::error::{KeeperError, Refusal, nobody_listens};
use super::exchange::{
    IDENTIFY, KeeperIdentity, exchange, has_come, identified, invalid, is_broken, is_late, refused,
};
use super::key::{FdName, Key};
use super::start::{self, Found};
use super::wire::{Answer, FDS_PER_KEY_MAX, HeldNow, Listed, ProcessNow, Request, SentRole, Spawn, Started};

/// Longest time for an answer of the keeper, with the answers to those who asked before. It does nothing that waits.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// The same of starting a program, which is read from a disk.
const SPAWN_LIMIT: Duration = Duration::from_secs(30);

/// Number of times that a connection that was reset is made again before the keeper counts as gone.
const RESETS_MAX: usize = 16;

/// A keeper, for any number of threads. Calls are made one after the other; one that fails changed nothing there,
/// unless it says that the keeper did not answer: then it may have been done, and is safe to make again.
#[derive(Debug)]
pub struct KeeperClient {
    socket: PathBuf,
    identity: KeeperIdentity,
    connection: Mutex<Connection>,
    /// A call has ended.
    ended: Condvar,
}

/// The connection to the keeper.
#[derive(Debug)]
enum Connection {
    /// No call has it; none before a connection is made.
    Idle(Option<UnixStream>),
    /// A call has it: the keeper does one request at a time, so who waits here would wait there.
    InUse,
    /// The keeper owes an answer that has no waiter any more. Until it comes, the keeper is asked nothing.
    Unanswered(UnixStream),
}

/// The right to ask the keeper; the next call has it when this is dropped.
struct Call<'a> {
    client: &'a KeeperClient,
    left: Connection,
}

/// The holdings under a key.
#[derive(Debug)]
pub struct Held {
    /// The note; null where none was given.
    pub note: Value,
    /// The descriptors by name; a process's pidfd is [`super::PROCESS`].
    pub fds: BTreeMap<String, OwnedFd>,
    /// The process under the key, if one was started.
    pub process: Option<ProcessNow>,
}

/// The holdings under a key, described without the descriptors.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldEntry {
    /// The key.
    pub key: String,
    /// The note; null where none was given.
    pub note: Value,
    /// The names of the descriptors.
    pub names: Vec<String>,
    /// The process under the key, if one was started.
    pub process: Option<ProcessNow>,
}

/// Use of a descriptor given to a new process. The same one may be given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role<'a> {
    /// The process has it open under this number: 0, 1, 2, or 3 to 31.
    Child(i32),
    /// The keeper holds it under the key by this name from the start of the process on.
    Held(&'a str),
}

/// A process that the keeper started.
#[derive(Debug)]
pub struct Spawned {
    /// Its process id.
    pub pid: u32,
    /// Its pidfd.
    pub process: OwnedFd,
}

impl KeeperClient {
    /// The keeper at `socket`; if none listens there, `program` is started as one, which outlives this process.
    pub fn connect_or_start(socket: &Path, program: &Path) -> Result<(Self, Found), KeeperError> {
        // A child that a killed keeper had just forked has its socket until it runs its own program.
        for _ in 0..RESETS_MAX {
            match Self::connect_or_start_once(socket, program) {
                Err(KeeperError::Unreachable { source, .. })
                    if source.kind() == io::ErrorKind::ConnectionReset => {}
                found => return found,
            }
        }
        Self::connect_or_start_once(socket, program)
    }

    fn connect_or_start_once(socket: &Path, program: &Path) -> Result<(Self, Found), KeeperError> {
        match Self::connect(socket) {
            Err(KeeperError::Unreachable { source, .. }) if nobody_listens(&source) => {
                let found = start::start(socket, program)?;
                Ok((Self::connect(socket)?, found))
            }
            connected => Ok((connected?, Found::Running)),
        }
    }

    /// The keeper at `socket`.
    pub fn connect(socket: &Path) -> Result<Self, KeeperError> {
        let (stream, identity) = identified(socket, Instant::now() + ANSWER_LIMIT)?;
        let connection = Mutex::new(Connection::Idle(Some(stream)));
        Ok(Self { socket: socket.to_owned(), identity, connection, ended: Condvar::new() })
    }

    /// That the keeper owes an answer since a call gave up waiting, if it does. Nothing is waited for.
    pub fn silence(&self) -> Option<KeeperError> {
        let is_silent = match &*self.connection() {
            Connection::Unanswered(stream) => !has_come(stream),
            Connection::Idle(_) | Connection::InUse => false,
        };
        is_silent.then(|| self.silent())
    }

    /// Path of the keeper's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The keeper that this client is for; calls fail once another one answers.
    pub fn identity(&self) -> KeeperIdentity {
        self.identity
    }

    /// Holds `fds` under the key by their names, in place of those that had these names, and the note in place of the
    /// one before. Other descriptors under the key stay.
    pub fn put(&self, key: &str, note: &Value, fds: &[(&str, BorrowedFd<'_>)]) -> Result<(), KeeperError> {
        self.put_with("hold", key, Some(note.clone()), fds)
    }

    /// Holds `fds` under the key as [`Self::put`] does; the note stays as it is.
    pub fn add(&self, key: &str, fds: &[(&str, BorrowedFd<'_>)]) -> Result<(), KeeperError> {
        self.put_with("hold more", key, None, fds)
    }

    /// Changes the note under the key.
    pub fn note(&self, key: &str, note: &Value) -> Result<(), KeeperError> {
        self.put_with("note", key, Some(note.clone()), &[])
    }

    /// The holdings under the key, with duplicates of the descriptors; `None` for an empty key.
    pub fn get(&self, key: &str) -> Result<Option<Held>, KeeperError> {
        let request = Request::Get { key: checked("get", key)? };
        let (held, fds): (Option<HeldNow>, _) = self.ask("get", &request, &[])?;
        let Some(HeldNow { note, names, process, .. }) = held else { return Ok(None) };
        if names.len() != fds.len() {
            return Err(self.unreachable(invalid("an answer had other descriptors than it said")));
        }
        Ok(Some(Held { note, fds: names.into_iter().zip(fds).collect(), process }))
    }

    /// Holds nothing under the key any more. A process under it goes on, and is still reaped at its end.
    pub fn forget(&self, key: &str) -> Result<(), KeeperError> {
        let request = Request::Forget { key: checked("forget", key)? };
        self.ask("forget", &request, &[]).map(|((), _)| ())
    }

    /// Everything that is held, in the order of keys. A key that others change meanwhile is told as before or after.
    pub fn list(&self) -> Result<Vec<HeldEntry>, KeeperError> {
        let mut all: Vec<HeldEntry> = Vec::new();
        loop {
            let after = all.last().map(|entry| checked("list", &entry.key)).transpose()?;
            let (part, _): (Listed, _) = self.ask("list", &Request::List { after }, &[])?;
            let part_is_empty = part.entries.is_empty();
            all.extend(part.entries.into_iter().map(HeldEntry::from));
            if !part.more || part_is_empty {
                return Ok(all);
            }
        }
    }

    /// Starts a process under the key as a child of the keeper, in a session of its own, and holds its pidfd. Fails
    /// where a process was started under the key before.
    pub fn spawn(
        &self,
        key: &str,
        spawn: &Spawn,
        fds: &[(Role<'_>, BorrowedFd<'_>)],
    ) -> Result<Spawned, KeeperError> {
        let role = |role: Role<'_>| match role {
            Role::Child(number) => Ok(SentRole::Child(number)),
            Role::Held(name) => checked_name("spawn", name).map(SentRole::Held),
        };
        let roles = fds.iter().map(|(of, _)| role(*of)).collect::<Result<_, _>>()?;
        let (key, number) = (checked("spawn", key)?, Uuid::now_v7());
        let request = Request::Spawn { key, number, spawn: spawn.clone(), roles };
        let fds: Vec<_> = fds.iter().map(|(_, fd)| *fd).collect();
        let (started, fds): (Started, _) = self.ask("spawn", &request, &fds)?;
        let process = fds.into_iter().next();
        let process = process.ok_or_else(|| self.unreachable(invalid("a process came without its pidfd")))?;
        Ok(Spawned { pid: started.pid, process })
    }

    /// Ends the keeper; it refuses while it holds anything, unless `force`d: then it kills the processes under it first,
    /// and refuses only while one of them has not ended.
    pub fn shutdown(&self, force: bool) -> Result<(), KeeperError> {
        self.ask("end", &Request::Shutdown { force }, &[]).map(|((), _)| ())
    }

    fn put_with(
        &self,
        doing: &'static str,
        key: &str,
        note: Option<Value>,
        fds: &[(&str, BorrowedFd<'_>)],
    ) -> Result<(), KeeperError> {
        if fds.len() > FDS_PER_KEY_MAX {
            let what = "descriptors under a key".to_owned();
            let max = u64::try_from(FDS_PER_KEY_MAX).expect("128");
            return Err(refused(doing, Refusal::TooMuch { what, max }));
        }
        let names = fds.iter().map(|(name, _)| checked_name(doing, name)).collect::<Result<_, _>>()?;
        let request = Request::Put { key: checked(doing, key)?, note, names };
        let fds: Vec<_> = fds.iter().map(|(_, fd)| *fd).collect();
        self.ask(doing, &request, &fds).map(|((), _)| ())
    }

    /// Asks once, or twice if the connection turns out to be broken: every request may be made again.
    fn ask<T: DeserializeOwned>(
        &self,
        doing: &'static str,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(T, Vec<OwnedFd>), KeeperError> {
        let mut line = serde_json::to_vec(request)
            .map_err(|source| KeeperError::Unsendable { request: doing, source })?;
        line.push(b'\n');
        let mut deadline = Instant::now() + ANSWER_LIMIT;
        let mut call = self.call(deadline)?;
        if matches!(request, Request::Spawn { .. }) {
            // One that answers at all is waited for longer.
            call.ask(IDENTIFY, &[], deadline)?;
            deadline = Instant::now() + SPAWN_LIMIT;
        }
        let (answer, fds) = call.ask(&line, fds, deadline)?;
        drop(call);
        match serde_json::from_slice(&answer).map_err(|error| self.unreachable(invalid(error)))? {
            Answer::Done(done) => Ok((done, fds)),
            Answer::Refused(refusal) => Err(refused(doing, refusal)),
        }
    }

    /// Waits for the calls before this one, until `deadline`. If the keeper owes an answer, it fails at once.
    fn call(&self, deadline: Instant) -> Result<Call<'_>, KeeperError> {
        let mut connection = self.connection();
        loop {
            match std::mem::replace(&mut *connection, Connection::InUse) {
                Connection::Idle(stream) => return Ok(Call { client: self, left: Connection::Idle(stream) }),
                Connection::Unanswered(stream) if has_come(&stream) => {
                    return Ok(Call { client: self, left: Connection::Idle(None) });
                }
                silent @ Connection::Unanswered(_) => {
                    *connection = silent;
                    break;
                }
                Connection::InUse => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    let waited = self.ended.wait_timeout(connection, left);
                    connection = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
        drop(connection);
        Err(self.silent())
    }

    fn connect_again(&self, deadline: Instant) -> Result<UnixStream, KeeperError> {
        let (stream, now) = identified(&self.socket, deadline)?;
        if now.instance == self.identity.instance {
            return Ok(stream);
        }
        let (before, now) = (self.identity.instance, now.instance);
        Err(KeeperError::Replaced { socket: self.socket.clone(), before, now })
    }

    /// The cell is right after a panic too: a call that panicked has put back what it left.
    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn silent(&self) -> KeeperError {
        KeeperError::silent(self.identity.pid)
    }

    fn unreachable(&self, source: io::Error) -> KeeperError {
        KeeperError::Unreachable { socket: self.socket.clone(), source }
    }
}

impl Call<'_> {
    fn ask(
        &mut self,
        line: &[u8],
        fds: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(Vec<u8>, Vec<OwnedFd>), KeeperError> {
        let left = std::mem::replace(&mut self.left, Connection::Idle(None));
        if let Connection::Idle(Some(stream)) = left {
            let answered = exchange(&stream, line, fds, deadline);
            if !matches!(&answered, Err(error) if is_broken(error)) {
                return self.end(stream, answered);
            }
        }
        let stream = self.client.connect_again(deadline)?;
        let answered = exchange(&stream, line, fds, deadline);
        self.end(stream, answered)
    }

    /// Leaves the connection to the next call as an exchange over it did.
    fn end<T>(&mut self, stream: UnixStream, answered: io::Result<T>) -> Result<T, KeeperError> {
        match answered {
            Ok(answer) => {
                self.left = Connection::Idle(Some(stream));
                Ok(answer)
            }
            Err(error) if is_late(&error) => {
                self.left = Connection::Unanswered(stream);
                Err(self.client.silent())
            }
            Err(error) => Err(self.client.unreachable(error)),
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        *self.client.connection() = std::mem::replace(&mut self.left, Connection::Idle(None));
        self.client.ended.notify_all();
    }
}

impl From<HeldNow> for HeldEntry {
    fn from(now: HeldNow) -> Self {
        let HeldNow { key, note, names, process } = now;
        Self { key, note, names, process }
    }
}

fn checked(doing: &'static str, key: &str) -> Result<Key, KeeperError> {
    Key::try_from(key.to_owned()).map_err(|refusal| refused(doing, refusal))
}

fn checked_name(doing: &'static str, name: &str) -> Result<FdName, KeeperError> {
    FdName::try_from(name.to_owned()).map_err(|refusal| refused(doing, refusal))
}
