//! A start: it puts together the catalog's and the keeper's knowledge. Acknowledged changes are found, half-done
//! changes are undone, and lost things are listed by name.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use anyhow::Context as _;
use rekindle_keeper::{Found, HeldEntry};
use rekindle_metrics::Recovery;
use uuid::Uuid;

use super::events::About;
use super::guest_files::with_files;
use super::guest_owners::GuestOwners;
use super::keys::{CATALOG, KeyOf};
use super::orphans;
use super::record::RecordedLife;

impl GuestOwners {
    /// Puts sandboxes together again; snapshots the engine has put together by now.
    #[tracing::instrument(skip_all)]
    pub(super) fn recover(&self, found: Found, started: Instant) -> anyhow::Result<()> {
        let held: HashMap<String, HeldEntry> = self
            .host()
            .keeping
            .client()
            .list()?
            .into_iter()
            .map(|entry| (entry.key.clone(), entry))
            .collect();
        let mut recovery = Recovery { sandboxes: self.sandboxes.recover(&held)?, ..Recovery::default() };
        let unreadable_sockets = self.fault_sockets.recover(&held)?;
        recovery.until_served = started.elapsed();
        if !self.sandboxes.has_undecided() && self.fault_sockets.undecided().is_empty() {
            self.host().engine.end_replay();
        }
        self.let_go_of_the_rest(&held, &unreadable_sockets);
        // The next start does what this one cannot: nothing of it is needed now.
        if let Err(error) = self.remove_stale_sockets() {
            tracing::warn!(
                error = format!("{error:#}"),
                "sockets that nobody listens at stay until the next start"
            );
        }
        if let Err(error) = self.end_orphans(&held) {
            tracing::error!(
                error = format!("{error:#}"),
                "guests whose keeper is gone may be left over until the next start"
            );
        }
        self.sandboxes.resume_the_forked();
        self.sandboxes.let_go_of_all_images();
        recovery.snapshots = self.sandboxes.snapshots.found_again();
        self.host().metrics.recovered(&recovery);
        let keeper = match found {
            Found::Running => "the keeper was there",
            Found::Started => "a new keeper was started",
        };
        let detail = format!(
            "{keeper}; {} running sandboxes and {} snapshots were found again",
            recovery.sandboxes, recovery.snapshots
        );
        self.sandboxes.events.say("daemon.started", About::default(), Some(detail));
        Ok(())
    }

    /// Ends guests that no record names, and lets go of what was held for them: they were being made, or being ended.
    fn let_go_of_the_rest(&self, held: &HashMap<String, HeldEntry>, unreadable_sockets: &BTreeSet<Uuid>) {
        let undecided_sockets = self.fault_sockets.undecided();
        let aside = self.host().keeping.aside().clone();
        let is_left = |id: &Uuid| {
            let is_undecided = unreadable_sockets.contains(id) || undecided_sockets.contains(id);
            is_undecided || aside.contains_key(&KeyOf::Socket(*id))
        };
        let named: BTreeSet<Uuid> =
            self.sandboxes.registry.all().iter().filter_map(|entry| entry.record().life.guest()).collect();
        // One whose daemon died before the keeper had anything of it has files at most.
        let mut begun = with_files(&self.host().state_directory).unwrap_or_else(|error| {
            tracing::warn!(%error, "files of guests that were being made may stay until the next start");
            BTreeSet::new()
        });
        for entry in held.values() {
            match KeyOf::parse(&entry.key) {
                Some(KeyOf::Guest(id)) => {
                    begun.insert(id);
                }
                Some(KeyOf::Socket(id)) if self.fault_sockets.find(id).is_err() && !is_left(&id) => {
                    self.host().keeping.let_go(&entry.key);
                }
                // Those of snapshots the engine has gone through.
                Some(KeyOf::Socket(_) | KeyOf::Snapshot(_)) => {}
                None if entry.key == CATALOG || KeyOf::parse_aside(&entry.key).is_some() => {}
                None => {
                    tracing::warn!(key = entry.key, "the keeper holds something that is not of this daemon")
                }
            }
        }
        let is_unknown = |life: &RecordedLife| matches!(life, RecordedLife::Undecided { guest: None, .. });
        if self.sandboxes.registry.all().iter().any(|entry| is_unknown(&entry.record().life)) {
            tracing::error!("a sandbox's record cannot be read, and any guest may be its own: none is ended");
            return;
        }
        let unnamed = begun.difference(&named).filter(|guest| !aside.contains_key(&KeyOf::Guest(**guest)));
        unnamed.for_each(|guest| self.host().endings.end_unborn(*guest));
    }

    /// Ends guests that a keeper left which is gone.
    fn end_orphans(&self, held: &HashMap<String, HeldEntry>) -> anyhow::Result<()> {
        let holds_guests = held.keys().any(|key| matches!(KeyOf::parse(key), Some(KeyOf::Guest(_))));
        if holds_guests {
            return Ok(());
        }
        let known = self.sandboxes.registry.all().iter().filter_map(|entry| entry.show().pid).collect();
        Ok(orphans::end(self.host().keeping.socket(), &known)?)
    }

    /// Removes sockets at which the last daemon waited, or was about to wait, for a VMM, and that have no listener now.
    fn remove_stale_sockets(&self) -> anyhow::Result<()> {
        let unreadable = || format!("reading {}", self.host().run_directory.display());
        // The keeper has the listener of one that is not taken over yet.
        let undecided = self.fault_sockets.undecided();
        let undecided: BTreeSet<_> = undecided.into_iter().map(|id| self.fault_sockets.path_of(id)).collect();
        for file in std::fs::read_dir(&self.host().run_directory).with_context(unreadable)? {
            let path = file.with_context(unreadable)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_ours =
                (name.starts_with("handover-") || name.starts_with("faults-")) && name.ends_with(".sock");
            let is_aside = self.host().keeping.aside().keys().any(|key| match key {
                KeyOf::Socket(id) => self.fault_sockets.path_of(*id) == path,
                KeyOf::Guest(_) | KeyOf::Snapshot(_) => false,
            });
            let is_left = is_aside || undecided.contains(&path);
            if is_ours && !is_left && !self.fault_sockets.all().iter().any(|socket| socket.path == path) {
                std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            }
        }
        Ok(())
    }
}
