//! The keeper's holdings: descriptors, a note and perhaps a process under each key.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::SealFlags;
use serde_json::Value;
use uuid::Uuid;

use crate::PROCESS;
use crate::error::Refusal;
use crate::key::{FdName, Key};
use crate::wire::{FDS_PER_KEY_MAX, HeldNow, KEYS_MAX, LIST_BYTES, Listed, NOTE_BYTES_MAX, ProcessNow};

/// Everything that is held, and which processes have not ended.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    entries: BTreeMap<Key, Entry>,
    /// The children of the keeper by process id, each with its key until that is forgotten.
    running: BTreeMap<u32, Option<Key>>,
}

#[derive(Debug, Default)]
struct Entry {
    /// JSON, checked when it came.
    note: Option<String>,
    fds: BTreeMap<FdName, OwnedFd>,
    process: Option<KeptProcess>,
}

/// A child that was started for a key.
#[derive(Debug)]
pub(super) struct KeptProcess {
    pub(super) number: Uuid,
    pub(super) pid: u32,
    pub(super) pidfd: OwnedFd,
    pub(super) exited: Option<i32>,
}

/// Things to be added under a key. It was checked to be possible.
#[derive(Debug)]
pub(super) struct Addition {
    key: Key,
    note: Option<String>,
    fds: Vec<(FdName, OwnedFd)>,
}

impl Holdings {
    /// Checks that `fds` by `names`, and the note if there is one, can be held under the key. Changes nothing.
    pub(super) fn check(
        &self,
        key: Key,
        note: Option<&Value>,
        names: Vec<FdName>,
        fds: Vec<OwnedFd>,
    ) -> Result<Addition, Refusal> {
        if names.len() != fds.len() {
            let why = format!("{} descriptors came for {} names", fds.len(), names.len());
            return Err(Refusal::Malformed { why });
        }
        let different: BTreeSet<&FdName> = names.iter().collect();
        if different.len() < names.len() || names.iter().any(|name| name.as_str() == PROCESS) {
            let why = format!("descriptors have different names, none of them '{PROCESS}'");
            return Err(Refusal::Malformed { why });
        }
        let entry = self.entries.get(&key);
        if entry.is_none() && self.entries.len() >= KEYS_MAX {
            return Err(too_much("keys held", KEYS_MAX));
        }
        let others = entry.iter().flat_map(|entry| entry.fds.keys());
        let others = others.filter(|name| !different.contains(name)).count();
        if others + names.len() > FDS_PER_KEY_MAX {
            return Err(too_much("descriptors under a key", FDS_PER_KEY_MAX));
        }
        let note = note.map(Value::to_string);
        if note.as_ref().is_some_and(|note| note.len() > NOTE_BYTES_MAX) {
            return Err(too_much("bytes of a note", NOTE_BYTES_MAX));
        }
        Ok(Addition { key, note, fds: names.into_iter().zip(fds).collect() })
    }

    /// Holds what was checked; the descriptors that were held by these names come back, to be closed.
    pub(super) fn put(&mut self, addition: Addition) -> Vec<OwnedFd> {
        let Addition { key, note, fds } = addition;
        let entry = self.entries.entry(key).or_default();
        if note.is_some() {
            entry.note = note;
        }
        fds.into_iter().filter_map(|(name, fd)| entry.fds.insert(name, fd)).collect()
    }

    /// Tells if a process may be started under the key now; `Some` is the one that the same request started before.
    pub(super) fn may_start(&self, key: &Key, number: Uuid) -> Result<Option<&KeptProcess>, Refusal> {
        match self.entries.get(key).and_then(|entry| entry.process.as_ref()) {
            Some(process) if process.number == number => Ok(Some(process)),
            Some(KeptProcess { pid, exited: None, .. }) => {
                Err(Refusal::ProcessThere { key: key.as_str().to_owned(), pid: *pid })
            }
            Some(_) | None if self.running.len() >= KEYS_MAX => Err(too_much("processes", KEYS_MAX)),
            Some(_) | None => Ok(None),
        }
    }

    /// Holds a child that was just started, in place of one that has ended.
    pub(super) fn started(&mut self, addition: Addition, process: KeptProcess) -> Vec<OwnedFd> {
        let key = addition.key.clone();
        let mut replaced = self.put(addition);
        self.running.insert(process.pid, Some(key.clone()));
        let before = self.entries.get_mut(&key).and_then(|entry| entry.process.replace(process));
        replaced.extend(before.map(|before| before.pidfd));
        replaced
    }

    /// Notes that a child has ended and how. The memory files held under its key come back, to be closed: they were its
    /// memory, of no use to anybody without it. All else under the key stays.
    pub(super) fn ended(&mut self, pid: u32, status: i32) -> Vec<OwnedFd> {
        let key = self.running.remove(&pid).flatten();
        let entry = key.and_then(|key| self.entries.get_mut(&key));
        let Some(entry) = entry.filter(|entry| entry.process.as_ref().is_some_and(|one| one.pid == pid))
        else {
            return Vec::new();
        };
        if let Some(process) = &mut entry.process {
            process.exited = Some(status);
        }
        entry.fds.extract_if(.., |_, fd| is_memory_file(fd)).map(|(_, fd)| fd).collect()
    }

    /// The holdings under the key, its descriptors in the order of the names.
    pub(super) fn get(&self, key: &Key) -> Option<(HeldNow, Vec<BorrowedFd<'_>>)> {
        let entry = self.entries.get(key)?;
        let process = entry.process.iter().map(|process| process.pidfd.as_fd());
        let fds = entry.fds.values().map(|fd| fd.as_fd()).chain(process).collect();
        Some((entry.now(key), fds))
    }

    /// Forgets the key; its descriptors come back, to be closed.
    pub(super) fn forget(&mut self, key: &Key) -> Vec<OwnedFd> {
        let Some(entry) = self.entries.remove(key) else { return Vec::new() };
        if let Some(KeptProcess { pid, exited: None, .. }) = entry.process {
            self.running.insert(pid, None);
        }
        entry.fds.into_values().chain(entry.process.map(|process| process.pidfd)).collect()
    }

    /// The holdings under the keys after `after`, as much as one answer takes.
    pub(super) fn list(&self, after: Option<&Key>) -> Listed {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for (key, entry) in self.entries.range::<Key, _>((from, Bound::Unbounded)) {
            if bytes > LIST_BYTES {
                return Listed { entries, more: true };
            }
            bytes += entry.bytes_told();
            entries.push(entry.now(key));
        }
        Listed { entries, more: false }
    }

    /// The children that have not been noted as ended.
    pub(super) fn running(&self) -> impl Iterator<Item = u32> {
        self.running.keys().copied()
    }

    /// Number of keys with more than a note, and of processes that have not ended.
    pub(super) fn count(&self) -> (usize, usize) {
        let is_held = |entry: &&Entry| !entry.fds.is_empty() || entry.process.is_some();
        (self.entries.values().filter(is_held).count(), self.running.len())
    }
}

impl Entry {
    fn now(&self, key: &Key) -> HeldNow {
        let note = self.note.as_deref().and_then(|note| serde_json::from_str(note).ok());
        let process = self.process.as_ref();
        let of_process = process.map(|_| PROCESS.to_owned());
        HeldNow {
            key: key.as_str().to_owned(),
            note: note.unwrap_or(Value::Null),
            names: self.fds.keys().map(|name| name.as_str().to_owned()).chain(of_process).collect(),
            process: process.map(|process| ProcessNow { pid: process.pid, exited: process.exited }),
        }
    }

    /// More bytes than it takes to tell of it.
    fn bytes_told(&self) -> usize {
        let names: usize = self.fds.keys().map(|name| name.as_str().len() + 3).sum();
        self.note.as_ref().map_or(4, String::len) + names + 300
    }
}

/// True if a descriptor is of memory that a process can have as its own: no file system has a name for it, as only such
/// files have seals (fcntl(2)), and it can be written.
fn is_memory_file(fd: &OwnedFd) -> bool {
    rustix::fs::fcntl_get_seals(fd).is_ok_and(|seals| !seals.contains(SealFlags::WRITE))
}

pub(super) fn too_much(what: &str, max: usize) -> Refusal {
    Refusal::TooMuch { what: what.to_owned(), max: u64::try_from(max).unwrap_or(u64::MAX) }
}
