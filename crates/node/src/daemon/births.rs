//! Starts guests, and makes them known: a guest that cannot be recorded is ended.

use std::sync::Arc;

use rekindle_api::control::Answer;
use rekindle_engine::catalog::{Change, Unsettled, WriteError};
use rekindle_vmm::last_words::last_words;
use uuid::Uuid;

use super::claims::{Birth, Claim};
use super::endings::Ending;
use super::entry::Entry;
use super::guest_files::log_name;
use super::how_ended::how_ended_by_itself;
use super::live::Live;
use super::notes::{GuestNote, UnsettledChange};
use super::problems::guest_failed;
use super::record::{SandboxRecord, put};
use super::room_promises::RoomPromise;
use super::sandboxes::Sandboxes;
use super::spec::GuestSpec;

impl Sandboxes {
    /// Starts a guest by `start`; if its keeper dies meanwhile, once more under the next one.
    pub(super) fn born(
        &self,
        spec: &GuestSpec,
        room: &RoomPromise,
        start: impl Fn(Birth<'_>) -> anyhow::Result<Live>,
    ) -> Answer<Box<Live>> {
        let born_once = || {
            let claim = Claim::make(&self.host, spec, room)?;
            self.born_once(Birth { id: Uuid::now_v7(), spec, claim }, &start)
        };
        let keeper = self.host.keeping.client().identity();
        born_once().or_else(|problem| {
            // It answers or not: that its process has ended shows a moment later.
            let is_there =
                self.host.keeping.client().silence().is_none() && self.host.keeping.find_again().is_ok();
            match is_there && self.host.keeping.client().identity() != keeper {
                true => born_once(),
                false => Err(problem),
            }
        })
    }

    /// Starts a guest; on failure, its parts made so far are ended. The error has the end of its VMM and its last
    /// output, whose log goes with it.
    fn born_once(
        &self,
        birth: Birth<'_>,
        start: impl Fn(Birth<'_>) -> anyhow::Result<Live>,
    ) -> Answer<Box<Live>> {
        let guest = birth.id;
        start(birth).map(Box::new).map_err(|error| {
            let mut problem = guest_failed(error);
            let status = self.host.keeping.how_ended(guest);
            if let Some(how) = status.and_then(how_ended_by_itself) {
                problem.detail = format!("{}; its VMM {how}", problem.detail);
            }
            let words = last_words(&self.host.run_directory.join(log_name(guest)));
            if !problem.detail.contains(&words) {
                problem.detail = format!("{}; its VMM said: {words}", problem.detail);
            }
            self.host.endings.end_unborn(guest);
            problem
        })
    }

    /// Makes a new sandbox known: from here on it is found again after a crash.
    pub(super) fn take_in(
        &self,
        record: SandboxRecord,
        live: Box<Live>,
        alongside: Vec<Change>,
    ) -> Answer<Arc<Entry>> {
        self.write_born(&record, &live, (None, alongside))?;
        let entry = Entry::new(record, Some(live));
        self.registry.insert(Arc::clone(&entry));
        self.watch_new_guests();
        Ok(entry)
    }

    /// Records a guest that was started, with what changes alongside, or ends it; `before` is the record of its sandbox as
    /// it was, if there was one.
    pub(super) fn write_born(
        &self,
        record: &SandboxRecord,
        live: &Live,
        (before, mut changes): (Option<SandboxRecord>, Vec<Change>),
    ) -> Answer<()> {
        changes.push(put(record));
        let reason = match self.catalog.write(&changes) {
            Ok(()) => return Ok(()),
            Err(WriteError::NotMade(reason)) => {
                self.host.endings.end_unborn(live.id);
                reason
            }
            Err(WriteError::Unknown(unsettled)) => {
                self.end_unsettled(live, before.as_ref(), unsettled.clone());
                unsettled.into_reason()
            }
        };
        Err(reason.into())
    }

    /// Ends a guest that the catalog may have as its sandbox's although it was not acknowledged.
    pub(super) fn end_unsettled(&self, live: &Live, before: Option<&SandboxRecord>, unsettled: Unsettled) {
        let birth = UnsettledChange::Birth { is_new: before.is_none() };
        let note = GuestNote { pausing: None, unsettled: Some(birth) };
        if let Err(error) = self.host.keeping.note_unsettled(live.id, &note, before) {
            let (guest, error) = (live.id, format!("{error:#}"));
            tracing::error!(%guest, error, "a guest that was ended may be found recorded at the next start");
        }
        self.host.endings.end(Ending::Unsettled { guest: live.id, unsettled });
    }
}
