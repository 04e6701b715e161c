//! Watches sandboxes for changes that no request makes: guests that end, stall, or stand still.

use std::collections::HashSet;
use std::sync::Arc;

use rekindle_engine::catalog::WriteError;
use rekindle_keeper::KeeperIdentity;
use rekindle_kernel::ProcessHandle;
use rekindle_vmm::last_words::last_words;
use uuid::Uuid;

use super::entry::{Entry, GOING_ON};
use super::events::About;
use super::guest_files::log_name;
use super::how_ended::reason_of_end;
use super::record::{RecordedLife, put};
use super::references::Named as _;
use super::sandboxes::Sandboxes;

/// Findings about sandboxes of the looks before this one.
#[derive(Debug, Default)]
pub(super) struct SeenSandboxes {
    /// Those that were told to be stalled.
    stalled: HashSet<Uuid>,
    /// Those whose guest has ended and is still had by an operation: only the next look finds out about them.
    ended: HashSet<Uuid>,
    /// Those whose guest has ended, which the catalog could not be told.
    unwritten: HashSet<Uuid>,
}

impl Sandboxes {
    /// The processes whose ends must be noticed at once.
    pub(super) fn processes(&self, seen: &SeenSandboxes) -> Vec<Arc<ProcessHandle>> {
        let guests = self.registry.all().into_iter().filter(|entry| !seen.ended.contains(&entry.id()));
        guests.filter_map(|entry| entry.process()).collect()
    }

    /// Looks at all of them.
    pub(super) fn look(&self, seen: &mut SeenSandboxes) {
        let entries = self.registry.all();
        let there: HashSet<Uuid> = entries.iter().map(|entry| entry.id()).collect();
        seen.stalled.retain(|id| there.contains(id));
        seen.ended.clear();
        self.write_ends(&mut seen.unwritten);
        for entry in entries {
            if entry.guest_has_ended() && !self.guest_ended(&entry, &mut seen.unwritten) {
                seen.ended.insert(entry.id());
            }
            if entry.is_stuck() {
                self.let_go_on(&entry);
            }
            for news in entry.take_news() {
                self.events.say("sandbox.reset", About::sandbox(entry.id()), Some(news));
            }
            match (seen.stalled.contains(&entry.id()), entry.stalled()) {
                (false, Some(reason)) => {
                    self.events.say("sandbox.stalled", About::sandbox(entry.id()), Some(reason));
                    seen.stalled.insert(entry.id());
                }
                (true, None) => {
                    self.events.say("sandbox.running", About::sandbox(entry.id()), None);
                    seen.stalled.remove(&entry.id());
                }
                (true, Some(_)) | (false, None) => {}
            }
        }
    }

    /// Handles the unrequested end of a guest; true if that is settled.
    fn guest_ended(&self, entry: &Arc<Entry>, unwritten: &mut HashSet<Uuid>) -> bool {
        // The operation that has the guest finds out by itself; otherwise the next look does.
        let Ok(mut turn) = entry.turn_at_once("has ended") else { return false };
        let mut record = turn.record();
        let Some(mut live) = turn.live.take_if(|live| !live.process().is_alive()) else { return true };
        live.free_memory_if_ended();
        let (guest, told) = (live.id, live.told_end());
        let ending = live.ended();
        let reason = self.reason_of_end(guest, told.as_deref());
        record.life = RecordedLife::Stopped { reason: Some(reason.clone()) };
        let written = self.catalog.write_with_last_room(&[put(&record)]);
        if let Err(error) = written.map_err(WriteError::either_way) {
            tracing::warn!(sandbox = %record.id, %error, "the end of a guest is written down later");
            unwritten.insert(record.id);
        }
        turn.show(record);
        self.let_go_of_images(entry.id());
        self.events.say("sandbox.stopped", About::sandbox(entry.id()), Some(reason));
        drop(turn);
        self.host.endings.end(ending);
        true
    }

    /// Reason of a guest's end, for people: its VMM's account, its status or signal, its last words.
    pub(super) fn reason_of_end(&self, guest: Uuid, told: Option<&str>) -> String {
        let words = last_words(&self.host.run_directory.join(log_name(guest)));
        reason_of_end(self.host.keeping.how_ended(guest), told, &words)
    }

    /// Writes down again which guests have ended, where that failed; until then the next daemon finds it out anew.
    fn write_ends(&self, unwritten: &mut HashSet<Uuid>) {
        unwritten.retain(|id| {
            let Some(entry) = self.registry.get(*id) else { return false };
            let Ok(turn) = entry.turn_at_once("has ended") else { return true };
            let record = turn.record();
            matches!(record.life, RecordedLife::Stopped { .. })
                && self.catalog.write(&[put(&record)]).is_err()
        });
    }

    /// Tries again to let a guest go on that stands although nothing is done with it.
    fn let_go_on(&self, entry: &Arc<Entry>) {
        let Ok(mut turn) = entry.turn_at_once(GOING_ON) else { return };
        if let Some(live) = &mut turn.live
            && live.go_on_if_stuck(&self.host).is_ok()
        {
            tracing::info!(sandbox = %entry.id(), "its guest goes on");
        }
    }

    /// Hands guests that another keeper was given to the present one; the reasons that this failed, by sandbox.
    pub(super) fn keep_again(&self, keeper: KeeperIdentity) -> Vec<(Uuid, String)> {
        let mut unkept = Vec::new();
        for entry in self.registry.all() {
            if entry.is_kept_elsewhere(keeper)
                && let Ok(mut turn) = entry.turn_at_once("is being kept")
                && let Some(live) = &mut turn.live
                && let Err(error) = live.keep_again(&self.host.keeping)
            {
                unkept.push((entry.id(), format!("{error:#}")));
            }
        }
        unkept
    }
}
