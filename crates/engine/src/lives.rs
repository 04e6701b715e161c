//! The lives of all snapshots, as tasks.

use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::life::{Life, Work};
use crate::sync::{Mutex, block_on, lock};

/// All lives that have begun. It is dropped after the stop signal, and then waits for their end.
#[derive(Debug)]
pub(crate) struct Lives {
    runtime: Handle,
    tasks: Mutex<JoinSet<()>>,
}

impl Lives {
    /// No lives yet; they will run on `runtime`.
    pub(crate) fn new(runtime: Handle) -> Self {
        Self { runtime, tasks: Mutex::new(JoinSet::new()) }
    }

    /// Begins a life. This needs nothing that the system could refuse.
    pub(crate) fn begin(&self, life: Life, work: Work) {
        let mut tasks = lock(&self.tasks);
        while let Some(ended) = tasks.try_join_next() {
            ended.expect("background work does not panic");
        }
        tasks.spawn_on(life.live(work), &self.runtime);
    }

    /// Begins other background work, which ends with the stop signal.
    pub(crate) fn begin_other(&self, work: impl Future<Output = ()> + Send + 'static) {
        lock(&self.tasks).spawn_on(work, &self.runtime);
    }
}

impl Drop for Lives {
    fn drop(&mut self) {
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        while let Some(ended) = block_on(tasks.join_next()) {
            ended.expect("background work does not panic");
        }
    }
}
