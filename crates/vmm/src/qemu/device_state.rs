//! Device state out of a QEMU that stands, and into one that has not begun: a migration whose memory stays where it is.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::error::QemuError;
use super::qmp::Qmp;

/// Longest time of saving or loading. While it loads, QEMU touches guest memory, whose pages may be far away.
const MOVE_LIMIT: Duration = Duration::from_secs(60);
/// The most device state: the most that a blob of a manifest may have.
const STATE_BYTES_MAX: usize = rekindle_engine::limits::BLOB_BYTES_MAX;
/// The name of the descriptor that it goes through, in QEMU.
const FD_NAME: &str = "state";

/// Has every later migration leave out memory that is in a shared file, say how it gets on, and take no pauses.
pub(super) fn prepare(qmp: &mut Qmp) -> Result<(), QemuError> {
    let on = |capability: &str| json!({ "capability": capability, "state": true });
    let capabilities = json!({ "capabilities": [on("x-ignore-shared"), on("events")] });
    qmp.execute("prepare a pause", "migrate-set-capabilities", &capabilities)?;
    let parameters = json!({ "max-bandwidth": 1_u64 << 40 });
    qmp.execute("prepare a pause", "migrate-set-parameters", &parameters).map(drop)
}

/// The device state of a guest that stands.
pub(super) fn save(qmp: &mut Qmp) -> Result<Vec<u8>, QemuError> {
    const DOING: &str = "save its device state";
    let (ours, theirs) = pair()?;
    qmp.give(DOING, FD_NAME, theirs.as_fd())?;
    drop(theirs);
    let started = qmp.execute(DOING, "migrate", &json!({ "uri": format!("fd:{FD_NAME}") }));
    if started.is_err() {
        // It keeps the descriptor of a migration that it refused; one that has ended needs none closed.
        qmp.execute(DOING, "closefd", &json!({ "fdname": FD_NAME })).ok();
    }
    started?;
    let read = read_all(&ours);
    match (wait_end(qmp, DOING), read) {
        (Ok(End::Completed), Ok(state)) => Ok(state),
        (Ok(End::Completed), Err(error)) => Err(not(qmp, "saved", &error)),
        (Ok(End::Failed), _) => {
            let told = qmp.execute(DOING, "query-migrate", &Value::Null)?;
            Err(not(qmp, "saved", &told["error-desc"]))
        }
        (Err(error), _) => Err(error),
    }
}

/// Puts device state into a QEMU that waits for it; the guest then stands where it stood.
pub(super) fn load(qmp: &mut Qmp, state: &[u8]) -> Result<(), QemuError> {
    const DOING: &str = "load its device state";
    let (ours, theirs) = pair()?;
    qmp.give(DOING, FD_NAME, theirs.as_fd())?;
    drop(theirs);
    qmp.execute(DOING, "migrate-incoming", &json!({ "uri": format!("fd:{FD_NAME}") }))?;
    let written = ours
        .set_write_timeout(Some(MOVE_LIMIT))
        .and_then(|()| (&ours).write_all(state))
        .and_then(|()| ours.shutdown(Shutdown::Write));
    match (wait_end(qmp, DOING)?, written) {
        (End::Completed, _) => Ok(()),
        (End::Failed, Ok(())) => {
            let told = qmp.execute(DOING, "query-migrate", &Value::Null)?;
            Err(not(qmp, "loaded", &told["error-desc"]))
        }
        (End::Failed, Err(error)) => Err(not(qmp, "loaded", &error)),
    }
}

/// Ends a migration that another driver began and did not see the end of.
pub(super) fn give_up(qmp: &mut Qmp) -> Result<(), QemuError> {
    const DOING: &str = "give a pause up";
    qmp.execute(DOING, "migrate_cancel", &Value::Null)?;
    let deadline = Instant::now() + MOVE_LIMIT;
    loop {
        let told = qmp.execute(DOING, "query-migrate", &Value::Null)?;
        match told["status"].as_str() {
            None | Some("none" | "completed" | "failed" | "cancelled") => return Ok(()),
            Some(_) => drop(qmp.event(DOING, deadline, MOVE_LIMIT)?),
        }
    }
}

/// End of a migration.
enum End {
    Completed,
    Failed,
}

fn wait_end(qmp: &mut Qmp, doing: &'static str) -> Result<End, QemuError> {
    let deadline = Instant::now() + MOVE_LIMIT;
    loop {
        match qmp.event(doing, deadline, MOVE_LIMIT)?.migration() {
            Some("completed") => return Ok(End::Completed),
            Some("failed" | "cancelled") => return Ok(End::Failed),
            Some(_) | None => {}
        }
    }
}

fn pair() -> Result<(UnixStream, UnixStream), QemuError> {
    UnixStream::pair().map_err(|source| QemuError::Prepare { doing: "a socket for device state", source })
}

/// All that comes, as long as it is not more than device state ever is.
fn read_all(stream: &UnixStream) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(MOVE_LIMIT))?;
    let mut state = Vec::new();
    let max = u64::try_from(STATE_BYTES_MAX).expect("32 MiB");
    let read = stream.take(max + 1).read_to_end(&mut state)?;
    if read > STATE_BYTES_MAX {
        stream.shutdown(Shutdown::Both)?;
        let why = format!("it has more than {STATE_BYTES_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(state)
}

fn not(qmp: &Qmp, moved: &'static str, reason: &dyn std::fmt::Display) -> QemuError {
    QemuError::DeviceState { pid: qmp.pid(), moved, reason: reason.to_string() }
}
