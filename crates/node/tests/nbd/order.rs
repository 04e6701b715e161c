//! Writers that meet on one page, and servers that go while they write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rekindle_disk::Overlay;
use rekindle_testkit::random::Random;

use crate::client::{Client, Style, WRITE_ZEROES};
use crate::stand::{PAGE, Stand, content, disk_name, disk_of, word};

const PAGES: usize = 24;
const SECTOR: usize = 512;
const WRITERS: usize = 4;

/// Writes random sectors of its own, every fourth of the disk; what they hold at the end.
fn write_sectors(socket: &std::path::Path, writer: usize, rounds: u32) -> Vec<(usize, Vec<u8>)> {
    let mut client = Client::connect(socket, Style::Oldest).unwrap();
    let mut random = Random::new(word(writer));
    let mut last: Vec<Option<Vec<u8>>> = vec![None; PAGES * PAGE / SECTOR];
    for _ in 0..rounds {
        let sector = random.position(PAGES * PAGE / SECTOR / WRITERS) * WRITERS + writer;
        let mut bytes = vec![0; SECTOR];
        if random.percent(20) {
            client.without_data(WRITE_ZEROES, 0, word(sector * SECTOR), word(SECTOR)).unwrap();
        } else {
            random.fill(&mut bytes);
            client.write(word(sector * SECTOR), &bytes).unwrap();
        }
        assert!(client.read(word(sector * SECTOR), SECTOR).unwrap() == bytes, "a sector has one writer");
        last[sector] = Some(bytes);
    }
    let written = last.into_iter().enumerate();
    written.filter_map(|(sector, bytes)| Some((sector * SECTOR, bytes?))).collect()
}

#[test]
fn writers_of_parts_of_one_page_lose_nothing_of_each_other() {
    let stand = Stand::new();
    let mut model = content(11, PAGES * PAGE);
    let snapshot = stand.snapshot(&model);
    let disk = stand.disk(PAGES * PAGE, Some(&snapshot));
    let socket = stand.socket();
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let freezer = scope.spawn(|| {
            let mut freezes = 0;
            while !ended.load(Ordering::Relaxed) {
                let frozen = disk.freeze();
                let first = frozen.volume(disk_name()).unwrap();
                let mut before = vec![0; PAGES * PAGE];
                first.memfd.read_at(&mut before, 0).unwrap();
                thread::yield_now();
                let mut after = vec![0; PAGES * PAGE];
                first.memfd.read_at(&mut after, 0).unwrap();
                assert!(before == after, "a frozen disk changes");
                frozen.thaw();
                freezes += 1;
            }
            freezes
        });
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let socket = &socket;
                scope.spawn(move || write_sectors(socket, writer, 400))
            })
            .collect();
        for writer in writers {
            for (start, bytes) in writer.join().unwrap() {
                model[start..start + SECTOR].copy_from_slice(&bytes);
            }
        }
        ended.store(true, Ordering::Relaxed);
        assert!(freezer.join().unwrap() > 0);
    });
    let mut client = Client::connect(&stand.socket(), Style::Structured).unwrap();
    assert!(client.read(0, PAGES * PAGE).unwrap() == model, "every sector is its writer's last");
    let volume = disk.freeze().volume(disk_name()).unwrap();
    let child = stand.commit(Some(&snapshot), volume);
    assert!(stand.read(&child, PAGES * PAGE) == model);
}

#[test]
fn whatever_was_acknowledged_is_there_when_a_server_goes_while_clients_write() {
    let stand = Stand::new();
    let snapshot = stand.snapshot(&content(12, PAGES * PAGE));
    let mut disk = stand.disk(PAGES * PAGE, Some(&snapshot));
    let mut model = content(12, PAGES * PAGE);
    for round in 0..8 {
        let socket = stand.socket();
        let acknowledged = Arc::new(std::sync::Mutex::new(Vec::new()));
        let writer = thread::spawn({
            let acknowledged = Arc::clone(&acknowledged);
            move || {
                let mut client = Client::connect(&socket, Style::Oldest).unwrap();
                let mut random = Random::new(round);
                loop {
                    let start = random.position(PAGES * PAGE - 3000);
                    let mut bytes = vec![0; 1 + random.position(3000)];
                    random.fill(&mut bytes);
                    let length = u32::try_from(bytes.len()).unwrap();
                    let sent = crate::client::request(crate::client::WRITE, 0, 1, word(start), length);
                    let sent =
                        std::io::Write::write_all(&mut &client.stream, &[sent, bytes.clone()].concat());
                    if sent.is_err() || client.answer().is_err() {
                        // The last one was not acknowledged: it may be there in part.
                        return (start, bytes);
                    }
                    acknowledged.lock().unwrap().push((start, bytes));
                    client.bytes = 0;
                }
            }
        });
        while acknowledged.lock().unwrap().len() < 20 {
            thread::yield_now();
        }
        let files = disk.overlay().files().unwrap();
        disk.end();
        let (start, unanswered) = writer.join().unwrap();
        for (start, bytes) in acknowledged.lock().unwrap().drain(..) {
            model[start..start + bytes.len()].copy_from_slice(&bytes);
        }
        disk = stand.serve(PAGES * PAGE, Some(disk_of(&snapshot)), Overlay::recover(files).unwrap());
        let mut client = Client::connect(&stand.socket(), Style::Structured).unwrap();
        let found = client.read(0, PAGES * PAGE).unwrap();
        for (at, byte) in found.iter().enumerate() {
            let in_last = at.checked_sub(start).and_then(|at| unanswered.get(at));
            assert!(*byte == model[at] || Some(byte) == in_last, "byte {at} of round {round}");
        }
        model = found;
    }
}

#[test]
fn a_page_that_was_written_but_not_marked_is_what_it_was() {
    let stand = Stand::new();
    let model = content(13, PAGES * PAGE);
    let snapshot = stand.snapshot(&model);
    let overlay = Overlay::create(word(PAGES * PAGE)).unwrap();
    let files = overlay.files().unwrap();
    drop(overlay);
    // State that a kill leaves between the bytes and the mark, and that huge pages for shared memory make of every
    // write.
    let written = rekindle_kernel::Memfd::adopt(files.written.try_clone().unwrap()).unwrap();
    written.write_at(&[0xaa; 3 * PAGE], 5 * 4096).unwrap();
    let disk = stand.serve(PAGES * PAGE, Some(disk_of(&snapshot)), Overlay::recover(files).unwrap());
    let mut client = Client::connect(&stand.socket(), Style::Structured).unwrap();
    assert!(client.read(0, PAGES * PAGE).unwrap() == model);
    client.write(6 * 4096 + 7, b"part").unwrap();
    let mut model = model;
    model[6 * PAGE + 7..6 * PAGE + 11].copy_from_slice(b"part");
    assert!(client.read(0, PAGES * PAGE).unwrap() == model);
    let child = stand.commit(Some(&snapshot), disk.freeze().volume(disk_name()).unwrap());
    disk.end();
    assert!(stand.read(&child, PAGES * PAGE) == model);
}

#[test]
fn what_was_captured_is_sealed_and_never_served_again() {
    let stand = Stand::new();
    let disk = stand.disk(PAGES * PAGE, None);
    Client::connect(&stand.socket(), Style::Oldest).unwrap().write(0, b"kept").unwrap();
    let files = disk.overlay().files().unwrap();
    let child = stand.commit(None, disk.freeze().volume(disk_name()).unwrap());
    // The seal is the proof that no writable mapping and no write is left, though the server still stands.
    child.wait_manifest(rekindle_testkit::site::PATIENCE).unwrap();
    disk.end();
    assert!(Overlay::recover(files).is_err());
}
