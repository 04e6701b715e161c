//! Tries again to decide the things that a start could not, publishes again what an accepted store lacks, and removes
//! files set aside when their time is over.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rekindle_engine::catalog::Kind;
use rekindle_engine::republish::LookedFor;
use rustix::io::Errno;

use super::Daemon;
use super::entry::Entry;
use super::events::About;
use super::record::{RecordedLife, SandboxRecord};
use crate::keeper::KeeperError;

/// Pause before what is undecided is tried again, the first time.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest such pause, and the time between two looks when nothing is undecided: another node may have accepted a
/// store.
const RETRY_LAST: Duration = Duration::from_secs(60);
/// Time between two looks at files that were set aside.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

/// The thread that tries again; a drop waits for its end.
#[derive(Debug)]
pub(super) struct Deciding {
    over: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Deciding {
    pub(super) fn start(daemon: &Arc<Daemon>) -> io::Result<Self> {
        let over = Arc::new((Mutex::new(false), Condvar::new()));
        let (daemon, heard) = (Arc::downgrade(daemon), Arc::clone(&over));
        let work = move || decide_until_over(&daemon, &heard);
        let thread = std::thread::Builder::new().name("deciding".into()).spawn(work)?;
        Ok(Self { over, thread: Some(thread) })
    }
}

impl Drop for Deciding {
    fn drop(&mut self) {
        *self.over.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.over.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic in it ended the program already.
            drop(thread.join());
        }
    }
}

fn decide_until_over(daemon: &Weak<Daemon>, (over, changed): &(Mutex<bool>, Condvar)) {
    let mut pause = RETRY_FIRST;
    let mut looked: Option<Instant> = None;
    loop {
        let Some(here) = daemon.upgrade() else { return };
        let is_decided = here.decide() & here.publish_what_is_missing();
        if looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY) {
            here.remove_old_aside();
            looked = Some(Instant::now());
        }
        drop(here);
        let is_over = over.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = if is_decided { RETRY_LAST } else { pause };
        pause = (pause * 2).min(RETRY_LAST);
        let waited = changed.wait_timeout_while(is_over, limit, |over| !*over);
        if *waited.unwrap_or_else(PoisonError::into_inner).0 {
            return;
        }
    }
}

impl Daemon {
    /// Tries once more to say how undecided snapshots and sandboxes are; whether none is left.
    fn decide(&self) -> bool {
        let snapshots = self.host.engine.decide().unwrap_or_else(|error| {
            tracing::warn!(%error, "undecided snapshots are tried again later");
            1
        });
        let mut left = 0;
        for entry in self.sandboxes.all() {
            let record = entry.record();
            if !matches!(record.life, RecordedLife::Undecided { .. }) {
                continue;
            }
            left += 1;
            match self.decide_sandbox(&record) {
                Ok(true) => left -= 1,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(sandbox = %record.id, error = format!("{error:#}"), "an undecided sandbox is tried again later");
                }
            }
        }
        let sockets = self.decide_sockets().unwrap_or_else(|error| {
            tracing::warn!(error = format!("{error:#}"), "undecided fault sockets are tried again later");
            false
        });
        if left == 0 && sockets {
            self.host.engine.end_replay();
        }
        snapshots == 0 && left == 0 && sockets
    }

    /// Publishes again what the store lacks if it took another one's place; whether that need not be tried again.
    fn publish_what_is_missing(&self) -> bool {
        let looked = self.host.engine.publish_what_is_missing().unwrap_or_else(|error| {
            tracing::warn!(%error, "published snapshots are looked for in the accepted store again later");
            LookedFor::Some
        });
        looked == LookedFor::All
    }

    /// True if a sandbox is undecided: it may run from a snapshot that was deleted.
    pub(super) fn has_undecided_sandboxes(&self) -> bool {
        let is_undecided = |entry: &Arc<Entry>| matches!(entry.record().life, RecordedLife::Undecided { .. });
        self.sandboxes.all().iter().any(is_undecided)
    }

    /// True if it is decided by now, or gone.
    fn decide_sandbox(&self, undecided: &SandboxRecord) -> anyhow::Result<bool> {
        let Some(entry) = self.sandboxes.get(undecided.id) else { return Ok(true) };
        // Its removal has to wait for this turn.
        let Ok(turn) = entry.turn_at_once("is being looked at") else { return Ok(false) };
        let key = SandboxRecord::key(undecided.id);
        let Some(value) = self.catalog.get(Kind::Sandbox, &key)? else { return Ok(true) };
        let record = SandboxRecord::decode(&key, &value);
        if matches!(record.life, RecordedLife::Undecided { .. }) {
            return Ok(false);
        }
        let held =
            self.host.keeping.client().list()?.into_iter().map(|held| (held.key.clone(), held)).collect();
        // Takes the place of the undecided one, which cannot be found any more.
        self.recover_sandbox(record, &held)?;
        let now = self.sandboxes.get(undecided.id).map(|entry| entry.record().life);
        let is_decided = !matches!(now, Some(RecordedLife::Undecided { .. }));
        if is_decided {
            turn.remove();
            self.events.say(
                "sandbox.running",
                About::sandbox(undecided.id),
                Some("it was undecided".to_owned()),
            );
        }
        Ok(is_decided)
    }

    fn remove_old_aside(&self) {
        match self.host.engine.aside().remove_older(self.host.settings().set_aside_kept) {
            Ok(removed) if removed.files > 0 => {
                tracing::warn!(
                    files = removed.files,
                    bytes = removed.bytes,
                    "layer files that were set aside are gone: their time was over"
                );
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "files that were set aside stay"),
        }
        if let Err(error) = self.end_old_aside(self.host.settings().set_aside_kept) {
            tracing::warn!(%error, "guests, snapshots and fault sockets that were set aside stay");
        }
    }
}

/// True if an error may be over a moment later: the system was short of something, a disk failed, or the keeper did not
/// answer.
pub(super) fn is_of_the_moment(error: &anyhow::Error) -> bool {
    let is_silence = |cause: &(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref::<KeeperError>(), Some(KeeperError::Unreachable { .. }))
    };
    if error.chain().any(is_silence) {
        return true;
    }
    let moments =
        [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN, Errno::IO, Errno::NOSPC, Errno::DQUOT];
    let code = |cause: &(dyn std::error::Error + 'static)| {
        let of_system = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        of_system.or_else(|| cause.downcast_ref::<Errno>().map(|errno| errno.raw_os_error()))
    };
    error.chain().filter_map(code).any(|code| moments.iter().any(|errno| errno.raw_os_error() == code))
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;
    use crate::keeper::KeeperClient;

    #[test]
    fn too_few_descriptors_are_of_the_moment_and_a_missing_file_is_not() {
        let of = |errno: Errno| anyhow::Error::from(io::Error::from(errno)).context("taking a guest over");
        assert!(is_of_the_moment(&of(Errno::MFILE)) && is_of_the_moment(&of(Errno::IO)));
        assert!(!is_of_the_moment(&of(Errno::NOENT)));
        let unknown = Err::<(), _>(io::Error::other("no")).context("looking").expect_err("it is one");
        assert!(!is_of_the_moment(&unknown));
    }

    #[test]
    fn a_keeper_that_does_not_answer_is_of_the_moment() {
        let directory = tempfile::tempdir().expect("a directory");
        let absent =
            KeeperClient::connect(&directory.path().join("keeper.sock")).expect_err("nobody listens");
        assert!(is_of_the_moment(&anyhow::Error::from(absent).context("taking a guest over")));
    }
}
