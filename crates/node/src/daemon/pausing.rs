//! Pauses a sandbox into a snapshot.

use std::sync::Arc;
use std::time::Instant;

use rekindle_api::control::{Answer, Asked};
use rekindle_api::types::{PauseSandbox, Reference, Snapshot};
use rekindle_engine::catalog::Change;
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::snapshot::Snapshot as EngineSnapshot;
use rekindle_input::asker::Asker;

use super::about::About;
use super::entry::{PAUSING, Turn};
use super::events::About as EventAbout;
use super::idempotency::Made;
use super::known::Known;
use super::live::{Paused, Wanted};
use super::record::{RecordedLife, put};
use super::sandboxes::{Sandboxes, not_running};

impl Sandboxes {
    pub(super) fn pause(&self, reference: &Reference, asked: &Asked, how: PauseSandbox) -> Answer<Snapshot> {
        let mut chosen = self.requests.choose(asked, &("pause", reference, &how), 1)?;
        let id = SnapshotId::from(chosen.ids[0]);
        if let Some(snapshot) = self.host.engine.snapshot(id) {
            return Ok(Known::of(snapshot).show(self.host.origin.as_ref()));
        }
        chosen.refuse_if_gone(Made::Snapshot, &[id.uuid()])?;
        let entry = self.registry.find(reference)?;
        let name = self.snapshots.reserve(how.name.as_ref())?;
        let mut turn = entry.turn(PAUSING, self.host.settings().pause_wait, asked)?;
        asked.check()?;
        let making = chosen.making(&[id.uuid()]);
        let snapshot =
            self.pause_in_turn(&mut turn, id, how, (RecordedLife::Paused, making), &asked.asker)?;
        drop((turn, name));
        Ok(Known::of(snapshot).show(self.host.origin.as_ref()))
    }

    /// Pauses the guest of a turn: on success the turn has none any more.
    #[tracing::instrument(name = "pause", skip_all, fields(snapshot = %id))]
    pub(super) fn pause_in_turn(
        &self,
        turn: &mut Turn,
        id: SnapshotId,
        how: PauseSandbox,
        (paused, mut alongside): (RecordedLife, Vec<Change>),
        asker: &Asker,
    ) -> Answer<Arc<EngineSnapshot>> {
        let began = Instant::now();
        let mut record = turn.record();
        let Some(live) = turn.live.take() else { return Err(not_running(turn, "paused")) };
        let about = About {
            name: how.name,
            labels: how.labels,
            sandbox: Some(record.id),
            spec: Some(record.spec.clone()),
        };
        record.snapshot = Some(id.uuid());
        record.life = paused;
        alongside.push(put(&record));
        // It may be paused to be resumed elsewhere, so this is told and not refused.
        let absent = record.spec.absent_here(&self.host);
        let stays_paused = absent.map(|absent| format!("it cannot be resumed on this node: {absent}"));
        let wanted = Wanted { id, about, alongside, before: turn.record(), asker };
        match live.pause(&self.host, wanted) {
            Ok(Paused { snapshot, frozen, ending }) => {
                self.host.metrics.pause_answered(began.elapsed(), frozen);
                self.host.metrics.snapshot_answered(id);
                // Before it is shown as paused: what it had may be asked for from then on.
                self.host.endings.end(ending);
                turn.show(record.clone());
                self.let_go_of_images(record.id);
                self.events.say("sandbox.paused", EventAbout::both(record.id, id.uuid()), stays_paused);
                Ok(snapshot)
            }
            Err((live, problem)) => {
                turn.live = Some(live);
                Err(problem.sandbox(record.id))
            }
        }
    }
}
