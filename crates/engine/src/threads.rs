//! Starts threads and, if the system has none left, gives back the work they were meant for.

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use crate::sync::{Mutex, lock};

/// Begins a thread that does `work` with `given`; if the system has none, returns `given` as it was, and the reason.
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
