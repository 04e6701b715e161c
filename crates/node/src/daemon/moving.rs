//! Moves a sandbox: it is paused here, and goes on at another node from that snapshot.
//!
//! At every step it runs here, or there, or is paused here: it goes on here only if the other node surely does not run it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rekindle_api::control::{Answer, Asked};
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::{
    Labels, MoveSandbox, MovedSandbox, NameOfSeveral, PauseSandbox, Reference, ResumeSandbox, ResumeSnapshot,
};
use rekindle_engine::catalog::{Change, Kind, WriteError};
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::origin::Origin;
use rekindle_engine::peer::{Peer, PeerError};
use rekindle_peer::{PeerClients, TakeError, Taken, Taking};
use uuid::Uuid;

use super::entry::{MOVING, Turn};
use super::events::About;
use super::idempotency::{Chosen, Made};
use super::known::Known;
use super::problems::guest_failed;
use super::record::{RecordedLife, SandboxRecord, put};
use super::references::Named as _;
use super::room_promises::{Needed, RoomPromise};
use super::sandboxes::{Sandboxes, not_running};

/// Times that a node which gave no answer is asked.
const ASKED_AT_MOST: u32 = 3;
/// Time before it is asked again.
const ASKED_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A sandbox that does not run at the other node, as far as that is known.
pub(super) enum NotTaken {
    /// It surely does not: the node refused it.
    Refused(String),
    /// It surely does not: the node could not be asked.
    NotAsked(String),
    /// It may: there was no answer.
    Perhaps(String),
}

/// A paused sandbox that is to go on elsewhere.
struct Paused {
    snapshot: Known,
    /// The means to let it go on, if it was paused for this.
    ran: Option<Ran>,
    /// The life that it had, if it was paused before.
    before: Option<RecordedLife>,
}

/// A sandbox that ran until it was paused for its move.
struct Ran {
    began: Instant,
    /// Its room here.
    room: RoomPromise,
    /// The warm connection to the other node.
    _connection: Arc<dyn Peer>,
}

impl Sandboxes {
    /// Moves a sandbox that runs, or that is paused.
    #[tracing::instrument(name = "move", skip_all, fields(to = how.to))]
    pub(super) fn move_to(
        &self,
        reference: &Reference,
        asked: &Asked,
        how: &MoveSandbox,
    ) -> Answer<MovedSandbox> {
        let mut chosen = self.requests.choose(asked, &("move", reference, how), 2)?;
        let [snapshot, there] = chosen.ids[..] else { unreachable!("two were chosen") };
        if chosen.has_made(there) {
            return Ok(MovedSandbox {
                sandbox: there,
                node: how.to.clone(),
                snapshot,
                stopped_seconds: None,
            });
        }
        let entry = self.registry.find(reference)?;
        let mut turn = entry.turn(MOVING, self.host.settings().pause_wait, asked)?;
        asked.check()?;
        let record = turn.record();
        let (peers, origin) = (self.peers_to_move_to()?, self.origin()?);
        let paused = self.paused_to_move(&mut turn, (peers, &how.to), asked, &mut chosen)?;
        let taking = question(&record, paused.snapshot.snapshot.id(), origin);
        match self.ask_to_take(peers, &how.to, &taking) {
            Ok(there) => {
                let stopped = paused.ran.map(|ran| ran.began.elapsed().as_secs_f64());
                let (snapshot, node) = (paused.snapshot.id(), how.to.clone());
                self.gone_to(turn, (snapshot, &node), chosen.making_elsewhere(&[snapshot, there]))?;
                Ok(MovedSandbox { sandbox: there, node, snapshot, stopped_seconds: stopped })
            }
            Err(NotTaken::Refused(reason) | NotTaken::NotAsked(reason)) => {
                let problem = self.go_on_here(&mut turn, &paused, &reason);
                if turn.live.is_some() {
                    chosen.forget();
                }
                Err(problem.sandbox(record.id).snapshot(paused.snapshot.snapshot.id()))
            }
            Err(NotTaken::Perhaps(reason)) => Err(unknown(&turn, &paused.snapshot, (&how.to, &reason))),
        }
    }

    /// The snapshot that the sandbox of a turn goes on from elsewhere; one that runs is paused for it.
    fn paused_to_move(
        &self,
        turn: &mut Turn,
        (peers, to): (&PeerClients, &str),
        asked: &Asked,
        chosen: &mut Chosen<'_>,
    ) -> Answer<Paused> {
        let (record, id) = (turn.record(), SnapshotId::from(chosen.ids[0]));
        if let (None, true, Some(snapshot)) = (&turn.live, record.life.is_paused(), record.snapshot) {
            let snapshot = self.snapshots.readable(&snapshot.into())?;
            // Nothing but a request may resume it as long as the other node may run it.
            if !matches!(record.life, RecordedLife::Paused) {
                self.set_paused(turn, RecordedLife::Paused)?;
            }
            return Ok(Paused { snapshot, ran: None, before: Some(record.life) });
        }
        if turn.live.is_none() {
            return Err(not_running(turn, "moved"));
        }
        chosen.refuse_if_gone(Made::Snapshot, &[id.uuid()])?;
        self.check_can_go_on(turn)?;
        // Before the pause, as most of what can fail does so here.
        let reached = self.host.engine.wait_for(peers.reach(to));
        let connection = reached.map_err(|error| of_peer(&error).sandbox(record.id))?;
        let room = self.room.promise(&Needed::to_go_on(&record.spec))?;
        let (began, making) = (Instant::now(), chosen.making(&[id.uuid()]));
        let paused = (RecordedLife::Paused, making);
        let snapshot = self.pause_in_turn(turn, id, PauseSandbox::default(), paused, &asked.asker)?;
        let ran = Some(Ran { began, room, _connection: connection });
        Ok(Paused { snapshot: Known::of(snapshot), ran, before: None })
    }

    /// Records why the sandbox of a turn is paused.
    pub(super) fn set_paused(&self, turn: &Turn, life: RecordedLife) -> Answer<()> {
        let mut record = turn.record();
        record.life = life;
        self.catalog.write_with_last_room(&[put(&record)]).map_err(WriteError::either_way)?;
        turn.show(record);
        Ok(())
    }

    /// Goes on with a sandbox of another node. An error if it may run here all the same.
    pub(super) fn take(&self, taking: &Taking) -> Result<Taken, String> {
        match self.go_on_with(taking) {
            Ok(sandbox) => Ok(Taken::Runs(sandbox)),
            // It may have been recorded, or it ran here before.
            Err(Problem {
                code: Code::DiskFailed | Code::Gone | Code::IdempotencyMismatch, detail, ..
            }) => Err(detail),
            Err(problem) => Ok(Taken::Refused(problem.detail)),
        }
    }

    fn go_on_with(&self, taking: &Taking) -> Answer<Uuid> {
        let Taking { snapshot, sandbox, origin, name, labels } = taking;
        let invalid = |why: String| Problem::new(Code::InvalidRequest, why);
        let name = name.clone().map(NameOfSeveral::try_from).transpose();
        let labels = Labels::try_from(labels.clone()).map_err(|error| invalid(error.to_string()))?;
        let from = self.host.engine.peer_named(origin).map_err(|error| of_peer(&error))?;
        let how = ResumeSnapshot {
            name: name.map_err(|error| invalid(error.to_string()))?,
            labels,
            serve_before_seal: Some(true),
            from: Some(from),
            ..ResumeSnapshot::default()
        };
        let asked = Asked { key: Some(format!("move-{sandbox}-{snapshot}")), ..Asked::default() };
        let mut chosen = self.requests.choose(&asked, &("take", sandbox, snapshot.uuid()), 1)?;
        let made = self.resume_chosen(&mut chosen, &snapshot.uuid().into(), &asked, &how)?;
        Ok(made.sandboxes.first().expect("one was asked for").id)
    }

    /// Asks a node until it has answered, a few times.
    pub(super) fn ask_to_take(
        &self,
        peers: &PeerClients,
        node: &str,
        taking: &Taking,
    ) -> Result<Uuid, NotTaken> {
        let asked = async {
            let mut unanswered = None;
            for _ in 0..ASKED_AT_MOST {
                if unanswered.is_some() {
                    tokio::time::sleep(ASKED_AGAIN_AFTER).await;
                }
                let reason = match peers.take(node, taking).await {
                    Ok(Taken::Runs(sandbox)) => return Ok(sandbox),
                    // After a question without an answer this one says nothing: that one may come yet.
                    Ok(Taken::Refused(reason)) if unanswered.is_none() => {
                        return Err(NotTaken::Refused(format!("node {node} does not take it: {reason}")));
                    }
                    Err(TakeError::NotAsked(error)) if unanswered.is_none() => {
                        return Err(NotTaken::NotAsked(error.to_string()));
                    }
                    Ok(Taken::Refused(reason)) => reason,
                    Err(error) => error.to_string(),
                };
                unanswered.get_or_insert(reason);
            }
            Err(NotTaken::Perhaps(unanswered.unwrap_or_default()))
        };
        self.host.engine.wait_for(asked)
    }

    /// Forgets the sandbox, which runs elsewhere.
    pub(super) fn gone_to(
        &self,
        turn: Turn,
        (snapshot, node): (Uuid, &str),
        mut alongside: Vec<Change>,
    ) -> Answer<()> {
        let id = turn.entry().id();
        alongside.push(Change::Remove { kind: Kind::Sandbox, key: SandboxRecord::key(id) });
        let written = self.catalog.write_with_last_room(&alongside).map_err(WriteError::either_way);
        written.map_err(|error| {
            let problem = Problem::from(error);
            let detail = format!(
                "{} runs at node {node} now, and is still listed here as paused: {}; `rekindle move` again",
                turn.entry().called(),
                problem.detail
            );
            Problem { detail, ..problem }.sandbox(id)
        })?;
        self.registry.remove(id);
        turn.remove();
        self.let_go_of_images(id);
        self.events.say("sandbox.moved", About::both(id, snapshot), Some(format!("to node {node}")));
        Ok(())
    }

    /// Lets a sandbox go on here that was paused for its move; the problem says if it does.
    fn go_on_here(&self, turn: &mut Turn, paused: &Paused, reason: &str) -> Problem {
        let (called, reference) = (turn.entry().called(), turn.entry().reference());
        let here = paused.snapshot.called();
        let Some(Ran { room, .. }) = &paused.ran else {
            let why = format!("{called} is not moved and stays paused here, in {here}: {reason}");
            let again = paused.before.clone().map_or(Ok(()), |before| self.set_paused(turn, before));
            return again.err().unwrap_or_else(|| Problem::new(Code::PeerFailed, why));
        };
        let at_once = ResumeSandbox { serve_before_seal: Some(true), ..ResumeSandbox::default() };
        match self.go_on_from((&paused.snapshot, room), turn, &Asked::default(), &at_once) {
            Ok(()) => {
                Problem::new(Code::PeerFailed, format!("{called} is not moved and runs on here: {reason}"))
            }
            Err(problem) => {
                let why = format!(
                    "{called} is not moved and stays paused here, in {here}: {reason}; it cannot go on now: {}; `rekindle \
                     resume {reference}` tries again",
                    problem.detail
                );
                Problem { detail: why, ..problem }
            }
        }
    }

    /// Refuses a move of a sandbox that could not go on here if the other node does not take it.
    fn check_can_go_on(&self, turn: &Turn) -> Answer<()> {
        let saved = turn.live.as_ref().and_then(|live| live.saved_spec());
        let spec = saved.unwrap_or_else(|| turn.record().spec);
        spec.check_here(&self.host).map_err(|error| {
            let (called, problem) = (turn.entry().called(), guest_failed(error));
            let detail = format!(
                "{called} runs on: it could not go on here if the other node does not take it: {}",
                problem.detail
            );
            Problem { detail, ..problem }.sandbox(turn.entry().id())
        })
    }

    pub(super) fn peers_to_move_to(&self) -> Answer<&PeerClients> {
        let why = "this node asks no others: set peers.certificate, peers.key and peers.authority";
        self.host.peers.as_deref().ok_or_else(|| Problem::new(Code::WrongState, why))
    }

    /// This node, which the other one reads from.
    pub(super) fn origin(&self) -> Answer<Origin> {
        let why = "no other node can read from this one: set peers.listen, with a port";
        self.host.origin.clone().ok_or_else(|| Problem::new(Code::WrongState, why))
    }
}

/// The question to take a sandbox that is paused in a snapshot.
pub(super) fn question(record: &SandboxRecord, snapshot: SnapshotId, origin: Origin) -> Taking {
    let name = record.name.as_ref().map(ToString::to_string);
    Taking { snapshot, sandbox: record.id, origin, name, labels: record.labels.clone().into() }
}

pub(super) fn of_peer(error: &PeerError) -> Problem {
    let code = match error {
        PeerError::Unconfigured { .. } => Code::NotFound,
        PeerError::Away { .. }
        | PeerError::Untrusted { .. }
        | PeerError::Version { .. }
        | PeerError::Unknown { .. }
        | PeerError::Refused { .. }
        | PeerError::NotUnderstood { .. }
        | PeerError::Wrong { .. } => Code::PeerFailed,
    };
    Problem::new(code, error.to_string())
}

/// The problem of a sandbox that the other node may run.
pub(super) fn unknown(turn: &Turn, known: &Known, (node, reason): (&str, &str)) -> Problem {
    let (called, reference) = (turn.entry().called(), turn.entry().reference());
    let why = format!(
        "{called} is paused here, in {}, and node {node} has not said if it runs there: {reason}. `rekindle move \
         {reference} --to {node}` asks again and starts no second one; `rekindle resume {reference}` lets it go on here, if \
         it does not run there",
        known.called()
    );
    Problem::new(Code::PeerFailed, why).sandbox(turn.entry().id()).snapshot(known.snapshot.id())
}
