//! A daemon without an engine that listens where the program looks for one.

use std::sync::Arc;
use std::time::Duration;

use rekindle_api::{ListenError, ListenOptions, Listeners};
use rekindle_settings::CONNECTIONS_DEFAULT;
use rekindle_testkit::fake_daemon::FakeDaemon;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::program::Place;

/// Number of tries for a socket that the last daemon in a place may still have, and the time between.
const BIND_TRIES: usize = 1000;
const ASK_EVERY: Duration = Duration::from_millis(10);

/// A daemon that listens in a place until it is dropped.
pub(crate) struct ListeningDaemon {
    pub(crate) fake: Arc<FakeDaemon>,
    runtime: Option<Runtime>,
    end: Option<oneshot::Sender<()>>,
}

impl ListeningDaemon {
    /// Listens where the program looks for a daemon in this place.
    pub(crate) fn start(place: &Place) -> Self {
        Self::start_at(place, 1)
    }

    /// The same with events whose ids begin with this one.
    pub(crate) fn start_at(place: &Place, first_event: u64) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let socket = place.path("run/api.sock");
        std::fs::create_dir_all(socket.parent().expect("a directory")).expect("it can be made");
        let inside = runtime.enter();
        let options = ListenOptions {
            socket,
            allowed_uids: Vec::new(),
            connections_max: CONNECTIONS_DEFAULT,
            tcp: None,
        };
        // Programs that other tests fork meanwhile may have the last daemon's socket until they are executed.
        let listeners = std::iter::repeat_with(|| Listeners::bind(&options))
            .take(BIND_TRIES)
            .find(|bound| {
                let is_taken = matches!(bound, Err(ListenError::Taken { .. }));
                is_taken.then(|| std::thread::park_timeout(ASK_EVERY));
                !is_taken
            })
            .expect("the last daemon here lets go of its socket")
            .expect("the place is empty");
        drop(inside);
        let (end, ended) = oneshot::channel();
        let fake = Arc::new(FakeDaemon::with_events_from(first_event));
        fake.save_when_waited_for();
        fake.say("daemon.started");
        let control = Arc::clone(&fake);
        runtime.spawn(rekindle_api::serve(control, listeners, async { ended.await.unwrap_or_default() }));
        Self { fake, runtime: Some(runtime), end: Some(end) }
    }
}

impl Drop for ListeningDaemon {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(10));
        }
    }
}
