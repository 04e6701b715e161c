//! Several new sandboxes by one request: all of them are made, or none.

use std::sync::Arc;

use rekindle_api::control::{Answer, Asked};
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::{
    ForkSandbox, Labels, NameOfSeveral, PauseSandbox, Reference, ResumeSandbox, ResumeSnapshot, Sandbox,
    SandboxCount, SandboxList, Which,
};
use rekindle_engine::catalog::{Change, WriteError};
use rekindle_engine::identity::SnapshotId;
use uuid::Uuid;

use super::entry::{Entry, PAUSING, Turn};
use super::events::About as EventAbout;
use super::idempotency::{Chosen, Made};
use super::known::Known;
use super::live::Live;
use super::names::Reserved;
use super::network::{Network, WantedNetwork, check_distinct};
use super::problems::guest_failed;
use super::record::{NewSandbox, RecordedLife, SandboxRecord, put};
use super::references::Named as _;
use super::room_promises::{Needed, RoomPromise};
use super::sandboxes::Sandboxes;
use super::spec::GuestSpec;

/// New sandboxes that a request asks for, with their names taken.
struct Wanted<'a> {
    ids: &'a [Uuid],
    names: Vec<Reserved<'a>>,
    networks: Vec<Network>,
    labels: &'a Labels,
    how: ResumeSandbox,
    room: &'a RoomPromise,
}

/// Guests that no record names yet: dropped, they are ended, and were never there.
struct Born<'a> {
    sandboxes: &'a Sandboxes,
    guests: Vec<(SandboxRecord, Box<Live>)>,
}

/// The snapshot that forks are made of.
struct Source {
    known: Known,
    /// The room of all forks.
    room: RoomPromise,
    /// The snapshot of the sandbox's last pause before this one, where it was paused for the forks.
    before: Option<Option<Uuid>>,
}

impl Sandboxes {
    /// Makes new sandboxes of a snapshot.
    pub(super) fn resume_from(
        &self,
        reference: &Reference,
        asked: &Asked,
        how: &ResumeSnapshot,
    ) -> Answer<SandboxList> {
        let count = usize_of(how.count);
        let mut chosen = self.requests.choose(asked, &("resume", reference, how), count)?;
        self.resume_chosen(&mut chosen, reference, asked, how)
    }

    /// The same, under ids that are chosen.
    pub(super) fn resume_chosen(
        &self,
        chosen: &mut Chosen<'_>,
        reference: &Reference,
        asked: &Asked,
        how: &ResumeSnapshot,
    ) -> Answer<SandboxList> {
        let (ids, count) = (chosen.ids.clone(), usize_of(how.count));
        if let Some(made) = self.made_before(chosen, &ids)? {
            return Ok(made);
        }
        let known = self.snapshots.readable_at(reference, how.from.as_deref())?;
        let room = self.room_for_several(&known, count)?;
        let names = self.reserve_several(how.name.as_ref(), how.count)?;
        let network = WantedNetwork { taps: how.taps.as_deref(), netns: how.netns.as_ref() };
        let networks = networks_of(known.about.spec.as_ref(), network, &names)?;
        self.check_networks(&networks)?;
        let each = ResumeSandbox {
            serve_before_seal: how.serve_before_seal,
            prefault: how.prefault,
            memory_mode: Some(self.memory_mode(how.memory_mode, &known, count)?),
            checkpoints: how.checkpoints,
            ..ResumeSandbox::default()
        };
        let wanted = Wanted { ids: &ids, names, networks, labels: &how.labels, how: each, room: &room };
        self.make_all(&known, &wanted, asked, chosen)
    }

    /// Makes new sandboxes that go on from this one's present state. One that runs is paused for it and goes on.
    #[tracing::instrument(name = "fork", skip_all, fields(count = how.count.get()))]
    pub(super) fn fork(
        &self,
        reference: &Reference,
        asked: &Asked,
        how: &ForkSandbox,
    ) -> Answer<SandboxList> {
        let count = usize_of(how.count);
        let mut chosen = self.requests.choose(asked, &("fork", reference, how), count + 1)?;
        let all = chosen.ids.clone();
        let (pause, ids) = all.split_first().expect("one more than forks was asked for");
        if let Some(made) = self.made_before(&chosen, ids)? {
            return Ok(made);
        }
        let entry = self.registry.find(reference)?;
        let names = self.reserve_several(how.name.as_ref(), how.count)?;
        let network = WantedNetwork { taps: how.taps.as_deref(), netns: how.netns.as_ref() };
        let networks = networks_of(Some(&entry.record().spec), network, &names)?;
        let source = match self.host.engine.snapshot(SnapshotId::from(*pause)) {
            Some(snapshot) => {
                let known = Known::of(snapshot);
                Source { room: self.room_for_several(&known, ids.len())?, known, before: None }
            }
            None => self.source_of_forks(&entry, (*pause, &networks), asked, &mut chosen)?,
        };
        let each = ResumeSandbox {
            prefault: how.prefault,
            memory_mode: Some(self.memory_mode(how.memory_mode, &source.known, count)?),
            checkpoints: how.checkpoints,
            ..ResumeSandbox::default()
        };
        let wanted = Wanted { ids, names, networks, labels: &how.labels, how: each, room: &source.room };
        match self.make_all(&source.known, &wanted, asked, &mut chosen) {
            Ok(made) => Ok(made),
            Err(problem) => {
                drop(wanted);
                if let Some(before) = source.before {
                    self.take_pause_back(&entry, &source.known, before);
                    chosen.forget();
                }
                Err(problem)
            }
        }
    }

    /// The sandboxes of an earlier request under the same key: all of them, as all are made together. Refused where one
    /// of them is gone.
    fn made_before(&self, chosen: &Chosen<'_>, ids: &[Uuid]) -> Answer<Option<SandboxList>> {
        let (there, gone): (Vec<Uuid>, Vec<Uuid>) =
            ids.iter().partition(|id| self.registry.get(**id).is_some());
        chosen.refuse_if_gone(Made::Sandbox, &gone)?;
        let sandboxes: Vec<Sandbox> =
            there.iter().filter_map(|id| self.registry.get(*id)).map(|entry| entry.show()).collect();
        let all = sandboxes.len() == ids.len();
        Ok(all.then_some(SandboxList { sandboxes, next: None }))
    }

    /// Promises the room of `count` new sandboxes of a snapshot.
    fn room_for_several(&self, known: &Known, count: usize) -> Answer<RoomPromise> {
        // One of a VMM that rekindle did not start is refused for that.
        let needed = known.about.spec.as_ref().map(Needed::by).unwrap_or_default();
        self.room.promise(&needed.times(count))
    }

    /// Takes the names of `count` new sandboxes, so that none of them is refused once something was done.
    fn reserve_several(
        &self,
        name: Option<&NameOfSeveral>,
        count: SandboxCount,
    ) -> Answer<Vec<Reserved<'_>>> {
        match name {
            Some(name) => name.numbered(count).iter().map(|name| self.registry.reserve(Some(name))).collect(),
            None => (0..count.get()).map(|_| self.registry.reserve(None)).collect(),
        }
    }

    /// The snapshot a sandbox is forked from: one that runs is paused for it and goes on.
    fn source_of_forks(
        &self,
        entry: &Arc<Entry>,
        (id, networks): (Uuid, &[Network]),
        asked: &Asked,
        chosen: &mut Chosen<'_>,
    ) -> Answer<Source> {
        chosen.refuse_if_gone(Made::Snapshot, &[id])?;
        let count = chosen.ids.len() - 1;
        let mut turn = entry.turn(PAUSING, self.host.settings().pause_wait, asked)?;
        asked.check()?;
        self.check_networks(networks)?;
        let record = turn.record();
        if turn.live.is_none()
            && let (true, Some(snapshot)) = (record.life.is_paused(), record.snapshot)
        {
            let known = self.snapshots.readable(&snapshot.into())?;
            let room = self.room_for_several(&known, count)?;
            return Ok(Source { known, room, before: None });
        }
        if let Some(live) = &turn.live {
            let spec = live.saved_spec().unwrap_or_else(|| record.spec.clone());
            spec.check_here(&self.host).map_err(|error| never_to_go_on(entry, guest_failed(error)))?;
        }
        let needed = Needed::by(&record.spec).times(count).and(Needed::to_go_on(&record.spec));
        let room = self.room.promise(&needed)?;
        let paused = (RecordedLife::Forked, chosen.making(&[id]));
        let id = SnapshotId::from(id);
        let snapshot = self.pause_in_turn(&mut turn, id, PauseSandbox::default(), paused, &asked.asker)?;
        let known = Known::of(snapshot);
        self.go_on_after_fork(&mut turn, &known, &room)?;
        Ok(Source { known, room, before: Some(record.snapshot) })
    }

    fn go_on_after_fork(&self, turn: &mut Turn, known: &Known, room: &RoomPromise) -> Answer<()> {
        let at_once = ResumeSandbox { serve_before_seal: Some(true), ..ResumeSandbox::default() };
        self.go_on_from((known, room), turn, &Asked::default(), &at_once).map_err(|problem| {
            let called = turn.entry().called();
            let detail = format!(
                "{called} was paused into {} to be forked and cannot go on now: {}; it stays paused, no fork was \
                 made: `rekindle resume {}` tries again",
                known.called(),
                problem.detail,
                turn.entry().reference()
            );
            Problem { detail, ..problem }.sandbox(turn.entry().id()).snapshot(known.snapshot.id())
        })
    }

    /// Undoes the pause for forks that were not made. The sandbox goes on, and what its pages need stays until it ends.
    fn take_pause_back(&self, entry: &Arc<Entry>, known: &Known, before: Option<Uuid>) {
        let undone = || -> Answer<()> {
            let turn = entry.turn("is being used", self.host.settings().pause_wait, &Asked::default())?;
            let mut record = turn.record();
            if record.snapshot == Some(known.id()) {
                if record.life.is_paused() {
                    // Another request paused it again meanwhile, and got that answer.
                    return Ok(());
                }
                record.snapshot = before;
                self.catalog.write(&[put(&record)]).map_err(WriteError::either_way)?;
                turn.show(record);
            }
            drop(turn);
            self.delete_known(known).map(drop)
        };
        if let Err(error) = undone() {
            tracing::warn!(snapshot = %known.id(), %error, "the snapshot of a fork that failed stays");
        }
    }

    /// Makes all of the sandboxes, or none: they become known together, once each of their guests runs.
    fn make_all(
        &self,
        known: &Known,
        wanted: &Wanted<'_>,
        asked: &Asked,
        chosen: &mut Chosen<'_>,
    ) -> Answer<SandboxList> {
        let mut born = Born { sandboxes: self, guests: Vec::new() };
        for ((id, name), network) in wanted.ids.iter().zip(&wanted.names).zip(&wanted.networks) {
            let (live, spec) = self
                .bring_back((known, wanted.room), asked, &wanted.how, network.clone())
                .map_err(|problem| none_was_made(problem, born.guests.len(), wanted.ids.len()))?;
            let name = name.name().cloned();
            let (domain, labels) = (known.snapshot.domain().clone(), wanted.labels.clone());
            let checkpoints = wanted.how.checkpoints;
            let sandbox = NewSandbox { id: *id, name, labels, domain, spec, checkpoints };
            let record = SandboxRecord::new(sandbox, live.recorded());
            born.guests.push((record, live));
        }
        asked.check()?;
        let entries = born.become_known(chosen.making(wanted.ids))?;
        for entry in &entries {
            self.events.say("sandbox.resumed", EventAbout::both(entry.id(), known.id()), None);
        }
        Ok(SandboxList { sandboxes: entries.iter().map(|entry| entry.show()).collect(), next: None })
    }

    /// Checks that new machines can have these networks: each is there, and a tap has one machine at a time.
    pub(super) fn check_networks(&self, networks: &[Network]) -> Answer<()> {
        check_distinct(networks)?;
        for entry in self.registry.all() {
            let record = entry.record();
            if !matches!(record.life, RecordedLife::Running(_)) {
                continue;
            }
            let used = record.spec.network();
            if let Some(tap) = networks.iter().find_map(|network| network.shared_tap(&used)) {
                let why = format!(
                    "tap {tap} is in use by {}: name another one (--tap DEVICE), or a network namespace that has one of \
                     this name (--netns NAME), or pause or stop that sandbox first",
                    entry.called()
                );
                return Err(Problem::new(Code::WrongState, why).sandbox(entry.id()));
            }
        }
        let (keeper, program) = (self.host.keeping.client(), self.host.keeping.program());
        networks.iter().try_for_each(|network| network.check_is_there(&keeper, program))
    }
}

/// The networks of new machines with these names, numbered in their order.
fn networks_of(
    spec: Option<&GuestSpec>,
    wanted: WantedNetwork<'_>,
    names: &[Reserved<'_>],
) -> Answer<Vec<Network>> {
    // One of a VMM that rekindle did not start is refused for that.
    let Some(spec) = spec else { return Ok(vec![Network::default(); names.len()]) };
    let numbered = names.iter().zip(1..);
    numbered.map(|(name, index)| spec.wanted_network(wanted, Which { index, name: name.name() })).collect()
}

impl Born<'_> {
    /// Writes all of them down at once, with what changes alongside: from here on they are found again after a crash.
    fn become_known(mut self, mut changes: Vec<Change>) -> Answer<Vec<Arc<Entry>>> {
        changes.extend(self.guests.iter().map(|(record, _)| put(record)));
        match self.sandboxes.catalog.write(&changes) {
            Ok(()) => {}
            Err(WriteError::NotMade(reason)) => return Err(reason.into()),
            Err(WriteError::Unknown(unsettled)) => {
                for (_, live) in self.guests.drain(..) {
                    self.sandboxes.end_unsettled(&live, None, unsettled.clone());
                }
                return Err(unsettled.into_reason().into());
            }
        }
        let entries = self.guests.drain(..).map(|(record, live)| Entry::new(record, Some(live)));
        let entries: Vec<_> = entries.collect();
        entries.iter().for_each(|entry| self.sandboxes.registry.insert(Arc::clone(entry)));
        self.sandboxes.watch_new_guests();
        Ok(entries)
    }
}

impl Drop for Born<'_> {
    fn drop(&mut self) {
        for (_, live) in self.guests.drain(..) {
            self.sandboxes.host.endings.end(live.end());
        }
    }
}

/// A sandbox is not paused for forks where it could not go on.
fn never_to_go_on(entry: &Arc<Entry>, problem: Problem) -> Problem {
    let (called, reference) = (entry.called(), entry.reference());
    let detail = format!(
        "{called} runs on, no fork was made: it would be paused for that, and cannot be resumed on this node: {}. \
         `rekindle pause {reference}` pauses it for a resume elsewhere",
        problem.detail
    );
    Problem { detail, ..problem }.sandbox(entry.id())
}

fn none_was_made(problem: Problem, made: usize, wanted: usize) -> Problem {
    if wanted == 1 {
        return problem;
    }
    let detail =
        format!("sandbox {} of {wanted} could not be made, so none was: {}", made + 1, problem.detail);
    Problem { detail, ..problem }
}

fn usize_of(count: SandboxCount) -> usize {
    usize::try_from(count.get()).expect("at most a few hundred")
}
