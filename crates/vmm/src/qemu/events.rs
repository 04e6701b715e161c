//! QEMU's own actions on a machine, which it reports on a control connection that a thread reads.
//!
//! An event says that the machine stopped, but not the reason: so the reader asks for its status after each of them,
//! and when a new driver begins to listen. A new driver thus also learns of events between two drivers.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rekindle_kernel::wakeup::{Wakeup, wait_readable};
use serde_json::Value;

use super::error::QemuError;
use super::qmp::{Event, Message, Qmp};

/// Longest wait for the rest of a line before the reader checks if it must end.
const TURN: Duration = Duration::from_millis(250);
/// Longest time to read the events of a QEMU that has ended.
const LAST_EVENTS_LIMIT: Duration = Duration::from_secs(2);
/// News that are remembered until they are taken.
const NEWS_MAX: usize = 16;
/// The reader's task, for errors.
const DOING: &str = "tell what happens";

/// The reader of a QEMU's events. Dropped, it ends; the connection lives on where it is kept.
#[derive(Debug)]
pub(super) struct QemuEvents {
    watch: MachineWatch,
    connection: UnixStream,
    over: Arc<Wakeup>,
    reader: Option<JoinHandle<()>>,
}

/// A VMM's own actions on its machine, to be asked from anywhere.
#[derive(Clone, Debug, Default)]
pub struct MachineWatch(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Seen>,
    finished: Condvar,
}

#[derive(Debug, Default)]
struct Seen {
    stopped: Option<String>,
    ending: Option<String>,
    news: VecDeque<String>,
    /// The last request of a disk that failed, until the machine runs again.
    failed_request: Option<String>,
    /// Nothing more will be seen.
    is_finished: bool,
}

impl QemuEvents {
    /// Reads the events of process `pid`, which prints to `log` and has these disks, in the machine's order.
    pub(super) fn follow(
        pid: u32,
        connection: UnixStream,
        log: PathBuf,
        disks: Vec<String>,
    ) -> io::Result<Self> {
        let (watch, over) = (MachineWatch::default(), Arc::new(Wakeup::new()?));
        let qmp = Qmp::new(pid, connection.try_clone()?, log);
        let mut reader = Reader { qmp, watch: watch.clone(), disks, over: Arc::clone(&over), asked: None };
        let thread = std::thread::Builder::new().name("qemu-events".into()).spawn(move || {
            if let Err(error) = reader.read_all() {
                tracing::debug!(%error, "the events of a QEMU are no longer read");
            }
            reader.watch.finish();
        })?;
        Ok(Self { watch, connection, over, reader: Some(thread) })
    }

    pub(super) fn watch(&self) -> MachineWatch {
        self.watch.clone()
    }
}

impl AsFd for QemuEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

impl Drop for QemuEvents {
    fn drop(&mut self) {
        self.over.wake();
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader of events does not panic");
        }
    }
}

impl MachineWatch {
    /// The reason that the machine stands still, if its VMM stopped it by itself.
    pub fn stopped(&self) -> Option<String> {
        self.lock().stopped.clone()
    }

    /// The account that a VMM which has ended gave of its end. Waits, for a bounded time, until all it said is read.
    pub fn ending(&self) -> Option<String> {
        let seen = self.lock();
        let is_open = |seen: &mut Seen| !seen.is_finished;
        let waited = self.0.finished.wait_timeout_while(seen, LAST_EVENTS_LIMIT, is_open);
        waited.unwrap_or_else(PoisonError::into_inner).0.ending.clone()
    }

    /// Events since the last call that did not stop the machine.
    pub fn take_news(&self) -> Vec<String> {
        self.lock().news.drain(..).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self) {
        self.lock().is_finished = true;
        self.0.finished.notify_all();
    }
}

/// The account that QEMU `pid`, which has ended, gave of its end on its connection for events.
pub fn told_end(pid: u32, connection: OwnedFd) -> Option<String> {
    let events = QemuEvents::follow(pid, UnixStream::from(connection), PathBuf::new(), Vec::new()).ok()?;
    events.watch().ending()
}

/// The status of a machine that QEMU stopped by itself, in words; none for one that runs, or that its driver stopped.
pub(super) fn stopped_by_itself(status: &str) -> Option<String> {
    let why = match status {
        "running" | "paused" | "inmigrate" | "prelaunch" | "postmigrate" | "finish-migrate" | "save-vm"
        | "restore-vm" => return None,
        "io-error" => "a request to a disk failed",
        "internal-error" => "QEMU or KVM met an internal error",
        "guest-panicked" => "its guest panicked",
        "shutdown" => "its guest powered off",
        "suspended" => "its guest suspended it",
        "watchdog" => "its watchdog expired",
        _ => "for a reason that rekindle does not know",
    };
    Some(format!("QEMU stopped the machine: {why} ({status})"))
}

/// State of the thread.
struct Reader {
    qmp: Qmp,
    watch: MachineWatch,
    disks: Vec<String>,
    over: Arc<Wakeup>,
    /// The number of the last question for the status.
    asked: Option<u64>,
}

impl Reader {
    /// Reads until QEMU has ended or the reader is to end.
    fn read_all(&mut self) -> Result<(), QemuError> {
        // A QEMU that has ended takes nothing any more, but what it said before can be read.
        if let Err(error) = self.qmp.begin(DOING) {
            tracing::debug!(%error, "a QEMU is not asked for its events");
        }
        self.ask();
        loop {
            if !self.qmp.has_read_ahead() {
                let waited = wait_readable([Some(self.qmp.as_fd()), Some(self.over.as_fd())], None);
                let waited = waited.map_err(|source| QemuError::Connection {
                    pid: self.qmp.pid(),
                    doing: DOING,
                    source,
                });
                let [said, over] = waited?;
                if over.readable {
                    return Ok(());
                }
                if !said.readable {
                    continue;
                }
            }
            match self.qmp.next(DOING, Instant::now() + TURN, TURN) {
                Ok(Message::Event(event)) => self.happened(&event),
                Ok(Message::Answer(answer)) if answer.id.is_some() && answer.id == self.asked => {
                    self.answered(answer.done.as_ref());
                }
                Ok(Message::Answer(_) | Message::Greeting(_)) | Err(QemuError::Silent { .. }) => {}
                Err(QemuError::Ended { .. }) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn ask(&mut self) {
        // An error says that it has ended.
        self.asked = self.qmp.tell(DOING, "query-status", &Value::Null, &[]).ok();
    }

    fn happened(&mut self, event: &Event) {
        let text = |field: &str| event.data[field].as_str().unwrap_or_default();
        match event.event.as_str() {
            "BLOCK_IO_ERROR" => {
                let failed = self.failed_request(event);
                tracing::warn!(pid = self.qmp.pid(), failed, action = text("action"), "a disk failed");
                self.watch.lock().failed_request = Some(failed);
            }
            "SHUTDOWN" => self.watch.lock().ending = Some(shut_down(text("reason"))),
            "RESET" if text("reason") != "snapshot-load" => {
                let mut seen = self.watch.lock();
                if seen.news.len() < NEWS_MAX {
                    seen.news.push_back(format!("the machine was reset ({}): it boots anew", text("reason")));
                }
            }
            _ => {}
        }
        self.ask();
    }

    fn failed_request(&self, event: &Event) -> String {
        let text = |field: &str| event.data[field].as_str().unwrap_or_default();
        let number = text("node-name").strip_prefix("disk").and_then(|number| number.parse::<usize>().ok());
        let disk = number.and_then(|number| self.disks.get(number)).map_or("?", String::as_str);
        format!("a {} of disk {disk} failed: {}", text("operation"), text("reason"))
    }

    fn answered(&mut self, told: Option<&Value>) {
        let status = told.and_then(|told| told["status"].as_str()).unwrap_or_default();
        let mut seen = self.watch.lock();
        seen.stopped = stopped_by_itself(status).map(|why| match (&seen.failed_request, status) {
            (Some(failed), "io-error") => format!("QEMU stopped the machine: {failed} ({status})"),
            (Some(_) | None, _) => why,
        });
        if status == "running" {
            seen.failed_request = None;
        }
    }
}

fn shut_down(reason: &str) -> String {
    match reason {
        "guest-shutdown" => "its guest powered off".to_owned(),
        "guest-reset" => "its guest reset the machine".to_owned(),
        "guest-panic" => "its guest panicked".to_owned(),
        "host-signal" => "QEMU was told to end by a signal".to_owned(),
        other => format!("QEMU shut the machine down ({other})"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};

    use serde_json::json;

    use super::*;

    /// The other end of the connection: a QEMU of which the test says what happens.
    struct Peer {
        stream: UnixStream,
        lines: BufReader<UnixStream>,
    }

    impl Peer {
        fn start() -> (Self, QemuEvents) {
            let (ours, theirs) = UnixStream::pair().expect("a pair");
            let events = QemuEvents::follow(7, theirs, "/no/log".into(), vec!["root".into(), "data".into()]);
            let lines = BufReader::new(ours.try_clone().expect("another descriptor"));
            (Self { stream: ours, lines }, events.expect("a reader"))
        }

        fn say(&mut self, said: &Value) {
            writeln!(self.stream, "{said}").expect("it is read");
        }

        /// Answers the next question for the status, and waits until that was understood: the next question comes after it.
        fn stands(&mut self, status: &str) {
            loop {
                let mut line = Vec::new();
                self.lines.read_until(b'\n', &mut line).expect("it is asked");
                let Ok(asked) = serde_json::from_slice::<Value>(&line) else { continue };
                let answer = match asked["execute"].as_str() {
                    Some("query-status") => json!({ "status": status }),
                    _ => json!({}),
                };
                self.say(&json!({ "return": answer, "id": asked["id"] }));
                if asked["execute"] == "query-status" {
                    return;
                }
            }
        }

        /// Something happened after which the machine stands so; the event behind it says that all of it was read.
        fn happens(&mut self, event: &str, data: &Value, status: &str) {
            self.say(&json!({ "event": event, "data": data }));
            self.stands(status);
            self.say(&json!({ "event": "NIC_RX_FILTER_CHANGED" }));
            self.stands(status);
        }
    }

    #[test]
    fn a_machine_that_its_qemu_stopped_is_told_with_the_reason_until_it_runs_again() {
        let (mut peer, events) = Peer::start();
        let watch = events.watch();
        peer.stands("running");
        let failed = json!({ "node-name": "disk1", "operation": "write", "action": "stop",
            "reason": "No space left on device" });
        peer.happens("BLOCK_IO_ERROR", &failed, "io-error");
        let stopped = watch.stopped().expect("it stands");
        assert_eq!(
            stopped,
            "QEMU stopped the machine: a write of disk data failed: No space left on device (io-error)"
        );
        peer.happens("RESUME", &Value::Null, "running");
        assert_eq!(watch.stopped(), None);
        peer.happens("STOP", &Value::Null, "paused");
        assert_eq!(watch.stopped(), None, "whoever drives it has paused it");
        for status in ["internal-error", "guest-panicked", "watchdog", "suspended", "something-new"] {
            peer.happens("STOP", &Value::Null, status);
            let stopped = watch.stopped().expect("it stands");
            assert!(stopped.ends_with(&format!("({status})")), "{stopped}");
        }
    }

    #[test]
    fn a_reset_is_told_once_and_an_end_with_its_reason() {
        let (mut peer, events) = Peer::start();
        let watch = events.watch();
        peer.stands("running");
        peer.happens("RESET", &json!({ "guest": true, "reason": "guest-reset" }), "running");
        assert_eq!(watch.take_news(), ["the machine was reset (guest-reset): it boots anew"]);
        assert!(watch.take_news().is_empty());
        peer.say(&json!({ "event": "SHUTDOWN", "data": { "guest": true, "reason": "guest-shutdown" } }));
        drop(peer);
        assert_eq!(watch.ending().as_deref(), Some("its guest powered off"));
    }

    #[test]
    fn what_happened_while_nobody_listened_is_read_from_the_connection() {
        let (mut ours, theirs) = UnixStream::pair().expect("a pair");
        let shutdown = json!({ "event": "SHUTDOWN", "data": { "reason": "guest-shutdown" } });
        writeln!(ours, "{shutdown}").expect("there is room");
        drop(ours);
        let events = QemuEvents::follow(7, theirs, "/no/log".into(), Vec::new()).expect("a reader");
        assert_eq!(events.watch().ending().as_deref(), Some("its guest powered off"));
    }
}
