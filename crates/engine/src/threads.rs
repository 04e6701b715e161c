//! Starts threads, and returns their work if the system has none left. Also the runtime of calls to the store.

use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use tokio::runtime::Runtime;

use crate::limits;
use crate::sync::{Mutex, lock};

/// Starts a thread that does `work` with `given`; if the system has none left, returns `given` unchanged, and the
/// reason.
pub(crate) fn begin<G: Send + 'static, T: Send + 'static>(
    name: &str,
    given: G,
    work: impl FnOnce(G) -> T + Send + 'static,
) -> Result<JoinHandle<T>, (G, io::Error)> {
    let place = Arc::new(Mutex::new(Some(given)));
    let taken = Arc::clone(&place);
    let take = move |place: &Mutex<Option<G>>| lock(place).take();
    let begun = Builder::new().name(name.to_owned()).spawn(move || {
        let given = take(&taken).expect("nobody else takes what a thread was given that has begun");
        drop(taken);
        work(given)
    });
    begun.map_err(|error| {
        let given = lock(&place).take().expect("a thread that has not begun takes nothing");
        (given, error)
    })
}

/// A runtime whose end waits a bounded time for blocking calls: a call to a store that hangs never returns.
#[derive(Debug)]
pub(crate) struct StoreRuntime(Option<Runtime>);

impl StoreRuntime {
    pub(crate) fn start() -> io::Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime =
            builder.worker_threads(limits::RUNTIME_THREADS).thread_name("store").enable_all().build()?;
        Ok(Self(Some(runtime)))
    }
}

impl Deref for StoreRuntime {
    type Target = Runtime;

    fn deref(&self) -> &Runtime {
        self.0.as_ref().expect("only drop takes it")
    }
}

impl Drop for StoreRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_timeout(limits::RUNTIME_END);
        }
    }
}
