//! A keeper in the test's own process: it outlives the engines that hand memory to it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use rekindle_engine::identity::SnapshotId;
use rekindle_engine::keep::{Keeper, KeptVolume};

/// Holds captured memory until it is told to forget it.
#[derive(Debug, Default)]
pub struct TestKeeper {
    state: Mutex<State>,
    forgotten: Condvar,
}

#[derive(Debug, Default)]
struct State {
    held: BTreeMap<SnapshotId, Vec<KeptVolume>>,
    refusing: bool,
    /// Snapshots whose memory it withholds, each with the number of refusals left.
    withheld: BTreeMap<SnapshotId, usize>,
    /// All requests to forget, by snapshot.
    forgets: Vec<SnapshotId>,
}

impl TestKeeper {
    /// Dies: its memory is gone, and an empty keeper takes its place.
    pub fn die(&self) {
        let held = std::mem::take(&mut self.state().held);
        drop(held);
    }

    /// Makes it refuse to keep anything, or ends that.
    pub fn refuse(&self, refusing: bool) {
        self.state().refusing = refusing;
    }

    /// Makes the next `times` requests for a snapshot's memory fail.
    pub fn withhold(&self, snapshot: SnapshotId, times: usize) {
        self.state().withheld.insert(snapshot, times);
    }

    /// Waits until it was told `times` times to forget a snapshot, even if it held nothing of it.
    pub fn wait_forgets(&self, snapshot: SnapshotId, times: usize) {
        let told = |state: &mut State| state.forgets.iter().filter(|id| **id == snapshot).count() < times;
        let state = self.forgotten.wait_while(self.state(), told);
        drop(state.expect("no thread panics while it holds a lock"));
    }

    /// Waits until it holds nothing; false if it still does after `limit`. Deleted snapshots are forgotten in the
    /// background, without a signal.
    pub fn wait_empty(&self, limit: Duration) -> bool {
        let waited = self.forgotten.wait_timeout_while(self.state(), limit, |state| !state.held.is_empty());
        !waited.expect("no thread panics while it holds a lock").1.timed_out()
    }

    /// Number of times it was told to forget a snapshot.
    pub fn forgets(&self, snapshot: SnapshotId) -> usize {
        self.state().forgets.iter().filter(|id| **id == snapshot).count()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds a lock")
    }
}

impl Keeper for TestKeeper {
    fn keep(&self, snapshot: SnapshotId, volumes: &[KeptVolume]) -> io::Result<()> {
        let again = again(volumes)?;
        let mut state = self.state();
        if state.refusing {
            return Err(io::Error::other("a test lets the keeper refuse"));
        }
        state.held.insert(snapshot, again);
        Ok(())
    }

    fn take_back(&self, snapshot: SnapshotId) -> io::Result<()> {
        let held = self.state().held.insert(snapshot, Vec::new());
        drop(held);
        Ok(())
    }

    fn kept(&self, snapshot: SnapshotId) -> io::Result<Option<Vec<KeptVolume>>> {
        let mut state = self.state();
        if let Some(times) = state.withheld.get_mut(&snapshot).filter(|times| **times > 0) {
            *times -= 1;
            return Err(io::Error::other("a test lets the keeper fail"));
        }
        state.held.get(&snapshot).map(|volumes| again(volumes)).transpose()
    }

    fn forget(&self, snapshot: SnapshotId) -> io::Result<()> {
        let mut state = self.state();
        state.forgets.push(snapshot);
        let held = state.held.remove(&snapshot);
        drop(state);
        drop(held);
        self.forgotten.notify_all();
        Ok(())
    }

    fn held(&self) -> io::Result<Vec<SnapshotId>> {
        Ok(self.state().held.keys().copied().collect())
    }
}

fn again(volumes: &[KeptVolume]) -> io::Result<Vec<KeptVolume>> {
    let again = |volume: &KeptVolume| {
        Ok(KeptVolume {
            name: volume.name.clone(),
            memory: volume.memory.try_clone()?,
            sets: volume.sets.try_clone()?,
        })
    };
    volumes.iter().map(again).collect()
}
