//! Checkpoints a sandbox: a snapshot of it while it goes on.

use std::sync::Arc;
use std::time::Instant;

use rekindle_api::control::{Answer, Asked};
use rekindle_api::types::{CheckpointSandbox, PeriodicCheckpoints, Reference, Snapshot};
use rekindle_engine::catalog::Change;
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::snapshot::Snapshot as EngineSnapshot;
use rekindle_input::asker::Asker;

use super::about::About;
use super::entry::{CHECKPOINTING, Turn};
use super::events::About as EventAbout;
use super::idempotency::Made;
use super::known::Known;
use super::live::{Checkpointed, Wanted};
use super::record::{RecordedLife, put};
use super::references::Named as _;
use super::sandboxes::{Sandboxes, not_running};

impl Sandboxes {
    pub(super) fn checkpoint(
        &self,
        reference: &Reference,
        asked: &Asked,
        how: CheckpointSandbox,
    ) -> Answer<Snapshot> {
        let mut chosen = self.requests.choose(asked, &("checkpoint", reference, &how), 1)?;
        let id = SnapshotId::from(chosen.ids[0]);
        if let Some(snapshot) = self.host.engine.snapshot(id) {
            return Ok(Known::of(snapshot).show(self.host.origin.as_ref()));
        }
        chosen.refuse_if_gone(Made::Snapshot, &[id.uuid()])?;
        let entry = self.registry.find(reference)?;
        let name = self.snapshots.reserve(how.name.as_ref())?;
        let mut turn = entry.turn(CHECKPOINTING, self.host.settings().pause_wait, asked)?;
        asked.check()?;
        let making = chosen.making(&[id.uuid()]);
        let snapshot = self.checkpoint_in_turn(&mut turn, id, how, making, &asked.asker)?;
        drop((turn, name));
        self.let_go_of_images(entry.id());
        self.events.say("sandbox.checkpointed", EventAbout::both(entry.id(), id.uuid()), None);
        Ok(Known::of(snapshot).show(self.host.origin.as_ref()))
    }

    /// Checkpoints the guest of a turn, which goes on.
    #[tracing::instrument(name = "checkpoint", skip_all, fields(snapshot = %id))]
    pub(super) fn checkpoint_in_turn(
        &self,
        turn: &mut Turn,
        id: SnapshotId,
        how: CheckpointSandbox,
        mut alongside: Vec<Change>,
        asker: &Asker,
    ) -> Answer<Arc<EngineSnapshot>> {
        let (began, before) = (Instant::now(), turn.record());
        let Some(live) = &mut turn.live else { return Err(not_running(turn, "checkpointed")) };
        let mut record = before.clone();
        let about = About {
            name: how.name,
            labels: how.labels,
            sandbox: Some(record.id),
            spec: Some(record.spec.clone()),
        };
        record.snapshot = Some(id.uuid());
        record.checkpoints = PeriodicCheckpoints::after(record.checkpoints, how.checkpoints);
        record.life = RecordedLife::Running(live.recorded_after(id.uuid()));
        alongside.push(put(&record));
        let wanted = Wanted { id, about, alongside, before, asker };
        let Checkpointed { snapshot, frozen } =
            live.checkpoint(&self.host, wanted).map_err(|problem| problem.sandbox(record.id))?;
        self.host.metrics.checkpoint_answered(began.elapsed(), frozen);
        turn.show(record);
        Ok(snapshot)
    }
}
