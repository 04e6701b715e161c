//! Notices snapshots whose bytes come here or go, tells of them, and keeps the file that says what is here.

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rekindle_api::types::{PlacementQuery, ResumeHint, SnapshotState};
use rekindle_kernel::wakeup::wait_any;
use uuid::Uuid;

use super::events::{About, EventLog};
use super::over::Over;
use super::placement::Placements;
use super::placement_file::PlacementFile;
use super::references::Named as _;

/// Time between two looks, at least: bytes come and go without being announced.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The time between two looks, as a multiple of the time that one takes: a node of many snapshots is looked at less often.
const REST: u32 = 20;

/// The thread that looks.
#[derive(Debug)]
pub(super) struct PlacementWatch {
    over: Arc<Over>,
    thread: JoinHandle<()>,
}

/// Findings of the look before.
#[derive(Debug, Default)]
struct Seen {
    moment: Option<(u64, u64)>,
    /// True if pages of a snapshot come from another node, which is not announced.
    has_remote: bool,
    /// None before the first look, whose findings are no news.
    hints: Option<HashMap<Uuid, Option<ResumeHint>>>,
}

impl PlacementWatch {
    pub(super) fn start(
        placements: &Arc<Placements>,
        events: &Arc<EventLog>,
        file: Option<PlacementFile>,
    ) -> std::io::Result<Self> {
        let over = Over::not_yet()?;
        let (placements, events, heard) = (Arc::downgrade(placements), Arc::clone(events), Arc::clone(&over));
        let work = move || watch(&placements, &events, file, &heard);
        let thread = std::thread::Builder::new().name("placement".into()).spawn(work)?;
        Ok(Self { over, thread })
    }

    pub(super) fn finish(self) {
        self.over.end();
        drop(self.thread.join());
    }
}

fn watch(placements: &Weak<Placements>, events: &EventLog, mut file: Option<PlacementFile>, over: &Over) {
    let mut seen = Seen::default();
    while !over.is_over() {
        let Some(placements) = placements.upgrade() else { return };
        let began = Instant::now();
        let is_changed = seen.look(&placements, events);
        if let Some(file) = file.as_mut().filter(|file| is_changed || file.is_amiss()) {
            file.say(&placements.of_node(&PlacementQuery::default()));
        }
        drop(placements);
        let pause = LOOK_EVERY.max(began.elapsed() * REST);
        if let Err(error) = wait_any(&[over.wakeup().as_fd()], Some(pause)) {
            tracing::debug!(%error, "changes of what is on this node are noticed late");
            std::thread::park_timeout(pause);
        }
    }
    if let Some(file) = file {
        file.remove();
    }
}

impl Seen {
    /// Tells of every snapshot whose hint is another one than at the last look. False if nothing can have changed since.
    fn look(&mut self, placements: &Placements, events: &EventLog) -> bool {
        let before = self.moment.replace(placements.moment());
        if before == self.moment && !self.has_remote {
            return false;
        }
        let mut hints = HashMap::new();
        self.has_remote = false;
        for (known, placed) in placements.all() {
            let hint = placed.resume;
            self.has_remote |= placed.state == Some(SnapshotState::Remote);
            let before = self.hints.as_ref().map(|hints| hints.get(&known.id()).copied().flatten());
            if before.is_some_and(|before| before != hint)
                && let Some(hint) = hint
            {
                let about = About { sandbox: known.about.sandbox, snapshot: Some(known.id()) };
                events.say("snapshot.placed", about, Some(hint.word().to_owned()));
            }
            hints.insert(known.id(), hint);
        }
        self.hints = Some(hints);
        true
    }
}
