//! The engine's hooks for tests: gates that hold background work, and parent reads that fail.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use rekindle_engine::hooks::Hooks;
use rekindle_engine::identity::SnapshotId;
use tokio::sync::Notify;

/// Points at which background work can be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Point {
    /// Before a snapshot's pages are compared.
    Compare,
    /// Before a snapshot waits for its parent's manifest.
    Manifest,
    /// Before a sealed snapshot's manifest goes into the catalog.
    Record,
    /// Before the keeper forgets a sealed snapshot's memory.
    Forget,
    /// Before a snapshot that was found in the store is recorded.
    Opened,
    /// Before the wait for another call that opens the same snapshot.
    OpenWaits,
}

/// The hooks of one engine.
#[derive(Debug, Default)]
pub struct TestHooks {
    gates: Mutex<Gates>,
    changed: Condvar,
    /// Wakes the tasks that wait at a point.
    let_go: Notify,
    reads: Mutex<ParentReads>,
}

#[derive(Debug, Default)]
struct Gates {
    /// Number of holders of each point.
    held: HashMap<Point, usize>,
    let_through: HashSet<(Point, SnapshotId)>,
    standing: HashSet<(Point, SnapshotId)>,
}

#[derive(Debug, Default)]
struct ParentReads {
    seen: u64,
    failing: Failing,
}

/// Reads of the parent that fail, counted from when this is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Failing {
    /// None.
    #[default]
    None,
    /// Only this one, the first being 0.
    Nth(u64),
    /// The first of every so many; 1 is all of them.
    OneOf(u64),
}

/// Holds a point until it is dropped.
#[derive(Debug)]
#[must_use = "dropped, it holds nothing"]
pub struct Held {
    hooks: Arc<TestHooks>,
    point: Point,
}

impl TestHooks {
    /// Holds all snapshots at `point` until the result is dropped.
    pub fn hold(self: &Arc<Self>, point: Point) -> Held {
        *self.gates().held.entry(point).or_default() += 1;
        Held { hooks: Arc::clone(self), point }
    }

    /// Lets one snapshot through a held point.
    pub fn let_through(&self, point: Point, snapshot: SnapshotId) {
        self.gates().let_through.insert((point, snapshot));
        self.tell();
    }

    /// Waits until `snapshot` is held at `point`; false if it does not get there within `limit`.
    pub fn wait_standing(&self, point: Point, snapshot: SnapshotId, limit: Duration) -> bool {
        let (gates, _) = self
            .changed
            .wait_timeout_while(self.gates(), limit, |gates| !gates.standing.contains(&(point, snapshot)))
            .expect("no thread panics while it holds a lock");
        gates.standing.contains(&(point, snapshot))
    }

    /// Sets the reads of the parent that fail.
    pub fn fail_parent_reads(&self, failing: Failing) {
        *self.reads() = ParentReads { seen: 0, failing };
    }

    /// Reads of the parent since the last [`Self::fail_parent_reads`].
    pub fn parent_reads(&self) -> u64 {
        self.reads().seen
    }

    /// Waits at a point, on a thread.
    fn stand(&self, point: Point, snapshot: SnapshotId) {
        let _standing = Standing::at(self, point, snapshot);
        let mut gates = self.gates();
        while gates.holds(point, snapshot) {
            gates = self.changed.wait(gates).expect("no thread panics while it holds a lock");
        }
    }

    /// Waits at a point, in a task.
    fn stand_in_task(&self, point: Point, snapshot: SnapshotId) -> BoxFuture<'_, ()> {
        async move {
            let _standing = Standing::at(self, point, snapshot);
            loop {
                let let_go = self.let_go.notified();
                if !self.gates().holds(point, snapshot) {
                    return;
                }
                let_go.await;
            }
        }
        .boxed()
    }

    fn tell(&self) {
        self.changed.notify_all();
        self.let_go.notify_waiters();
    }

    fn gates(&self) -> MutexGuard<'_, Gates> {
        self.gates.lock().expect("no thread panics while it holds a lock")
    }

    fn reads(&self) -> MutexGuard<'_, ParentReads> {
        self.reads.lock().expect("no thread panics while it holds a lock")
    }
}

/// Marks a snapshot as held at a point until this is dropped.
struct Standing<'a> {
    hooks: &'a TestHooks,
    at: (Point, SnapshotId),
}

impl<'a> Standing<'a> {
    fn at(hooks: &'a TestHooks, point: Point, snapshot: SnapshotId) -> Self {
        hooks.gates().standing.insert((point, snapshot));
        hooks.tell();
        Self { hooks, at: (point, snapshot) }
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        self.hooks.gates().standing.remove(&self.at);
    }
}

impl Gates {
    fn holds(&self, point: Point, snapshot: SnapshotId) -> bool {
        self.held.contains_key(&point) && !self.let_through.contains(&(point, snapshot))
    }
}

impl Hooks for TestHooks {
    fn before_compare(&self, snapshot: SnapshotId) -> BoxFuture<'_, ()> {
        self.stand_in_task(Point::Compare, snapshot)
    }

    fn parent_read(&self) -> io::Result<()> {
        let mut reads = self.reads();
        let number = reads.seen;
        reads.seen += 1;
        let fails = match reads.failing {
            Failing::None => false,
            Failing::Nth(nth) => number == nth,
            Failing::OneOf(many) => number.is_multiple_of(many),
        };
        if fails { Err(io::Error::other("a test fails this read")) } else { Ok(()) }
    }

    fn before_manifest(&self, snapshot: SnapshotId) -> BoxFuture<'_, ()> {
        self.stand_in_task(Point::Manifest, snapshot)
    }

    fn before_record(&self, snapshot: SnapshotId) -> BoxFuture<'_, ()> {
        self.stand_in_task(Point::Record, snapshot)
    }

    fn before_forget(&self, snapshot: SnapshotId) -> BoxFuture<'_, ()> {
        self.stand_in_task(Point::Forget, snapshot)
    }

    fn before_opened(&self, snapshot: SnapshotId) {
        self.stand(Point::Opened, snapshot);
    }

    fn before_open_waits(&self, snapshot: SnapshotId) {
        self.stand(Point::OpenWaits, snapshot);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut gates = self.hooks.gates();
        if let Some(holders) = gates.held.get_mut(&self.point) {
            *holders -= 1;
            if *holders == 0 {
                gates.held.remove(&self.point);
            }
        }
        drop(gates);
        self.hooks.tell();
    }
}
