//! The API before a daemon without an engine, for as long as `schemathesis.sh` asks it things.

use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use rekindle_api::{ListenOptions, Listeners};
use rekindle_settings::CONNECTIONS_DEFAULT;
use rekindle_testkit::fake_daemon::FakeDaemon;
use tokio::sync::oneshot;

use crate::served::run;

/// The socket to serve at.
const SERVE_AT: &str = "REKINDLE_TEST_SERVE_AT";

/// Serves until standard input ends; nothing among the other tests.
#[test]
fn serves_until_its_input_ends() {
    let Some(socket) = std::env::var_os(SERVE_AT).map(PathBuf::from) else { return };
    let listeners = Listeners::bind(&ListenOptions {
        socket,
        allowed_uids: Vec::new(),
        connections_max: CONNECTIONS_DEFAULT,
        tcp: None,
    })
    .unwrap();
    let (end, ended) = oneshot::channel::<()>();
    let reading = std::thread::spawn(move || {
        drop(std::io::stdin().read_to_end(&mut Vec::new()));
        drop(end);
    });
    let fake = FakeDaemon::default();
    fake.save_when_waited_for();
    run(rekindle_api::serve(Arc::new(fake), listeners, async {
        // The sender says it by going.
        drop(ended.await);
    }))
    .unwrap();
    reading.join().unwrap();
}
