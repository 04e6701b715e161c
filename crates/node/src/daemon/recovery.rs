//! A start: it puts together the catalog's and the keeper's knowledge. Acknowledged changes are found, half-done
//! changes are undone, and lost things are listed by name.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use anyhow::Context as _;
use rekindle_engine::catalog::{Change, Kind, WriteError};
use rekindle_engine::identity::SnapshotId;
use rekindle_kernel::ProcessHandle;
use rustix::io::Errno;
use uuid::Uuid;

use super::Daemon;
use super::entry::Entry;
use super::events::About;
use super::guests::with_files;
use super::keeping::{CATALOG, GuestNote, KeyOf, UnsettledChange, guest_key};
use super::lifecycle::put;
use super::live::Live;
use super::record::{RecordedGuest, RecordedLife, SandboxRecord};
use super::undecided::is_of_the_moment;
use super::unnamed::guest_of;
use crate::api::control::Asked;
use crate::api::types::ResumeSandbox;
use crate::keeper::{Found, HeldEntry};
use crate::metrics::Recovery;

impl Daemon {
    /// Puts sandboxes together again; snapshots the engine has put together by now.
    #[tracing::instrument(skip_all)]
    pub(super) fn recover(&self, found: Found, started: Instant) -> anyhow::Result<()> {
        let held: HashMap<String, HeldEntry> =
            self.host.keeping.client().list()?.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
        let mut recovery = Recovery::default();
        for (key, value) in self.catalog.all(Kind::Sandbox)? {
            let record = SandboxRecord::decode(&key, &value);
            let Some(record) = self.settled(record, &held)? else { continue };
            recovery.sandboxes += u64::from(self.recover_sandbox(record, &held)?);
        }
        let unreadable_sockets = self.recover_sockets(&held)?;
        recovery.until_served = started.elapsed();
        if !self.has_undecided_sandboxes() && self.fault_sockets.undecided().is_empty() {
            self.host.engine.end_replay();
        }
        self.let_go_of_the_rest(&held, &unreadable_sockets);
        // The next start does what this one cannot: nothing of it is needed now.
        if let Err(error) = self.remove_stale_sockets() {
            tracing::warn!(
                error = format!("{error:#}"),
                "sockets that nobody listens at stay until the next start"
            );
        }
        if let Err(error) = self.end_orphans(&held) {
            tracing::error!(
                error = format!("{error:#}"),
                "guests whose keeper is gone may be left over until the next start"
            );
        }
        self.resume_the_forked();
        self.let_go_of_all_images();
        recovery.snapshots = self.snapshots_found();
        self.host.metrics.recovered(&recovery);
        let keeper = match found {
            Found::Running => "the keeper was there",
            Found::Started => "a new keeper was started",
        };
        let detail = format!(
            "{keeper}; {} running sandboxes and {} snapshots were found again",
            recovery.sandboxes, recovery.snapshots
        );
        self.events.say("daemon.started", About::default(), Some(detail));
        Ok(())
    }

    /// The record of a sandbox as it was acknowledged last: a change of unknown outcome is taken back where the keeper has
    /// word of it. None if the sandbox never was.
    fn settled(
        &self,
        record: SandboxRecord,
        held: &HashMap<String, HeldEntry>,
    ) -> anyhow::Result<Option<SandboxRecord>> {
        if matches!(record.life, RecordedLife::Undecided { .. }) {
            return Ok(Some(record));
        }
        let notes = held.iter().filter(|(key, _)| matches!(KeyOf::parse(key), Some(KeyOf::Guest(_))));
        let is_there = |snapshot| self.host.engine.snapshot(SnapshotId::from(snapshot)).is_some();
        let mut changes = notes.filter_map(|(key, entry)| {
            let note: GuestNote = serde_json::from_value(entry.note.clone()).ok()?;
            let change = note.unsettled.filter(|change| change.is_in(&record, key, is_there))?;
            Some((key, change))
        });
        let Some((key, change)) = changes.next() else { return Ok(Some(record)) };
        drop(changes);
        let before = self.host.keeping.record_before(key, record.id)?;
        if before.is_none() && !matches!(change, UnsettledChange::Birth { is_new: true }) {
            tracing::error!(sandbox = %record.id, "the keeper does not hold its record from before that: it stays as it is");
            return Ok(Some(record));
        }
        tracing::warn!(sandbox = %record.id, "a change of it that was not acknowledged is taken back");
        let change = match &before {
            Some(before) => put(before),
            None => Change::Remove { kind: Kind::Sandbox, key: SandboxRecord::key(record.id) },
        };
        self.catalog.write_with_last_room(&[change]).map_err(WriteError::either_way)?;
        Ok(before)
    }

    /// Logs the lost snapshots, and returns the number of the others.
    fn snapshots_found(&self) -> u64 {
        let replay = self.host.engine.replayed();
        for lost in &replay.lost {
            self.host.metrics.snapshot_lost();
            let id = lost.id.uuid();
            let sandbox =
                self.host.engine.snapshot(lost.id).and_then(|lost| self.snapshots.changed(&lost).sandbox);
            self.events.say(
                "snapshot.lost",
                About { sandbox, snapshot: Some(id) },
                Some(lost.reason.clone()),
            );
        }
        u64::try_from(replay.captured + replay.sealed + replay.published).expect("they are in memory")
    }

    /// Takes one sandbox over; whether its guest runs.
    pub(super) fn recover_sandbox(
        &self,
        mut record: SandboxRecord,
        held: &HashMap<String, HeldEntry>,
    ) -> anyhow::Result<bool> {
        let RecordedLife::Running(guest) = &record.life else {
            self.sandboxes.insert(Entry::new(record, None));
            return Ok(false);
        };
        let (id, guest) = (record.id, guest.clone());
        match self.recover_guest(&record, &guest, held.get(&guest_key(guest.id))) {
            Ok(live) => {
                self.sandboxes.insert(Entry::new(record, Some(Box::new(live))));
                Ok(true)
            }
            Err(Gone::Unknown(reason)) => {
                tracing::error!(sandbox = %id, reason, "a sandbox is undecided; it is tried again");
                record.life = RecordedLife::Undecided { reason, guest: Some(guest.id) };
                self.sandboxes.insert(Entry::new(record, None));
                Ok(false)
            }
            Err(gone) => {
                let (kind, reason) = match &gone {
                    Gone::Ended(reason) => ("sandbox.stopped", reason),
                    Gone::Lost(reason) | Gone::Unknown(reason) => ("sandbox.lost", reason),
                };
                self.events.say(kind, About::sandbox(id), Some(reason.clone()));
                record.life = match gone {
                    Gone::Ended(reason) => RecordedLife::Stopped { reason: Some(reason) },
                    Gone::Lost(reason) | Gone::Unknown(reason) => RecordedLife::Lost { reason },
                };
                self.catalog.write_with_last_room(&[put(&record)]).map_err(WriteError::either_way)?;
                self.sandboxes.insert(Entry::new(record, None));
                self.host.endings.end_unborn(guest.id);
                Ok(false)
            }
        }
    }

    fn recover_guest(
        &self,
        record: &SandboxRecord,
        guest: &RecordedGuest,
        held: Option<&HeldEntry>,
    ) -> Result<Live, Gone> {
        let Some(entry) = held else {
            let pid = guest.vmm.pid();
            return Err(Gone::Lost(format!(
                "the keeper that held its guest (pid {pid}) is gone, and so is the guest"
            )));
        };
        if entry.process.and_then(|process| process.exited).is_some() {
            return Err(self.ended_without_us(guest, self.told_end(guest).as_deref()));
        }
        let note: GuestNote = serde_json::from_value(entry.note.clone()).unwrap_or_default();
        let mut live = self.take_over(record, guest).map_err(|error| self.gone(guest, &error))?;
        if !live.process().is_alive() {
            return Err(self.ended_without_us(guest, live.told_end().as_deref()));
        }
        // A pause that is not in the catalog did not come to pass: its guest, frozen or not, goes on.
        if note.pausing.is_some() {
            tracing::info!(sandbox = %record.id, "its pause was not answered when the last daemon ended: it goes on");
            if let Err(error) = live.go_on(&self.host) {
                let error = format!("{error:#}");
                tracing::error!(sandbox = %record.id, error, "its guest cannot go on yet; it is tried again");
            }
        }
        Ok(live)
    }

    /// The account that a guest's VMM gave of its end, if the keeper still holds it.
    fn told_end(&self, guest: &RecordedGuest) -> Option<String> {
        let mut held = self.host.keeping.client().get(&guest_key(guest.id)).ok()??;
        guest.vmm.told_end(&mut held)
    }

    fn ended_without_us(&self, guest: &RecordedGuest, told: Option<&str>) -> Gone {
        Gone::Ended(format!("{}, while no daemon ran", self.reason_of_end(guest.id, told)))
    }

    /// Reason that a guest could not be taken over.
    fn gone(&self, guest: &RecordedGuest, error: &anyhow::Error) -> Gone {
        let is_alive = may_live(guest.vmm.pid());
        if is_alive && is_of_the_moment(error) {
            return Gone::Unknown(format!("its guest cannot be taken over now: {error:#}"));
        }
        if is_alive {
            return Gone::Lost(format!("its guest could not be taken over: {error:#}"));
        }
        self.ended_without_us(guest, self.told_end(guest).as_deref())
    }

    fn take_over(&self, record: &SandboxRecord, guest: &RecordedGuest) -> anyhow::Result<Live> {
        let held = self.host.keeping.client().get(&guest_key(guest.id))?;
        let held = held.ok_or_else(|| anyhow::anyhow!("the keeper holds nothing of it any more"))?;
        Live::recover(&self.host, guest, held, &record.spec)
    }

    /// Ends guests that no record names, and lets go of what was held for them: they were being made, or being ended.
    fn let_go_of_the_rest(&self, held: &HashMap<String, HeldEntry>, unreadable_sockets: &BTreeSet<Uuid>) {
        let undecided_sockets = self.fault_sockets.undecided();
        let aside = self.host.keeping.aside().clone();
        let is_left = |id: &Uuid| {
            let is_undecided = unreadable_sockets.contains(id) || undecided_sockets.contains(id);
            is_undecided || aside.contains_key(&KeyOf::Socket(*id))
        };
        let named: BTreeSet<Uuid> =
            self.sandboxes.all().iter().filter_map(|entry| guest_of(&entry.record().life)).collect();
        // One whose daemon died before the keeper had anything of it has files at most.
        let mut begun = with_files(&self.host.state_directory).unwrap_or_else(|error| {
            tracing::warn!(%error, "files of guests that were being made may stay until the next start");
            BTreeSet::new()
        });
        for entry in held.values() {
            match KeyOf::parse(&entry.key) {
                Some(KeyOf::Guest(id)) => {
                    begun.insert(id);
                }
                Some(KeyOf::Socket(id)) if self.fault_sockets.find(id).is_err() && !is_left(&id) => {
                    self.forget(&entry.key);
                }
                // Those of snapshots the engine has gone through.
                Some(KeyOf::Socket(_) | KeyOf::Snapshot(_)) => {}
                None if entry.key == CATALOG || KeyOf::parse_aside(&entry.key).is_some() => {}
                None => {
                    tracing::warn!(key = entry.key, "the keeper holds something that is not of this daemon")
                }
            }
        }
        let is_unknown = |life: &RecordedLife| matches!(life, RecordedLife::Undecided { guest: None, .. });
        if self.sandboxes.all().iter().any(|entry| is_unknown(&entry.record().life)) {
            tracing::error!("a sandbox's record cannot be read, and any guest may be its own: none is ended");
            return;
        }
        let unnamed = begun.difference(&named).filter(|guest| !aside.contains_key(&KeyOf::Guest(**guest)));
        unnamed.for_each(|guest| self.host.endings.end_unborn(*guest));
    }

    /// Ends guests that a keeper left which is gone.
    fn end_orphans(&self, held: &HashMap<String, HeldEntry>) -> anyhow::Result<()> {
        let holds_guests = held.keys().any(|key| matches!(KeyOf::parse(key), Some(KeyOf::Guest(_))));
        if holds_guests {
            return Ok(());
        }
        let known = self.sandboxes.all().iter().filter_map(|entry| entry.show().pid).collect();
        Ok(super::orphans::end(self.host.keeping.socket(), &known)?)
    }

    /// Lets go of what was held for something that was not acknowledged.
    pub(super) fn forget(&self, key: &str) {
        if let Err(error) = self.host.keeping.client().forget(key) {
            tracing::warn!(key, %error, "the keeper holds something unacknowledged until the next start");
        }
    }

    /// Removes sockets at which the last daemon waited, or was about to wait, for a VMM, and that have no listener now.
    fn remove_stale_sockets(&self) -> anyhow::Result<()> {
        let unreadable = || format!("reading {}", self.host.run_directory.display());
        // The keeper has the listener of one that is not taken over yet.
        let undecided = self.fault_sockets.undecided();
        let undecided: BTreeSet<_> = undecided.into_iter().map(|id| self.fault_socket_path(id)).collect();
        for file in std::fs::read_dir(&self.host.run_directory).with_context(unreadable)? {
            let path = file.with_context(unreadable)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_ours =
                (name.starts_with("handover-") || name.starts_with("faults-")) && name.ends_with(".sock");
            let is_aside = self.host.keeping.aside().keys().any(|key| match key {
                KeyOf::Socket(id) => self.fault_socket_path(*id) == path,
                KeyOf::Guest(_) | KeyOf::Snapshot(_) => false,
            });
            let is_left = is_aside || undecided.contains(&path);
            if is_ours && !is_left && !self.fault_sockets.all().iter().any(|socket| socket.path == path) {
                std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// Sandboxes that were paused only to be forked run again.
    fn resume_the_forked(&self) {
        for entry in self.sandboxes.all() {
            if matches!(entry.record().life, RecordedLife::Forked)
                && let Err(error) =
                    self.resume(&entry.record().id.to_string(), &Asked::default(), &ResumeSandbox::default())
            {
                tracing::error!(sandbox = %entry.record().id, %error, "it was being forked, and stays paused");
            }
        }
    }
}

/// True if a guest's process may live. One that has ended keeps its pid until the keeper has reaped it.
fn may_live(pid: u32) -> bool {
    match ProcessHandle::open(pid) {
        Ok(process) => process.is_alive(),
        // Any other error, as of too few descriptors, says nothing of the process.
        Err(error) => error.raw_os_error().is_some_and(|code| code != Errno::SRCH.raw_os_error()),
    }
}

/// Reason that a guest is not there any more.
enum Gone {
    Ended(String),
    Lost(String),
    /// That cannot be said now.
    Unknown(String),
}
