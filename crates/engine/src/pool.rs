//! A few threads of idle priority for work that keeps a processor or the disk busy. Callers wait as tasks, so waiting
//! work takes no thread.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::identity::SnapshotId;
use crate::sync::thread::{Builder, JoinHandle};
use crate::sync::{Condvar, Mutex, idle_priority, lock};

/// The owner of a pool's threads. Dropping it waits for work that has begun; the rest is not done.
#[derive(Debug)]
pub struct Pool {
    handle: PoolHandle,
    threads: Vec<JoinHandle<()>>,
}

/// A handle that gives work to a pool. Clones share the pool.
#[derive(Debug, Clone)]
pub struct PoolHandle(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// The work that has not begun: of the oldest snapshot first, and of one snapshot in the order it was given.
#[derive(Default)]
struct Queue {
    waiting: BTreeMap<(SnapshotId, u64), Work>,
    given: u64,
    ended: bool,
}

/// Does the work and tells the caller, unless the caller is gone.
type Work = Box<dyn FnOnce() + Send>;

impl Pool {
    /// Starts `threads` threads, all of them named `name`.
    pub fn start(name: &str, threads: usize) -> io::Result<Self> {
        let mut pool = Self { handle: PoolHandle(Arc::default()), threads: Vec::with_capacity(threads) };
        for _ in 0..threads {
            let shared = Arc::clone(&pool.handle.0);
            let thread = Builder::new().name(name.to_owned()).spawn(move || shared.work())?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// A handle to give it work.
    pub fn handle(&self) -> PoolHandle {
        self.handle.clone()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let given_up = {
            let mut queue = lock(&self.handle.0.queue);
            queue.ended = true;
            std::mem::take(&mut queue.waiting)
        };
        self.handle.0.changed.notify_all();
        drop(given_up);
        for thread in self.threads.drain(..) {
            thread.join().expect("work on a pool does not panic");
        }
    }
}

impl PoolHandle {
    /// Does `work`, which belongs to the snapshot `of`, on a thread of the pool. If this is dropped before the work
    /// begins, the work is not done; the pool outlives everyone who waits here.
    pub async fn run<T: Send + 'static>(
        &self,
        of: SnapshotId,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        self.run_if_lives(of, work).await.expect("the pool outlives its callers, and its work does not panic")
    }

    /// The same for callers that the pool may not outlive: none if it ended first.
    pub async fn run_if_lives<T: Send + 'static>(
        &self,
        of: SnapshotId,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (done, answer) = oneshot::channel();
        let work = Box::new(move || {
            if !done.is_closed() {
                // The caller may have gone meanwhile.
                done.send(work()).ok();
            }
        });
        self.give(of, work);
        answer.await.ok()
    }

    fn give(&self, of: SnapshotId, work: Work) {
        let mut queue = lock(&self.0.queue);
        let number = queue.given;
        queue.given += 1;
        queue.waiting.insert((of, number), work);
        drop(queue);
        self.0.changed.notify_one();
    }
}

impl Shared {
    fn work(&self) {
        if let Err(error) = idle_priority() {
            tracing::warn!(%error, "saving snapshots at normal priority");
        }
        while let Some(work) = self.next() {
            work();
        }
    }

    /// Waits for work; none once the pool has ended.
    fn next(&self) -> Option<Work> {
        let mut queue = lock(&self.queue);
        loop {
            if queue.ended {
                return None;
            }
            if let Some((_, work)) = queue.waiting.pop_first() {
                return Some(work);
            }
            queue = self.changed.wait(queue).expect("no thread panics while it holds a lock");
        }
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { waiting, given, ended } = self;
        out.debug_struct("Queue")
            .field("waiting", &waiting.len())
            .field("given", given)
            .field("ended", ended)
            .finish()
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc::channel;
    use std::task::{Context, Waker};

    use super::*;
    use crate::sync::block_on;

    /// A pool of one thread that is busy until the returned sender is dropped.
    fn busy() -> (Pool, std::sync::mpsc::Sender<()>) {
        let pool = Pool::start("busy", 1).expect("a thread");
        let (busy, until) = channel::<()>();
        let (begun, has_begun) = channel();
        let work = move || {
            begun.send(()).expect("the test waits");
            until.recv().expect_err("it is only dropped");
        };
        pool.handle().give(SnapshotId::new(), Box::new(work));
        has_begun.recv().expect("it begins");
        (pool, busy)
    }

    fn first_poll<T>(work: &mut std::pin::Pin<&mut impl Future<Output = T>>) {
        assert!(work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }

    #[test]
    fn the_work_of_older_snapshots_is_done_first() {
        let (pool, busy) = busy();
        let handle = pool.handle();
        let (older, newer) = (SnapshotId::from_bytes([1; 16]), SnapshotId::from_bytes([2; 16]));
        let done: Arc<Mutex<Vec<u32>>> = Arc::default();
        let note = |number| {
            let done = Arc::clone(&done);
            move || lock(&done).push(number)
        };
        let (mut third, mut first) = (pin!(handle.run(newer, note(3))), pin!(handle.run(older, note(1))));
        let mut second = pin!(handle.run(older, note(2)));
        first_poll(&mut third);
        first_poll(&mut first);
        first_poll(&mut second);
        drop(busy);
        block_on(third);
        assert_eq!(*lock(&done), [1, 2, 3]);
    }

    #[test]
    fn work_that_nobody_waits_for_any_more_is_not_done() {
        let (pool, busy) = busy();
        let (handle, id) = (pool.handle(), SnapshotId::new());
        {
            let mut given_up = pin!(handle.run(id, || panic!("nobody waits for it")));
            first_poll(&mut given_up);
        }
        drop(busy);
        assert_eq!(block_on(handle.run(id, || 7)), 7);
    }
}
