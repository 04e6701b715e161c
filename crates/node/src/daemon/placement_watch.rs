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

/// Snapshots that one look tells of: a layer that many of them name changes all their hints at once.
const TOLD_AT_ONCE_MAX: usize = 100;

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
    told: Told,
}

/// The hints that were told last.
#[derive(Debug, Default)]
struct Told {
    /// None before the first look, whose findings are no news.
    hints: Option<HashMap<Uuid, Option<ResumeHint>>>,
    /// True if more has changed than one look tells.
    is_behind: bool,
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
    /// Tells of snapshots whose hints are other ones than those told last. False if nothing can have changed since.
    fn look(&mut self, placements: &Placements, events: &EventLog) -> bool {
        let before = self.moment.replace(placements.moment());
        if before == self.moment && !self.has_remote && !self.told.is_behind {
            return false;
        }
        let all = placements.all();
        self.has_remote = all.iter().any(|(_, placed)| placed.state == Some(SnapshotState::Remote));
        let hints = all.iter().rev().map(|(known, placed)| (known.id(), placed.resume));
        let news: HashMap<Uuid, ResumeHint> = self.told.news(hints).into_iter().collect();
        for (known, _) in all {
            if let Some(hint) = news.get(&known.id()) {
                let about = About { sandbox: known.about.sandbox, snapshot: Some(known.id()) };
                events.say("snapshot.placed", about, Some(hint.word().to_owned()));
            }
        }
        true
    }
}

impl Told {
    /// Those of the present hints that are to be told now, the first ones first; none at the first call.
    fn news(&mut self, now: impl Iterator<Item = (Uuid, Option<ResumeHint>)>) -> Vec<(Uuid, ResumeHint)> {
        self.is_behind = false;
        let Some(before) = self.hints.take() else {
            self.hints = Some(now.collect());
            return Vec::new();
        };
        let mut news = Vec::new();
        let mut hints = HashMap::new();
        for (id, hint) in now {
            let told = before.get(&id).copied().flatten();
            let change = hint.filter(|_| told != hint);
            let is_too_many = change.is_some() && news.len() == TOLD_AT_ONCE_MAX;
            if is_too_many {
                self.is_behind = true;
            } else {
                news.extend(change.map(|hint| (id, hint)));
            }
            hints.insert(id, if is_too_many { told } else { hint });
        }
        self.hints = Some(hints);
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hints(count: u128, hint: ResumeHint) -> impl Iterator<Item = (Uuid, Option<ResumeHint>)> {
        (0..count).map(move |id| (Uuid::from_u128(id), Some(hint)))
    }

    #[test]
    fn a_hint_is_told_when_it_changes_and_those_of_the_first_look_are_no_news() {
        let mut told = Told::default();
        assert_eq!(told.news(hints(1, ResumeHint::Warm)), []);
        assert_eq!(told.news(hints(1, ResumeHint::Warm)), []);
        let [first, second] = [0, 1].map(Uuid::from_u128);
        let news = told.news(hints(2, ResumeHint::Local));
        assert_eq!(news, [(first, ResumeHint::Local), (second, ResumeHint::Local)]);
        assert_eq!(told.news([(first, None), (second, Some(ResumeHint::Local))].into_iter()), []);
        assert_eq!(told.news(hints(1, ResumeHint::Warm)), [(first, ResumeHint::Warm)]);
    }

    #[test]
    fn changes_of_more_hints_than_one_look_tells_are_told_by_the_next_ones() {
        let mut told = Told::default();
        let all = 250;
        assert_eq!(told.news(hints(all, ResumeHint::Local)), []);
        let counts: Vec<usize> = (0..4).map(|_| told.news(hints(all, ResumeHint::Warm)).len()).collect();
        assert_eq!(counts, [100, 100, 50, 0]);
        assert!(!told.is_behind);
        let first = told.news(hints(all, ResumeHint::Local));
        assert_eq!(first[0].0, Uuid::from_u128(0), "in the order that they come in");
        assert!(told.is_behind);
        assert_eq!(told.news(hints(all, ResumeHint::Warm)).len(), 100, "what changed back is not told");
    }
}
