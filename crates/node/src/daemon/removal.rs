//! Ends a sandbox's guest, and removes a sandbox.

use std::sync::Arc;
use std::time::Duration;

use rekindle_api::control::{Answer, Asked};
use rekindle_api::types::{Reference, Sandbox};
use rekindle_engine::catalog::{Change, Kind, WriteError};
use uuid::Uuid;

use super::entry::{Entry, Turn};
use super::events::About as EventAbout;
use super::record::{RecordedLife, SandboxRecord, put};
use super::references::Named as _;
use super::sandboxes::Sandboxes;

/// Longest time until an operation sees that its guest was killed: more than any wait for an answer.
const BUSY_END_LIMIT: Duration = Duration::from_secs(600);

impl Sandboxes {
    pub(super) fn stop(&self, reference: &Reference, asked: &Asked) -> Answer<Sandbox> {
        let entry = self.registry.find(reference)?;
        let stopped = |mut record: SandboxRecord| {
            let is_running = matches!(record.life, RecordedLife::Running(_));
            record.life = RecordedLife::Stopped { reason: None };
            is_running.then_some(record)
        };
        let mut turn =
            self.turn_to_end(&entry, asked, |record| stopped(record).map(|record| put(&record)))?;
        if let Some(record) = stopped(turn.record()) {
            if let Some(live) = turn.live.take() {
                self.host.endings.end(live.end());
            }
            turn.show(record.clone());
            self.let_go_of_images(record.id);
            self.events.say("sandbox.stopped", EventAbout::sandbox(record.id), None);
        }
        drop(turn);
        Ok(entry.show())
    }

    pub(super) fn remove(&self, reference: &Reference, asked: &Asked) -> Answer<Uuid> {
        let entry = self.registry.find(reference)?;
        let id = entry.id();
        let removal = || Change::Remove { kind: Kind::Sandbox, key: SandboxRecord::key(id) };
        let mut turn = self.turn_to_end(&entry, asked, |_| Some(removal()))?;
        if let Some(live) = turn.live.take() {
            self.host.endings.end(live.end());
        }
        if let RecordedLife::Undecided { guest: Some(guest), .. } = turn.record().life {
            self.host.endings.end_unborn(guest);
        }
        self.registry.remove(id);
        turn.remove();
        self.let_go_of_images(id);
        self.events.say("sandbox.removed", EventAbout::sandbox(id), None);
        Ok(id)
    }

    /// The turn in which a sandbox's guest is ended, once that is written down: where it cannot be, nothing has happened.
    /// An operation that waits for an answer of the guest is not waited for, as it writes nothing.
    fn turn_to_end(
        &self,
        entry: &Arc<Entry>,
        asked: &Asked,
        change: impl Fn(SandboxRecord) -> Option<Change>,
    ) -> Answer<Turn> {
        let write = |record: SandboxRecord| {
            let write = |change| self.catalog.write_with_last_room(&[change]).map_err(WriteError::either_way);
            change(record).map_or(Ok(()), write)
        };
        if let Some(ending) = entry.end_of_busy() {
            write(entry.record())?;
            return ending.kill(BUSY_END_LIMIT);
        }
        let turn = entry.turn_to_end(self.host.settings().pause_wait, asked)?;
        write(turn.record())?;
        Ok(turn)
    }
}
