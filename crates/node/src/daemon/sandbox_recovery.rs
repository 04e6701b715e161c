//! Takes over the sandboxes that an earlier daemon left. A change that was not acknowledged is undone; a guest that
//! cannot be found is lost or undecided.

use std::collections::HashMap;
use std::sync::Arc;

use rekindle_api::control::Asked;
use rekindle_api::types::ResumeSandbox;
use rekindle_engine::catalog::{Change, Kind, WriteError};
use rekindle_engine::identity::SnapshotId;
use rekindle_keeper::HeldEntry;
use rekindle_kernel::ProcessHandle;
use rustix::io::Errno;

use super::entry::Entry;
use super::events::About;
use super::keys::{KeyOf, guest_key};
use super::live::Live;
use super::moment::is_of_the_moment;
use super::notes::{GuestNote, UnsettledChange};
use super::record::{RecordedGuest, RecordedLife, SandboxRecord, put};
use super::sandboxes::Sandboxes;

impl Sandboxes {
    /// Takes all of them over, of whose guests the keeper holds `held`; the number whose guests run.
    pub(super) fn recover(&self, held: &HashMap<String, HeldEntry>) -> anyhow::Result<u64> {
        let mut running = 0;
        for (key, value) in self.catalog.all(Kind::Sandbox)? {
            let record = SandboxRecord::decode(&key, &value);
            let Some(record) = self.settled(record, held)? else { continue };
            running += u64::from(self.recover_sandbox(record, held)?);
        }
        Ok(running)
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

    /// Takes one sandbox over; whether its guest runs.
    pub(super) fn recover_sandbox(
        &self,
        record: SandboxRecord,
        held: &HashMap<String, HeldEntry>,
    ) -> anyhow::Result<bool> {
        let mut record = record.in_domain(&self.host.engine.domain(None)?);
        let RecordedLife::Running(guest) = &record.life else {
            self.registry.insert(Entry::new(record, None));
            return Ok(false);
        };
        let (id, guest) = (record.id, guest.clone());
        match self.recover_guest(&record, &guest, held.get(&guest_key(guest.id))) {
            Ok(live) => {
                self.registry.insert(Entry::new(record, Some(Box::new(live))));
                Ok(true)
            }
            Err(Gone::Unknown(reason)) => {
                tracing::error!(sandbox = %id, reason, "a sandbox is undecided; it is tried again");
                record.life = RecordedLife::Undecided { reason, guest: Some(guest.id) };
                self.registry.insert(Entry::new(record, None));
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
                self.registry.insert(Entry::new(record, None));
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

    /// Sandboxes that were paused only to be forked run again.
    pub(super) fn resume_the_forked(&self) {
        for entry in self.registry.all() {
            if matches!(entry.record().life, RecordedLife::Forked)
                && let Err(error) =
                    self.resume(&entry.record().id.into(), &Asked::default(), &ResumeSandbox::default())
            {
                tracing::error!(sandbox = %entry.record().id, %error, "it was being forked, and stays paused");
            }
        }
    }

    /// Tries once more to take over those that are undecided; the number that are left.
    pub(super) fn decide(&self) -> usize {
        let mut left = 0;
        for entry in self.registry.all() {
            let record = entry.record();
            if !matches!(record.life, RecordedLife::Undecided { .. }) {
                continue;
            }
            left += 1;
            match self.decide_sandbox(&record) {
                Ok(true) => left -= 1,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(sandbox = %record.id, error = format!("{error:#}"), "an undecided sandbox is tried again later");
                }
            }
        }
        left
    }

    /// True if a sandbox is undecided: it may run from a snapshot that was deleted.
    pub(super) fn has_undecided(&self) -> bool {
        let is_undecided = |entry: &Arc<Entry>| matches!(entry.record().life, RecordedLife::Undecided { .. });
        self.registry.all().iter().any(is_undecided)
    }

    /// True if it is decided by now, or gone.
    fn decide_sandbox(&self, undecided: &SandboxRecord) -> anyhow::Result<bool> {
        let Some(entry) = self.registry.get(undecided.id) else { return Ok(true) };
        // Its removal has to wait for this turn.
        let Ok(turn) = entry.turn_at_once("is being looked at") else { return Ok(false) };
        let key = SandboxRecord::key(undecided.id);
        let Some(value) = self.catalog.get(Kind::Sandbox, &key)? else { return Ok(true) };
        let record = SandboxRecord::decode(&key, &value);
        if matches!(record.life, RecordedLife::Undecided { .. }) {
            return Ok(false);
        }
        let held =
            self.host.keeping.client().list()?.into_iter().map(|held| (held.key.clone(), held)).collect();
        // Takes the place of the undecided one, which cannot be found any more.
        self.recover_sandbox(record, &held)?;
        let now = self.registry.get(undecided.id).map(|entry| entry.record().life);
        let is_decided = !matches!(now, Some(RecordedLife::Undecided { .. }));
        if is_decided {
            turn.remove();
            self.events.say(
                "sandbox.running",
                About::sandbox(undecided.id),
                Some("it was undecided".to_owned()),
            );
        }
        Ok(is_decided)
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
