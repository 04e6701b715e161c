//! Shared parts of these tests: a keeper in a directory of its own, and looks at it from outside.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use rekindle_keeper::{Found, KeeperClient, PROCESS};
use rekindle_kernel::{ProcessHandle, Signal};
use serde_json::Value;
use tempfile::TempDir;

/// Long enough for anything that happens at all.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// The program under test.
pub(crate) fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_rekindle"))
}

/// A keeper; on drop its processes are killed, and it is told to end.
pub(crate) struct TestKeeper {
    pub(crate) client: KeeperClient,
    pub(crate) directory: TempDir,
}

impl TestKeeper {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let started = KeeperClient::connect_or_start(&directory.path().join("keeper.sock"), &program());
        let (client, found) = started.expect("a keeper starts");
        assert_eq!(found, Found::Started);
        Self { client, directory }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("keeper.sock")
    }

    /// Another client of the same keeper.
    pub(crate) fn another_client(&self) -> KeeperClient {
        let (client, found) =
            KeeperClient::connect_or_start(&self.socket(), &program()).expect("the keeper answers");
        assert_eq!(found, Found::Running);
        client
    }

    pub(crate) fn connect(&self) -> UnixStream {
        UnixStream::connect(self.socket()).expect("the keeper listens")
    }

    /// Descriptors the keeper has open.
    pub(crate) fn open_fds(&self) -> usize {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", self.client.identity().pid));
        fds.expect("the keeper lives").count()
    }

    pub(crate) fn process(&self) -> ProcessHandle {
        ProcessHandle::open(self.client.identity().pid).expect("the keeper lives")
    }
}

impl Drop for TestKeeper {
    fn drop(&mut self) {
        let Ok(client) = KeeperClient::connect(&self.socket()) else { return };
        for entry in client.list().unwrap_or_default() {
            let held = client.get(&entry.key).ok().flatten();
            if let Some(true) = held.map(|held| held.fds.contains_key(PROCESS))
                && let Some(process) = entry.process.filter(|process| process.exited.is_none())
                && let Ok(handle) = ProcessHandle::open(process.pid)
            {
                handle.signal(Signal::Kill).ok();
            }
        }
        client.shutdown(true).ok();
    }
}

/// Waits until `happened`, looking again and again.
pub(crate) fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !happened() {
        assert!(Instant::now() < deadline, "{what} did not happen within {LIMIT:?}");
        thread::yield_now();
    }
}

/// A file with these bytes and no other holder.
pub(crate) fn file_of(bytes: &[u8]) -> File {
    // The directory for temporary files may be in memory, and the keeper would take the file for a guest's memory.
    let mut file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
    file.write_all(bytes).expect("there is room");
    file
}

/// All bytes of a file that was got from the keeper.
pub(crate) fn bytes_of(fd: OwnedFd) -> Vec<u8> {
    let mut file = File::from(fd);
    io::Seek::rewind(&mut file).expect("a file has a start");
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).expect("a file can be read");
    bytes
}

/// The keeper's answer to these bytes, until it closes the connection or has answered once.
pub(crate) fn raw_answer(stream: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) -> Option<Value> {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    // A keeper that has read enough closes the connection; then its answer is there all the same.
    rekindle_kernel::fd_passing::send(stream, bytes, &fds).ok();
    let mut answer = Vec::new();
    let mut stream = stream;
    stream.set_read_timeout(Some(LIMIT)).expect("a limit can be set");
    let mut byte = [0];
    while !answer.ends_with(b"\n") && matches!(stream.read(&mut byte), Ok(1)) {
        answer.extend(byte);
    }
    serde_json::from_slice(&answer).ok()
}

/// A line of `/proc/<pid>/status`.
pub(crate) fn status_of(pid: u32, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
    line.expect("every process has it").trim().to_owned()
}
