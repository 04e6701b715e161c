//! The keeper as the daemon uses it: its keys, and the descriptors and notes under them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use rekindle_engine::change::CatalogListener;
use rekindle_engine::identity::{SnapshotId, VolumeName};
use rekindle_engine::keep::{Keeper, KeptVolume};
use rekindle_keeper::{Found, Held, KeeperClient, KeeperError, KeeperIdentity};
use rekindle_kernel::{Memfd, PageKind, ProcessHandle};
use uuid::Uuid;

use super::keys::{CATALOG, KeyOf, guest_key};
use super::notes::{CatalogState, GuestNote};
use super::record::SandboxRecord;

/// The names of a volume's descriptors end so.
const MEMORY: &str = ".memory";
const SETS: &str = ".sets";
/// The name of the record before an unsettled change.
const BEFORE: &str = "before";
/// The note on a snapshot whose pause was taken back.
const TAKEN_BACK: &str = "taken-back";

/// Number of times that the keeper is asked how a process ended, and the pause between two questions.
const END_QUESTIONS: u32 = 50;
const END_QUESTION_PAUSE: Duration = Duration::from_millis(10);

/// The keeper of this daemon, whichever it is by now.
#[derive(Debug)]
pub(super) struct Keeping {
    socket: PathBuf,
    program: PathBuf,
    client: RwLock<Arc<KeeperClient>>,
    /// The keeper's process, where it could be looked at.
    process: Mutex<Option<Arc<ProcessHandle>>>,
    /// The keeper that was given each snapshot's memory, until it is told to forget that.
    snapshots: Mutex<BTreeMap<SnapshotId, KeeperIdentity>>,
    /// Things at the keeper that were set aside, each with its time.
    aside: Mutex<BTreeMap<KeyOf, u64>>,
    /// State of the catalog, for the keeper to know.
    catalog: Mutex<CatalogWord>,
}

/// The catalog's state for the keeper, and the one it was told.
#[derive(Debug, Default)]
struct CatalogWord {
    now: Option<CatalogState>,
    told: Option<CatalogState>,
    /// The last try to tell it failed: the thread that looks at the keeper tries again.
    is_deaf: bool,
}

impl Keeping {
    /// Finds the keeper, or starts one.
    pub(super) fn find(socket: PathBuf, program: PathBuf) -> Result<(Self, Found), KeeperError> {
        let (client, found) = KeeperClient::connect_or_start(&socket, &program)?;
        let process = Mutex::new(process_of(&client));
        let this = Self {
            socket,
            program,
            client: RwLock::new(Arc::new(client)),
            process,
            snapshots: Mutex::default(),
            aside: Mutex::default(),
            catalog: Mutex::default(),
        };
        Ok((this, found))
    }

    /// The keeper.
    pub(super) fn client(&self) -> Arc<KeeperClient> {
        Arc::clone(&self.client.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Path of the keeper's socket.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The program that keepers and guests are.
    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    /// True if the keeper that was found is still there; if not, another one, which holds nothing yet, is there now.
    pub(super) fn find_again(&self) -> Result<bool, KeeperError> {
        let known = self.client().identity();
        let (client, _) = KeeperClient::connect_or_start(&self.socket, &self.program)?;
        let is_same = client.identity() == known;
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = process_of(&client);
        if !is_same {
            tracing::error!("the keeper died; another one is there and is given everything again");
            *self.client.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(client);
            self.aside().clear();
            let mut word = self.catalog_word();
            (word.told, word.is_deaf) = (None, true);
        }
        Ok(is_same)
    }

    /// Things at the keeper that were set aside, each with its time in milliseconds of the Unix epoch.
    pub(super) fn aside(&self) -> MutexGuard<'_, BTreeMap<KeyOf, u64>> {
        self.aside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the keeper how far the catalog has come, and from now on each time that it comes further.
    pub(super) fn begin_to_tell(&self, state: CatalogState) -> Result<(), KeeperError> {
        self.catalog_word().now = Some(state);
        self.tell_catalog()
    }

    /// Tells the keeper once more how far the catalog has come, where it could not be told.
    pub(super) fn tell_again(&self) -> Result<(), KeeperError> {
        if !self.catalog_word().is_deaf {
            return Ok(());
        }
        self.tell_catalog()?;
        self.catalog_word().is_deaf = false;
        Ok(())
    }

    /// Tells the keeper until it knows what is so now: two that tell it may overtake each other.
    fn tell_catalog(&self) -> Result<(), KeeperError> {
        loop {
            let CatalogWord { now, told, .. } = *self.catalog_word();
            let Some(now) = now.filter(|now| told != Some(*now)) else { return Ok(()) };
            self.client().note(CATALOG, &serde_json::to_value(now).expect("it is plain data"))?;
            self.catalog_word().told = Some(now);
        }
    }

    fn catalog_word(&self) -> MutexGuard<'_, CatalogWord> {
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the keeper of a change that the catalog may have although it was not acknowledged, with the record before
    /// it. Until the catalog has taken it back, the next start does it by these.
    pub(super) fn note_unsettled(
        &self,
        guest: Uuid,
        note: &GuestNote,
        before: Option<&SandboxRecord>,
    ) -> anyhow::Result<()> {
        let before = before.map(|before| file_of(&before.encode())).transpose()?;
        let fds: Vec<_> = before.iter().map(|before| (BEFORE, before.as_fd())).collect();
        let note = serde_json::to_value(note).expect("a note is plain data");
        Ok(self.client().put(&guest_key(guest), &note, &fds)?)
    }

    /// The record before an unsettled change that is noted under `key`, where there was one.
    pub(super) fn record_before(&self, key: &str, sandbox: Uuid) -> anyhow::Result<Option<SandboxRecord>> {
        let held = self.client().get(key)?;
        let Some(before) = held.and_then(|mut held| held.fds.remove(BEFORE)) else { return Ok(None) };
        let file = File::from(before);
        let mut bytes = vec![0; usize::try_from(file.metadata()?.len())?];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(Some(SandboxRecord::decode(&SandboxRecord::key(sandbox), &bytes)))
    }

    /// Exit status of a guest's process that has ended; none if the keeper is not its parent, or cannot be asked.
    pub(super) fn how_ended(&self, guest: Uuid) -> Option<i32> {
        // The keeper takes note of an end at about the time at which everybody else sees it.
        for _ in 0..END_QUESTIONS {
            let exited = self.client().get(&guest_key(guest)).ok()??.process?.exited;
            if exited.is_some() {
                return exited;
            }
            std::thread::park_timeout(END_QUESTION_PAUSE);
        }
        None
    }

    /// The obstacle to the keeper's answers, as far as it shows without asking.
    pub(super) fn trouble(&self) -> Option<String> {
        let Some(process) = self.process().filter(|process| process.is_alive()) else {
            return Some("the keeper has ended, and there is no other one yet".to_owned());
        };
        let stopped = || {
            let is_stopped = process.is_stopped().unwrap_or(false);
            is_stopped.then(|| KeeperError::Silent { pid: process.pid(), is_stopped })
        };
        self.client().silence().or_else(stopped).map(|error| error.to_string())
    }

    /// True if the keeper's process has not ended.
    pub(super) fn is_there(&self) -> bool {
        self.process().is_some_and(|process| process.is_alive())
    }

    /// The keeper's process.
    pub(super) fn process(&self) -> Option<Arc<ProcessHandle>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The snapshots whose memory was given to a keeper that is gone by now.
    pub(super) fn snapshots_elsewhere(&self) -> BTreeSet<SnapshotId> {
        let here = self.client().identity();
        self.snapshots().iter().filter(|(_, keeper)| **keeper != here).map(|(id, _)| *id).collect()
    }

    fn snapshots(&self) -> MutexGuard<'_, BTreeMap<SnapshotId, KeeperIdentity>> {
        self.snapshots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of what was held for something that was not acknowledged.
    pub(super) fn let_go(&self, key: &str) {
        if let Err(error) = self.client().forget(key) {
            tracing::warn!(key, %error, "the keeper holds something unacknowledged until the next start");
        }
    }

    /// Tells the keeper what a guest is about to become.
    pub(super) fn note(&self, guest: Uuid, note: &GuestNote) -> Result<(), KeeperError> {
        let note = serde_json::to_value(note).expect("a note is plain data");
        self.client().note(&guest_key(guest), &note)
    }
}

/// A memory file with these bytes for good. The keeper closes files that can be written when their guest ends.
fn file_of(bytes: &[u8]) -> io::Result<Memfd> {
    let size = u64::try_from(bytes.len()).map_err(io::Error::other)?;
    let file = Memfd::create("rekindle-record", size, PageKind::Small)?;
    file.write_at(bytes, 0)?;
    file.seal_writes()?;
    Ok(file)
}

/// The process of a keeper that has just answered, if it has not ended since.
fn process_of(client: &KeeperClient) -> Option<Arc<ProcessHandle>> {
    ProcessHandle::open(client.identity().pid).ok().map(Arc::new)
}

impl CatalogListener for Keeping {
    fn made(&self, transactions: u64) {
        let mut word = self.catalog_word();
        if let Some(now) = &mut word.now {
            now.transactions = transactions;
        }
        let is_deaf = word.is_deaf;
        drop(word);
        if is_deaf {
            return;
        }
        if let Err(error) = self.tell_catalog() {
            tracing::warn!(%error, "the keeper was not told yet how far the catalog has come");
            self.catalog_word().is_deaf = true;
        }
    }
}

/// Takes the descriptor called `name` out of what is held.
pub(super) fn take_fd(held: &mut Held, name: &str) -> io::Result<OwnedFd> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("the keeper holds no {name}"));
    held.fds.remove(name).ok_or_else(missing)
}

impl Keeper for Keeping {
    fn process(&self) -> Option<u32> {
        Some(self.client().identity().pid)
    }

    fn keep(&self, snapshot: SnapshotId, volumes: &[KeptVolume]) -> io::Result<()> {
        let names: Vec<_> = volumes
            .iter()
            .map(|volume| {
                let name = volume.name.as_str();
                (format!("{name}{MEMORY}"), format!("{name}{SETS}"))
            })
            .collect();
        let mut fds = Vec::with_capacity(2 * volumes.len());
        for (volume, (memory, sets)) in volumes.iter().zip(&names) {
            fds.push((memory.as_str(), volume.memory.as_fd()));
            fds.push((sets.as_str(), volume.sets.as_fd()));
        }
        let (key, keeper) = (KeyOf::Snapshot(snapshot.uuid()).key(), self.client());
        keeper.put(&key, &serde_json::Value::Null, &fds).map_err(io::Error::other)?;
        self.snapshots().insert(snapshot, keeper.identity());
        Ok(())
    }

    fn take_back(&self, snapshot: SnapshotId) -> io::Result<()> {
        self.snapshots().remove(&snapshot);
        let (key, keeper) = (KeyOf::Snapshot(snapshot.uuid()).key(), self.client());
        // A file in the place of its memory, which is not needed any more. If that cannot be opened, the memory stays.
        let nothing = File::open("/dev/null").ok();
        let named = nothing.as_ref().and_then(|nothing| Some((nothing, keeper.get(&key).ok()??.fds)));
        let fds: Vec<_> = named
            .iter()
            .flat_map(|(nothing, fds)| fds.keys().map(|name| (name.as_str(), nothing.as_fd())))
            .collect();
        keeper.put(&key, &serde_json::Value::from(TAKEN_BACK), &fds).map_err(io::Error::other)
    }

    fn kept(&self, snapshot: SnapshotId) -> io::Result<Option<Vec<KeptVolume>>> {
        let keeper = self.client();
        let held = keeper.get(&KeyOf::Snapshot(snapshot.uuid()).key()).map_err(io::Error::other)?;
        match held {
            Some(held) if held.note == TAKEN_BACK => Ok(Some(Vec::new())),
            None => Ok(None),
            Some(held) => {
                self.snapshots().insert(snapshot, keeper.identity());
                volumes_of(held.fds).map(Some)
            }
        }
    }

    fn forget(&self, snapshot: SnapshotId) -> io::Result<()> {
        self.snapshots().remove(&snapshot);
        self.client().forget(&KeyOf::Snapshot(snapshot.uuid()).key()).map_err(io::Error::other)
    }

    fn held(&self) -> io::Result<Vec<SnapshotId>> {
        let entries = self.client().list().map_err(io::Error::other)?;
        let snapshot = |entry: &rekindle_keeper::HeldEntry| match KeyOf::parse(&entry.key) {
            Some(key @ KeyOf::Snapshot(id)) if !self.aside().contains_key(&key) => Some(SnapshotId::from(id)),
            Some(KeyOf::Guest(_) | KeyOf::Socket(_) | KeyOf::Snapshot(_)) | None => None,
        };
        Ok(entries.iter().filter_map(snapshot).collect())
    }
}

fn volumes_of(mut fds: BTreeMap<String, OwnedFd>) -> io::Result<Vec<KeptVolume>> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let names: Vec<_> = fds.keys().filter_map(|name| Some(name.strip_suffix(MEMORY)?.to_owned())).collect();
    names
        .into_iter()
        .map(|name| {
            let memory = fds.remove(&format!("{name}{MEMORY}")).expect("its name was just read");
            let sets = fds
                .remove(&format!("{name}{SETS}"))
                .ok_or_else(|| invalid(format!("the keeper holds volume {name} without its page sets")))?;
            let name = VolumeName::from_str(&name).map_err(|error| invalid(error.to_string()))?;
            Ok(KeptVolume { name, memory, sets })
        })
        .collect()
}
