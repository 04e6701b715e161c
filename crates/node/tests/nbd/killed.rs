//! A server that is killed while clients write: the acknowledged writes are there, and nothing else has changed.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use rekindle_disk::{Access, Disk, DiskSource, Overlay, OverlayFiles};
use rekindle_kernel::fd_passing;
use rekindle_testkit::random::Random;

use crate::client::{Client, Style, WRITE, request};
use crate::stand::{PAGE, Stand, content, disk_of, word};

/// Variable with the directory of the process to be killed, and of the files of the disk it goes on with.
const SERVE_IN: &str = "REKINDLE_TEST_SERVE_DISK_IN";

const BYTES: usize = 48 * PAGE;
const WRITERS: usize = 3;
const SEED: u64 = 61;

/// Serves a disk until it is killed; nothing among the other tests.
#[test]
fn serves_until_it_is_killed() {
    let Some(directory) = std::env::var_os(SERVE_IN).map(PathBuf::from) else { return };
    let stand = Stand::new();
    let snapshot = stand.snapshot(&content(SEED, BYTES));
    let to_parent = UnixStream::connect(directory.join("files.sock")).unwrap();
    let (_, mut fds) = fd_passing::receive(&to_parent, &mut [0], 2).unwrap();
    let marks = fds.pop().unwrap();
    let overlay = Overlay::recover(OverlayFiles { written: fds.pop().unwrap(), marks }).unwrap();
    let source = DiskSource {
        base: Some(disk_of(&snapshot)),
        fetcher: stand.engine.fetcher().clone(),
        overlay,
        bytes: word(BYTES),
        access: Access::ReadWrite,
    };
    let _disk = Disk::serve(&directory.join("disk.sock"), source).unwrap();
    (&to_parent).write_all(b"!").unwrap();
    // The parent kills this process before it closes its end.
    (&to_parent).read_to_end(&mut Vec::new()).unwrap();
}

/// A process that serves a disk over `files`.
fn spawn(directory: &Path, listener: &UnixListener, files: &OverlayFiles) -> (Child, UnixStream) {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["killed::serves_until_it_is_killed", "--exact"])
        .env(SERVE_IN, directory)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (stream, _) = listener.accept().unwrap();
    fd_passing::send(&stream, b"f", &[files.written.as_fd(), files.marks.as_fd()]).unwrap();
    let mut byte = [0];
    (&stream).read_exact(&mut byte).unwrap();
    (child, stream)
}

/// Writes to its part of the disk until the server is gone. Acknowledged writes go into `model`; the last write, which
/// was not acknowledged, is returned.
fn write_until_killed(
    socket: &Path,
    writer: usize,
    seed: u64,
    model: &Mutex<(Vec<u8>, usize)>,
) -> (usize, Vec<u8>) {
    let mut random = Random::new(seed);
    // The parts of two writers meet within a page.
    let part = BYTES / WRITERS - 100;
    // The others may have written enough before this one could say a word.
    let Ok(client) = Client::connect(socket, Style::Oldest) else { return (0, Vec::new()) };
    loop {
        let start = writer * part + random.position(part - 1);
        let longest = [300, 3 * PAGE][random.position(2)].min((writer + 1) * part - start);
        let mut bytes = vec![0; 1 + random.position(longest)];
        random.fill(&mut bytes);
        let front = request(WRITE, 0, 1, word(start), u32::try_from(bytes.len()).unwrap());
        let sent = (&client.stream).write_all(&[front, bytes.clone()].concat());
        if sent.is_err() || client.answer().is_err() {
            return (start, bytes);
        }
        let mut model = model.lock().unwrap();
        model.0[start..start + bytes.len()].copy_from_slice(&bytes);
        model.1 += 1;
    }
}

#[test]
fn what_was_acknowledged_survives_a_kill_and_nothing_else_changes() {
    let stand = Stand::new();
    let snapshot = stand.snapshot(&content(SEED, BYTES));
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("files.sock")).unwrap();
    let mut files = Overlay::create(word(BYTES)).unwrap().files().unwrap();
    let model = Mutex::new((content(SEED, BYTES), 0));
    for round in 0..10 {
        let (mut child, stream) = spawn(directory.path(), &listener, &files);
        let socket = directory.path().join("disk.sock");
        let enough = model.lock().unwrap().1 + 30 + 17 * round;
        let unanswered: Vec<_> = std::thread::scope(|scope| {
            let (socket, model) = (&socket, &model);
            let seed = |writer| word(round * WRITERS + writer);
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| scope.spawn(move || write_until_killed(socket, writer, seed(writer), model)))
                .collect();
            while model.lock().unwrap().1 < enough {
                std::thread::yield_now();
            }
            child.kill().unwrap();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        child.wait().unwrap();
        drop(stream);
        let disk = stand.serve(BYTES, Some(disk_of(&snapshot)), Overlay::recover(files).unwrap());
        let found = Client::connect(&stand.socket(), Style::Structured).unwrap().read(0, BYTES).unwrap();
        let model = &mut model.lock().unwrap().0;
        for (at, byte) in found.iter().enumerate() {
            let may_be_there = |(start, bytes): &(usize, Vec<u8>)| {
                at.checked_sub(*start).and_then(|at| bytes.get(at)) == Some(byte)
            };
            let is_right = *byte == model[at] || unanswered.iter().any(may_be_there);
            assert!(is_right, "byte {at} after kill {round}");
        }
        *model = found;
        files = disk.overlay().files().unwrap();
    }
}
