//! Operations on sandboxes: create, pause, resume, fork, stop, remove.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rekindle_engine::catalog::{Change, Kind, Unsettled, WriteError};
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::snapshot::Snapshot as EngineSnapshot;
use rekindle_guest::process::protocol::Command;
use uuid::Uuid;

use super::Daemon;
use super::about::About;
use super::boot_files::MachineInMaking;
use super::claims::{Birth, Claim};
use super::endings::Ending;
use super::entry::{Entry, PAUSING, TELLING, Turn, stopped_by_signal};
use super::events::About as EventAbout;
use super::guests::{GuestSpec, log_name};
use super::idempotency::{Chosen, Made};
use super::keeping::{GuestNote, UnsettledChange};
use super::live::{Live, Paused};
use super::problems::guest_failed;
use super::record::{NewSandbox, RecordedLife, SandboxRecord};
use super::references::Named as _;
use super::room::{Needed, RoomPromise};
use super::snapshots::Known;
use crate::api::control::{Answer, Asked};
use crate::api::limits;
use crate::api::problem::{Code, Problem};
use crate::api::types::{
    CreateSandbox, MemoryBacking, PauseSandbox, ResumeSandbox, Sandbox, Snapshot, TapName,
};
use crate::asker::Asker;
use crate::vmm::how_ended::how_ended_by_itself;
use crate::vmm::last_words::last_words;

/// Bytes of guest memory, at most: 1 TiB.
const MEMORY_BYTES_MAX: u64 = 1 << 40;
/// Longest time that a resume waits for the seal when asked to.
pub(super) const SEAL_WAIT: Duration = Duration::from_secs(600);
/// Longest time until an operation sees that its guest was killed: more than any wait for an answer.
const BUSY_END_LIMIT: Duration = Duration::from_secs(600);

impl Daemon {
    pub(super) fn create(&self, asked: &Asked, wanted: CreateSandbox) -> Answer<Sandbox> {
        check_memory(wanted.memory_bytes, wanted.backing)?;
        let mut chosen = self.requests.choose(asked, &("create", &wanted), 1)?;
        let id = chosen.ids[0];
        if let Some(entry) = self.sandboxes.get(id) {
            return Ok(entry.show());
        }
        chosen.refuse_if_gone(Made::Sandbox, &[id])?;
        let name = self.sandboxes.reserve(wanted.name.as_deref())?;
        let taps = wanted.machine.iter().flat_map(|machine| &machine.taps);
        self.check_taps(&taps.map(|tap| tap.device.0.as_str()).collect::<Vec<_>>(), 1)?;
        self.check_pausable(wanted.memory_bytes)?;
        let disks = wanted.machine.as_ref().map_or(0, |machine| machine.disks.len());
        let room = self.promise_room(&Needed::of(wanted.memory_bytes, wanted.backing, disks))?;
        let machine = wanted.machine.as_ref().map(|_| self.begin_machine());
        let (spec, images) = self.made_of(id, &wanted, &asked.asker)?;
        let made = self.create_of(&mut chosen, wanted, (spec, &room), asked, images.as_ref());
        let entry = made.inspect_err(|_| self.forget_images(images.as_ref()))?;
        machine.into_iter().for_each(MachineInMaking::made);
        drop((name, room));
        self.events.say("sandbox.created", EventAbout::sandbox(id), None);
        Ok(entry.show())
    }

    /// A new sandbox of what was settled; an error has left nothing of it.
    fn create_of(
        &self,
        chosen: &mut Chosen<'_>,
        wanted: CreateSandbox,
        (spec, room): (GuestSpec, &RoomPromise),
        asked: &Asked,
        images: Option<&Arc<EngineSnapshot>>,
    ) -> Answer<Arc<Entry>> {
        asked.check()?;
        let live = self.born(&spec, room, |birth| Live::start(&self.host, birth, images.cloned()))?;
        let sandbox = NewSandbox { id: chosen.ids[0], name: wanted.name, labels: wanted.labels, spec };
        let record = SandboxRecord::new(sandbox, live.recorded());
        if let Err(problem) = asked.check() {
            self.host.endings.end(live.end());
            return Err(problem);
        }
        let making = chosen.making(&[record.id]);
        self.take_in(record, live, making)
    }

    pub(super) fn pause(&self, reference: &str, asked: &Asked, how: PauseSandbox) -> Answer<Snapshot> {
        let mut chosen = self.requests.choose(asked, &("pause", reference, &how), 1)?;
        let id = SnapshotId::from(chosen.ids[0]);
        if let Some(snapshot) = self.host.engine.snapshot(id) {
            return Ok(Known::of(snapshot).show());
        }
        chosen.refuse_if_gone(Made::Snapshot, &[id.uuid()])?;
        let entry = self.sandboxes.find(reference)?;
        let name = self.reserve_snapshot_name(how.name.as_deref())?;
        let mut turn = entry.turn(PAUSING, self.host.settings().pause_wait, asked)?;
        asked.check()?;
        let making = chosen.making(&[id.uuid()]);
        let snapshot =
            self.pause_in_turn(&mut turn, id, how, (RecordedLife::Paused, making), &asked.asker)?;
        drop((turn, name));
        Ok(Known::of(snapshot).show())
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
        match live.pause(&self.host, id, about, alongside, turn.record(), asker) {
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

    pub(super) fn resume(&self, reference: &str, asked: &Asked, how: &ResumeSandbox) -> Answer<Sandbox> {
        let entry = self.sandboxes.find(reference)?;
        let mut turn = entry.turn("is being used", self.host.settings().pause_wait, asked)?;
        self.resume_in_turn(&mut turn, asked, how)?;
        drop(turn);
        Ok(entry.show())
    }

    /// Resumes the sandbox of a turn, whose guest has ended, from its last snapshot.
    fn resume_in_turn(&self, turn: &mut Turn, asked: &Asked, how: &ResumeSandbox) -> Answer<()> {
        let record = turn.record();
        let snapshot = resumed_from(turn.entry(), &record, how)?;
        let known = self.readable_snapshot(&snapshot.to_string())?;
        let taps = how.taps.as_deref().map_or_else(|| record.spec.taps(), tap_names);
        self.check_taps(&taps, 1)?;
        let room = self.promise_room(&Needed::by(&record.spec))?;
        self.go_on_from((&known, &room), turn, asked, how)
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
        let (live, spec) = self.bring_back((known, room), asked, how)?;
        record.spec = spec;
        record.life = RecordedLife::Running(live.recorded());
        self.write_born(&record, &live, (Some(turn.record()), Vec::new()))?;
        turn.live = Some(live);
        turn.show(record.clone());
        self.watch_new_guests();
        self.events.say("sandbox.resumed", EventAbout::both(record.id, known.id()), None);
        Ok(())
    }

    /// A guest on a snapshot's memory and device state, and what it is made of.
    #[tracing::instrument(name = "resume", skip_all, fields(snapshot = %known.id()))]
    pub(super) fn bring_back(
        &self,
        (known, room): (&Known, &RoomPromise),
        asked: &Asked,
        how: &ResumeSandbox,
    ) -> Answer<(Box<Live>, GuestSpec)> {
        let Some(mut spec) = known.about.spec.clone() else {
            let why = format!(
                "{} is of a VMM that rekindle did not start: open a fault socket for it",
                known.called()
            );
            return Err(Problem::new(Code::WrongState, why).snapshot(known.snapshot.id()));
        };
        if let Some(taps) = &how.taps {
            spec.attach_to(taps).map_err(|problem| problem.snapshot(known.snapshot.id()))?;
        }
        self.wait_if_asked(known, asked, how.serve_before_seal)?;
        asked.check()?;
        let _first = self.host.engine.precedence().bring_up();
        let live = self.born(&spec, room, |birth| Live::resume(&self.host, birth, &known.snapshot))?;
        Ok((live, spec))
    }

    /// Waits for the seal if a guest must not be served before it.
    pub(super) fn wait_if_asked(
        &self,
        known: &Known,
        asked: &Asked,
        serve_before_seal: Option<bool>,
    ) -> Answer<()> {
        if serve_before_seal.unwrap_or_else(|| self.host.settings().serve_before_seal) {
            return Ok(());
        }
        let until = Instant::now() + SEAL_WAIT;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let turn = left.min(limits::WAIT_TURN);
            if known.snapshot.wait_manifest(turn).is_ok() {
                return Ok(());
            }
            asked.check()?;
            if left == turn {
                let why = format!(
                    "{} was not sealed within {} s, and must not be served before",
                    known.called(),
                    SEAL_WAIT.as_secs()
                );
                return Err(Problem::new(Code::NotYet, why).snapshot(known.snapshot.id()));
            }
        }
    }

    pub(super) fn stop(&self, reference: &str, asked: &Asked) -> Answer<Sandbox> {
        let entry = self.sandboxes.find(reference)?;
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

    pub(super) fn remove(&self, reference: &str, asked: &Asked) -> Answer<Uuid> {
        let entry = self.sandboxes.find(reference)?;
        let id = entry.id();
        let removal = || Change::Remove { kind: Kind::Sandbox, key: SandboxRecord::key(id) };
        let mut turn = self.turn_to_end(&entry, asked, |_| Some(removal()))?;
        if let Some(live) = turn.live.take() {
            self.host.endings.end(live.end());
        }
        if let RecordedLife::Undecided { guest: Some(guest), .. } = turn.record().life {
            self.host.endings.end_unborn(guest);
        }
        self.sandboxes.remove(id);
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

    pub(super) fn tell(
        &self,
        reference: &str,
        asked: &Asked,
        command: serde_json::Value,
    ) -> Answer<serde_json::Value> {
        let entry = self.sandboxes.find(reference)?;
        let command: Command = serde_json::from_value(command).map_err(|error| {
            Problem::new(Code::InvalidRequest, format!("no command of a process guest: {error}"))
        })?;
        if matches!(command, Command::Restore { .. } | Command::Exit | Command::Place { .. }) {
            let why = "a sandbox's guest is restored, placed and ended by the daemon alone";
            return Err(Problem::new(Code::InvalidRequest, why));
        }
        let mut turn = entry.turn(TELLING, self.host.settings().pause_wait, asked)?;
        let Some(live) = &mut turn.live else { return Err(not_running(&turn, "told anything")) };
        live.go_on_if_stuck(&self.host).map_err(|problem| problem.sandbox(entry.id()))?;
        tell_live(&entry, live, asked, &command).map_err(|problem| problem.sandbox(entry.id()))
    }

    /// Starts a guest by `start`; if its keeper dies meanwhile, once more under the next one.
    fn born(
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
    fn take_in(&self, record: SandboxRecord, live: Box<Live>, alongside: Vec<Change>) -> Answer<Arc<Entry>> {
        self.write_born(&record, &live, (None, alongside))?;
        let entry = Entry::new(record, Some(live));
        self.sandboxes.insert(Arc::clone(&entry));
        self.watch_new_guests();
        Ok(entry)
    }

    /// Records a guest that was started, with what changes alongside, or ends it; `before` is the record of its sandbox as
    /// it was, if there was one.
    fn write_born(
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

/// The change that writes a record.
pub(super) fn put(record: &SandboxRecord) -> Change {
    Change::Put { kind: Kind::Sandbox, key: SandboxRecord::key(record.id), value: record.encode() }
}

/// Tells a guest something, and waits for its answer as long as the client does and the guest can give one.
fn tell_live(entry: &Entry, live: &mut Live, asked: &Asked, command: &Command) -> Answer<serde_json::Value> {
    let process = live.process();
    let stopped = || {
        let why = stopped_by_signal(&process)?;
        Some(Problem::new(Code::WrongState, format!("{why}, and it can be told something then")))
    };
    let Some(control) = live.control() else {
        let why = format!("{} is a virtual machine: use its console instead", entry.called());
        return Err(Problem::new(Code::WrongState, why));
    };
    stopped().map_or(Ok(()), Err)?;
    let is_wanted = || !asked.asker.is_gone() && stopped().is_none();
    let told = control.begin_tell(command).and_then(|told| told.wait_while(limits::WAIT_TURN, is_wanted));
    match told {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_given_up)) => Err(stopped().unwrap_or_else(|| {
            let why = "the client went away before the guest answered; the guest does what it was told";
            Problem::new(Code::Abandoned, why)
        })),
        Err(error) => Err(entry.ended_meanwhile("told something").unwrap_or_else(|| Problem::from(error))),
    }
}

fn not_running(turn: &Turn, wanted: &str) -> Problem {
    let entry = turn.entry();
    let why = format!("{} is {}: only a running one can be {wanted}", entry.called(), entry.show().state);
    Problem::new(Code::WrongState, why).sandbox(entry.id())
}

/// The snapshot that a sandbox goes on from.
fn resumed_from(entry: &Entry, record: &SandboxRecord, how: &ResumeSandbox) -> Answer<Uuid> {
    let (called, shown, reference) = (entry.called(), entry.show().state, entry.reference());
    let refused = |why: String| Err(Problem::new(Code::WrongState, why).sandbox(record.id));
    match (&record.life, record.snapshot) {
        (RecordedLife::Running(_), _) => refused(format!(
            "{called} is {shown}: there is nothing to resume. `rekindle fork {reference}` makes another one like it"
        )),
        (RecordedLife::Paused | RecordedLife::Forked, Some(snapshot)) => Ok(snapshot),
        (RecordedLife::Stopped { .. } | RecordedLife::Lost { .. }, Some(snapshot)) => {
            if how.from_last_snapshot {
                return Ok(snapshot);
            }
            let problem = refused(format!(
                "{called} is {shown}: what its guest did since its last pause is gone. `rekindle resume {reference} \
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

pub(super) fn tap_names(taps: &[TapName]) -> Vec<&str> {
    taps.iter().map(|TapName(name)| name.as_str()).collect()
}

fn check_memory(bytes: u64, backing: MemoryBacking) -> Answer<()> {
    let page = backing.page_bytes();
    if bytes == 0 || bytes > MEMORY_BYTES_MAX || !bytes.is_multiple_of(page) {
        let why =
            format!("memory_bytes={bytes}: it must be a multiple of {page}, at most {MEMORY_BYTES_MAX}");
        return Err(Problem::new(Code::InvalidRequest, why));
    }
    Ok(())
}
