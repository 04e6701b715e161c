//! One sandbox: its record, and its live guest, which one operation at a time has.

mod shown;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rekindle_api::control::{Answer, Asked};
use rekindle_api::limits;
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::{Labels, Name};
use rekindle_engine::snapshot::Snapshot;
use rekindle_keeper::KeeperIdentity;
use rekindle_kernel::{ProcessHandle, Signal};
use uuid::Uuid;

use super::channel::{Channel, GuestChannel};
use super::console::Console;
use super::guest_watch::{GuestWatch, stopped_by_signal};
use super::live::Live;
use super::paging::Listed;
use super::record::SandboxRecord;
use super::references::Named;

/// A sandbox as the daemon holds it.
#[derive(Debug)]
pub(super) struct Entry {
    id: Uuid,
    name: Option<Name>,
    labels: Labels,
    state: Mutex<State>,
    freed: Condvar,
    console: Console,
    channel: Channel,
}

#[derive(Debug)]
struct State {
    record: SandboxRecord,
    live: Held,
    /// The parts of the guest that can be asked while an operation has it.
    outside: Outside,
    removed: bool,
    /// A request is about to end its guest although an operation has it: no other gets a turn.
    is_ending: bool,
}

/// The operations that make a snapshot.
pub(super) const PAUSING: &str = "is being paused";
pub(super) const CHECKPOINTING: &str = "is being checkpointed";
pub(super) const MOVING: &str = "is being moved";
/// The operations that wait for an answer of the guest for long, and write nothing down: the guest's end ends them.
pub(super) const TELLING: &str = "is being told something";
pub(super) const GOING_ON: &str = "is let go on";

/// The operation that ends the guest.
const ENDING: &str = "is being ended";

/// A guest as it is seen from outside of any operation.
#[derive(Debug, Clone, Default)]
struct Outside {
    process: Option<Arc<ProcessHandle>>,
    watch: GuestWatch,
    kept_by: Option<KeeperIdentity>,
    base: Option<Arc<Snapshot>>,
    channel: Option<GuestChannel>,
}

impl Outside {
    fn of(live: Option<&Live>) -> Self {
        Self {
            process: live.map(Live::process),
            watch: live.map(Live::watch).unwrap_or_default(),
            kept_by: live.map(Live::kept_by),
            base: live.and_then(Live::base),
            channel: live.and_then(Live::channel),
        }
    }
}

/// Place of the live guest.
#[derive(Debug)]
enum Held {
    Here(Option<Box<Live>>),
    /// An operation has it, called so.
    Taken(&'static str),
}

/// The right to end a guest that an operation has which waits for it. Dropped, nothing has happened.
#[derive(Debug)]
pub(super) struct EndOfBusy(Arc<Entry>);

/// The turn of one operation: it has the live guest, if there is one, and puts back what there is afterwards on drop.
#[derive(Debug)]
pub(super) struct Turn {
    entry: Arc<Entry>,
    pub(super) live: Option<Box<Live>>,
}

impl Entry {
    pub(super) fn new(record: SandboxRecord, live: Option<Box<Live>>) -> Arc<Self> {
        let outside = Outside::of(live.as_deref());
        let console = Console::default();
        follow(&console, live.as_deref());
        Arc::new(Self {
            console,
            channel: Channel::default(),
            id: record.id,
            name: record.name.clone(),
            labels: record.labels.clone(),
            state: Mutex::new(State {
                record,
                live: Held::Here(live),
                outside,
                removed: false,
                is_ending: false,
            }),
            freed: Condvar::new(),
        })
    }

    /// Has the guest, if no operation has it.
    pub(super) fn turn_at_once(self: &Arc<Self>, operation: &'static str) -> Answer<Turn> {
        self.turn(operation, Duration::ZERO, &Asked::default())
    }

    /// Waits for the operation that has the guest to end, at most `limit` and as long as the client waits, then has it.
    pub(super) fn turn(
        self: &Arc<Self>,
        operation: &'static str,
        limit: Duration,
        asked: &Asked,
    ) -> Answer<Turn> {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            asked.check_before_it_begins()?;
            if state.removed {
                return Err(Problem::new(
                    Code::NotFound,
                    format!("there is no sandbox {} any more", self.id),
                ));
            }
            let is_another_ones = state.is_ending && operation != ENDING;
            let other = match &mut state.live {
                Held::Here(live) if !is_another_ones => {
                    let live = live.take();
                    state.live = Held::Taken(operation);
                    return Ok(Turn { entry: Arc::clone(self), live });
                }
                Held::Here(_) => ENDING,
                Held::Taken(other) => *other,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let why =
                    format!("{} is busy: its guest {other}; try again when that is over", self.called());
                return Err(Problem::new(Code::WrongState, why).sandbox(self.id));
            }
            let step = left.min(limits::WAIT_TURN);
            state = self.freed.wait_timeout(state, step).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Its record in the catalog.
    pub(super) fn record(&self) -> SandboxRecord {
        self.lock().record.clone()
    }

    /// True if it can only go on from `snapshot`.
    pub(super) fn is_paused_in(&self, snapshot: Uuid) -> bool {
        let state = self.lock();
        state.record.life.is_paused() && state.record.snapshot == Some(snapshot)
    }

    /// True if its guest's process has ended although the record says that the guest runs.
    pub(super) fn guest_has_ended(&self) -> bool {
        self.process().is_some_and(|process| !process.is_alive())
    }

    /// True if it has a guest whose descriptors were given to another keeper than `keeper`.
    pub(super) fn is_kept_elsewhere(&self, keeper: KeeperIdentity) -> bool {
        self.lock().outside.kept_by.is_some_and(|kept_by| kept_by != keeper)
    }

    /// The snapshot that its guest's pages come from.
    pub(super) fn base(&self) -> Option<Arc<Snapshot>> {
        self.lock().outside.base.clone()
    }

    /// Its guest's process, if there is one.
    pub(super) fn process(&self) -> Option<Arc<ProcessHandle>> {
        self.lock().outside.process.clone()
    }

    /// True if its guest stands still although no operation has it.
    pub(super) fn is_stuck(&self) -> bool {
        self.lock().outside.watch.is_stuck()
    }

    /// The turn in which its guest is ended, once no operation has it, at most after `limit`.
    pub(super) fn turn_to_end(self: &Arc<Self>, limit: Duration, asked: &Asked) -> Answer<Turn> {
        self.turn(ENDING, limit, asked)
    }

    /// The right to end its guest now; none where no operation has it, or one that is over soon.
    pub(super) fn end_of_busy(self: &Arc<Self>) -> Option<EndOfBusy> {
        let mut state = self.lock();
        let waits = matches!(state.live, Held::Taken(TELLING | GOING_ON)) && state.outside.process.is_some();
        if !waits || state.is_ending || state.removed {
            return None;
        }
        state.is_ending = true;
        Some(EndOfBusy(Arc::clone(self)))
    }

    /// The problem of an operation whose guest was ended by another request.
    pub(super) fn ended_meanwhile(&self, operation: &str) -> Option<Problem> {
        let why = || format!("{} was stopped or removed while it was being {operation}", self.called());
        self.lock().is_ending.then(|| Problem::new(Code::WrongState, why()))
    }

    /// The console of its guests.
    pub(super) fn console(&self) -> &Console {
        &self.console
    }

    /// The channel to its guest's agent, and the connection to it; none where no guest with a channel is here.
    pub(super) fn channel(&self) -> Option<(&Channel, GuestChannel)> {
        let guest = self.lock().outside.channel.clone()?;
        Some((&self.channel, guest))
    }

    /// True if it has this label.
    pub(super) fn has_label(&self, name: &str, value: &str) -> bool {
        self.labels.get(name).is_some_and(|has| has == value)
    }

    /// The sandbox with its name, for people.
    pub(super) fn called(&self) -> String {
        match &self.name {
            Some(name) => format!("sandbox {name} ({})", self.id),
            None => format!("sandbox {}", self.id),
        }
    }

    /// The reference for commands: its name, or its id without a name.
    pub(super) fn reference(&self) -> String {
        self.name.as_ref().map_or_else(|| self.id.to_string(), ToString::to_string)
    }

    /// The reason that its guest is stalled: the page it waits for, or the VMM that stopped it.
    pub(super) fn stalled(&self) -> Option<String> {
        let waits = self.lock().outside.watch.stalled();
        waits.or_else(|| self.stopped_by_signal())
    }

    /// Reason that its VMM was stopped by a signal, if it was.
    fn stopped_by_signal(&self) -> Option<String> {
        let process = self.process_left_running()?;
        let stopped = stopped_by_signal(&process)?;
        // A pause that came meanwhile may have stopped it.
        self.process_left_running().is_some_and(|now| Arc::ptr_eq(&now, &process)).then_some(stopped)
    }

    /// The process of its guest unless the operation that has it is one that stops it itself.
    fn process_left_running(&self) -> Option<Arc<ProcessHandle>> {
        let state = self.lock();
        match &state.live {
            Held::Here(None) | Held::Taken(PAUSING | CHECKPOINTING | MOVING | GOING_ON) => None,
            Held::Here(Some(_)) | Held::Taken(_) => state.outside.process.clone(),
        }
    }

    /// Events of its guest's VMM since the last call that did not stop it.
    pub(super) fn take_news(&self) -> Vec<String> {
        self.lock().outside.watch.take_news()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EndOfBusy {
    /// Kills the guest, and takes the turn when the operation that had it has seen that.
    pub(super) fn kill(self, limit: Duration) -> Answer<Turn> {
        if let Some(process) = self.0.process() {
            // An error says that it has ended.
            process.signal(Signal::Kill).ok();
        }
        self.0.turn_to_end(limit, &Asked::default())
    }
}

impl Drop for EndOfBusy {
    fn drop(&mut self) {
        self.0.lock().is_ending = false;
        self.0.freed.notify_all();
    }
}

impl Turn {
    pub(super) fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    pub(super) fn record(&self) -> SandboxRecord {
        self.entry.record()
    }

    /// Shows `record`, which is in the catalog by now, and the guest of this turn from now on.
    pub(super) fn show(&self, record: SandboxRecord) {
        let outside = Outside::of(self.live.as_deref());
        let mut state = self.entry.lock();
        state.record = record;
        state.outside = outside;
    }

    /// No operation gets a turn after this one.
    pub(super) fn remove(self) {
        self.entry.lock().removed = true;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut live = self.live.take();
        if let Some(live) = &mut live {
            live.free_memory_if_ended();
        }
        let outside = Outside::of(live.as_deref());
        follow(&self.entry.console, live.as_deref());
        let mut state = self.entry.lock();
        state.outside = outside;
        state.live = Held::Here(live);
        drop(state);
        self.entry.freed.notify_all();
    }
}

/// Lets a console follow the guest of its sandbox, if there is one now.
fn follow(console: &Console, live: Option<&Live>) {
    let followed = live.map_or(Ok(()), |live| match live.serial() {
        Ok(Some(serial)) => console.follow(live.id, serial),
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    });
    if let Err(error) = followed {
        tracing::warn!(%error, "a guest's console cannot be read");
    }
}

impl Named for Arc<Entry> {
    fn id(&self) -> Uuid {
        self.id
    }

    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
}

impl Listed for Arc<Entry> {
    fn labels(&self) -> &Labels {
        &self.labels
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use rekindle_api::types::MemoryBacking;

    use super::*;
    use crate::daemon::spec::GuestSpec;

    fn entry() -> (Arc<Entry>, Child) {
        let id = Uuid::from_u128(1);
        let record = serde_json::json!({
            "id": id,
            "labels": {},
            "created_unix_ms": 1,
            "spec": GuestSpec::Process { memory_bytes: 4096, backing: MemoryBacking::Shared },
            "life": { "state": "stopped" },
        });
        let record = SandboxRecord::decode(&SandboxRecord::key(id), record.to_string().as_bytes());
        let guest = Command::new("sleep").arg("1000").spawn().expect("it runs");
        let entry = Entry::new(record, None);
        let process = ProcessHandle::open(guest.id()).expect("it runs");
        entry.lock().outside.process = Some(Arc::new(process));
        (entry, guest)
    }

    #[test]
    fn a_turn_is_waited_for_as_long_as_the_client_does_with_a_key_or_without() {
        let (entry, mut guest) = entry();
        let taken = entry.turn_at_once("is being used").expect("nobody has it");
        for key in [None, Some("k".to_owned())] {
            let asked = Asked { key, ..Asked::default() };
            let waiting = asked.asker.waits();
            let refused = std::thread::scope(|scope| {
                let refused = scope.spawn(|| entry.turn(PAUSING, Duration::MAX / 4, &asked).map(drop));
                drop(waiting);
                refused.join().expect("it does not panic")
            });
            assert_eq!(refused.map_err(|problem| problem.code), Err(Code::Abandoned));
        }
        drop(taken);
        entry.turn(PAUSING, Duration::ZERO, &Asked::default()).expect("nobody has it");
        guest.kill().and_then(|()| guest.wait()).expect("it is ours");
    }

    #[test]
    fn a_guest_that_somebody_stopped_is_stalled_whoever_has_it_but_a_pause_which_stops_it_itself() {
        let (entry, mut guest) = entry();
        let process = entry.process().expect("it runs");
        process.signal(Signal::Stop).expect("it runs");
        while !process.is_stopped().expect("it is there") {
            std::thread::yield_now();
        }
        for (operation, is_stalled) in [("is being used", true), (TELLING, true), (PAUSING, false)] {
            let turn = entry.turn_at_once(operation).expect("nobody has it");
            assert_eq!(entry.stalled().is_some(), is_stalled, "{operation}");
            drop(turn);
            entry.lock().outside.process = Some(Arc::clone(&process));
        }
        guest.kill().and_then(|()| guest.wait()).expect("it is ours");
    }

    #[test]
    fn only_an_operation_that_waits_for_its_guest_loses_it_and_nobody_gets_a_turn_meanwhile() {
        let (entry, mut guest) = entry();
        let process = entry.lock().outside.process.clone();
        for operation in [PAUSING, "is being used"] {
            let turn = entry.turn_at_once(operation).expect("nobody has it");
            assert!(entry.end_of_busy().is_none(), "{operation}");
            drop(turn);
            entry.lock().outside.process.clone_from(&process);
        }
        let telling = entry.turn_at_once(TELLING).expect("nobody has it");
        drop(entry.end_of_busy().expect("it can wait for long"));
        assert_eq!(entry.ended_meanwhile("told something"), None);
        let ending = entry.end_of_busy().expect("it can wait for long");
        assert!(entry.end_of_busy().is_none(), "another one has the right");
        let problem = entry.ended_meanwhile("told something").expect("it is about to be ended");
        assert_eq!(problem.code, Code::WrongState);
        drop(telling);
        entry.lock().outside.process = process;
        let refused = entry.turn_at_once(TELLING).expect_err("it is being ended");
        assert!(refused.detail.contains(ENDING), "{refused}");
        drop(ending.kill(Duration::ZERO).expect("nobody has it any more"));
        assert!(!guest.wait().expect("it is ours").success());
        entry.turn_at_once(PAUSING).expect("that is over");
    }
}
