//! Brings the guest of a sandbox back from a snapshot.

use rekindle_api::control::{Answer, Asked};
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::{self, PeriodicCheckpoints, Reference, ResumeSandbox, Sandbox, Which};
use rekindle_engine::learning::Prefault;
use uuid::Uuid;

use super::entry::{Entry, Turn};
use super::events::About as EventAbout;
use super::known::{Known, can_be_gone_on_from};
use super::live::Live;
use super::network::{Network, WantedNetwork};
use super::record::{RecordedLife, SandboxRecord};
use super::references::Named as _;
use super::room_promises::{Needed, RoomPromise};
use super::sandboxes::Sandboxes;
use super::spec::GuestSpec;

impl Sandboxes {
    pub(super) fn resume(
        &self,
        reference: &Reference,
        asked: &Asked,
        how: &ResumeSandbox,
    ) -> Answer<Sandbox> {
        let entry = self.registry.find(reference)?;
        let mut turn = entry.turn("is being used", self.host.settings().pause_wait, asked)?;
        self.resume_in_turn(&mut turn, asked, how)?;
        drop(turn);
        Ok(entry.show())
    }

    /// Resumes the sandbox of a turn, whose guest has ended, from its last snapshot.
    fn resume_in_turn(&self, turn: &mut Turn, asked: &Asked, how: &ResumeSandbox) -> Answer<()> {
        let record = turn.record();
        let snapshot = resumed_from(turn.entry(), &record, how)?;
        let known = self.snapshots.readable(&snapshot.into());
        let known = known.or_else(|problem| self.last_that_is_whole(&record, problem))?;
        self.check_networks(&[network_of(&record, how)?])?;
        let room = self.room.promise(&Needed::by(&record.spec))?;
        self.go_on_from((&known, &room), turn, asked, how)
    }

    /// The newest snapshot of a sandbox whose guest has ended that can be gone on from, where its last one is gone for
    /// `problem`. One that was paused goes on from its pause or not at all.
    fn last_that_is_whole(&self, record: &SandboxRecord, problem: Problem) -> Answer<Known> {
        let is_gone = matches!(problem.code, Code::NotFound | Code::Lost);
        if !is_gone || record.life.is_paused() {
            return Err(problem);
        }
        let all = self.snapshots.all().into_iter();
        let whole = all.filter(|known| known.about.sandbox == Some(record.id) && can_be_gone_on_from(known));
        whole.max_by_key(|known| known.id()).ok_or(problem)
    }

    /// The same, where there is room for it and `known` is the snapshot.
    pub(super) fn go_on_from(
        &self,
        (known, room): (&Known, &RoomPromise),
        turn: &mut Turn,
        asked: &Asked,
        how: &ResumeSandbox,
    ) -> Answer<()> {
        let mut record = turn.record();
        let network = network_of(&record, how)?;
        let (live, spec) = self.bring_back((known, room), asked, how, network)?;
        let instead = record.snapshot.filter(|last| *last != known.id());
        let instead = instead.map(|last| format!("its last snapshot {last} is gone"));
        record.spec = spec;
        record.snapshot = Some(known.id());
        record.checkpoints = PeriodicCheckpoints::after(record.checkpoints, how.checkpoints);
        record.life = RecordedLife::Running(live.recorded());
        self.write_born(&record, &live, (Some(turn.record()), Vec::new()))?;
        turn.live = Some(live);
        turn.show(record.clone());
        self.watch_new_guests();
        self.events.say("sandbox.resumed", EventAbout::both(record.id, known.id()), instead);
        Ok(())
    }

    /// A guest on a snapshot's memory and device state, and what it is made of.
    #[tracing::instrument(name = "resume", skip_all, fields(snapshot = %known.id()))]
    pub(super) fn bring_back(
        &self,
        (known, room): (&Known, &RoomPromise),
        asked: &Asked,
        how: &ResumeSandbox,
        network: Network,
    ) -> Answer<(Box<Live>, GuestSpec)> {
        let Some(mut spec) = known.about.spec.clone() else {
            let why = format!(
                "{} is of a VMM that rekindle did not start: open a fault socket for it",
                known.called()
            );
            return Err(Problem::new(Code::WrongState, why).snapshot(known.snapshot.id()));
        };
        spec.attach_to(network);
        self.snapshots.wait_to_serve(known, asked, how.serve_before_seal)?;
        asked.check()?;
        let _first = self.host.engine.precedence().bring_up();
        let prefault = how.prefault.map_or_else(|| self.host.settings().prefault, prefault_of);
        let mode = self.memory_mode(how.memory_mode, known, 1)?;
        let live = self
            .born(&spec, room, |birth| Live::resume(&self.host, birth, (&known.snapshot, prefault), mode))?;
        Ok((live, spec))
    }
}

/// The pages to bring ahead of a guest, in the engine's words.
const fn prefault_of(asked: types::Prefault) -> Prefault {
    match asked {
        types::Prefault::None => Prefault::Nothing,
        types::Prefault::WorkingSet => Prefault::WorkingSet,
        types::Prefault::All => Prefault::All,
    }
}

/// The snapshot that a sandbox goes on from.
fn resumed_from(entry: &Entry, record: &SandboxRecord, how: &ResumeSandbox) -> Answer<Uuid> {
    let (called, shown, reference) = (entry.called(), entry.show().state, entry.reference());
    let refused = |why: String| Err(Problem::new(Code::WrongState, why).sandbox(record.id));
    match (&record.life, record.snapshot) {
        (RecordedLife::Running(_), _) => refused(format!(
            "{called} is {shown}: there is nothing to resume. `rekindle fork {reference}` makes another one like it"
        )),
        (RecordedLife::Paused | RecordedLife::Forked | RecordedLife::Drained { .. }, Some(snapshot)) => {
            Ok(snapshot)
        }
        (RecordedLife::Stopped { .. } | RecordedLife::Lost { .. }, Some(snapshot)) => {
            // One that takes checkpoints in a period does so to be gone on from there.
            if how.from_last_snapshot || record.checkpoints.is_some() {
                return Ok(snapshot);
            }
            let problem = refused(format!(
                "{called} is {shown}: what its guest did since its last snapshot is gone. `rekindle resume {reference} \
                 --from-last-snapshot` goes on from snapshot {snapshot}"
            ));
            problem.map_err(|problem: Problem| problem.snapshot(snapshot.into()))
        }
        (RecordedLife::Undecided { reason, .. }, _) => {
            refused(format!("{called} is {shown}, and is tried again: {reason}"))
        }
        (_, None) => refused(format!(
            "{called} is {shown} and was never paused: it has no snapshot to go on from. `rekindle delete {reference}` \
             removes it"
        )),
    }
}

/// The network of a sandbox that is resumed.
fn network_of(record: &SandboxRecord, how: &ResumeSandbox) -> Answer<Network> {
    let wanted = WantedNetwork { taps: how.taps.as_deref(), netns: how.netns.as_ref() };
    let network = record.spec.wanted_network(wanted, Which { index: 1, name: record.name.as_ref() });
    network.map_err(|problem| problem.sandbox(record.id))
}
