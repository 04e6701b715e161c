//! The API served for one test.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use rekindle_api::client::Client;
use rekindle_api::types::{CreateSandbox, Labels, MemoryBacking, Sandbox, VmmKind};
use rekindle_api::{ListenOptions, Listeners};
use rekindle_settings::CONNECTIONS_DEFAULT;
use rekindle_testkit::fake_daemon::FakeDaemon;
use tempfile::TempDir;
use tokio::sync::oneshot;

/// An API that answers until this is dropped.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) fake: Arc<FakeDaemon>,
    pub(crate) directory: TempDir,
    end: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<()>>,
}

impl Served {
    /// Serves a new fake on a socket.
    pub(crate) fn new() -> Self {
        Self::with_connections(CONNECTIONS_DEFAULT)
    }

    /// The same with this many connections at most.
    pub(crate) fn with_connections(connections_max: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = ListenOptions {
            socket: socket_in(directory.path()),
            allowed_uids: Vec::new(),
            connections_max,
            tcp: None,
        };
        let listeners = Listeners::bind(&options).unwrap();
        Self::on(directory, listeners)
    }

    /// Serves a new fake on listeners whose socket is in `directory`.
    pub(crate) fn on(directory: TempDir, listeners: Listeners) -> Self {
        let fake = Arc::new(FakeDaemon::default());
        let (end, ended) = oneshot::channel();
        let control = Arc::clone(&fake);
        let serving = std::thread::spawn(move || {
            run(rekindle_api::serve(control, listeners, async {
                // The sender says it by going, too.
                drop(ended.await);
            }))
            .unwrap();
        });
        Self { fake, directory, end: Some(end), serving: Some(serving) }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        socket_in(self.directory.path())
    }

    pub(crate) fn client(&self) -> Client {
        Client::of_socket(self.socket())
    }

    /// A sandbox of one page.
    pub(crate) fn sandbox(&self, name: &str) -> Sandbox {
        self.client().create_sandbox(None, &wanted(name)).unwrap()
    }

    /// Says that the daemon is to end.
    pub(crate) fn end(&mut self) {
        drop(self.end.take());
    }

    /// Returns when the daemon has ended.
    pub(crate) fn ended(&mut self) {
        self.end();
        if let Some(serving) = self.serving.take() {
            serving.join().expect("serving meets no bug");
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.fake.release_pauses();
        self.end();
        if let Some(serving) = self.serving.take() {
            let joined = serving.join();
            assert!(joined.is_ok() || std::thread::panicking(), "serving met a bug");
        }
    }
}

/// A small sandbox to be made.
pub(crate) fn wanted(name: &str) -> CreateSandbox {
    CreateSandbox {
        domain: None,
        name: Some(name.parse().expect("it is a name")),
        labels: Labels::new(),
        vmm: VmmKind::Process,
        memory_bytes: 4096,
        backing: MemoryBacking::Shared,
        machine: None,
        checkpoints: None,
    }
}

pub(crate) fn socket_in(directory: &Path) -> PathBuf {
    directory.join("api.sock")
}

/// Runs something asynchronous as the daemon does.
pub(crate) fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(work)
}
