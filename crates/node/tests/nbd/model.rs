//! Random requests over several connections, with freezes, pauses and new servers between them, against an array of
//! bytes.

use std::sync::Arc;

use rekindle_disk::{Disk, Overlay};
use rekindle_engine::snapshot::Snapshot;
use rekindle_testkit::random::Random;

use crate::client::{Client, FAST_ZERO, FLUSH, FUA, NO_HOLE, Style, TRIM, WRITE, WRITE_ZEROES};
use crate::stand::{PAGE, Stand, content, disk_name, disk_of, word};

/// Not whole pages, and the pages of no whole number of stripes.
const BYTES: usize = 300 * PAGE + 1536;

const STEPS: u32 = 1200;

/// A guest's disk over a line of snapshots, and what every byte of it must be.
struct Machine {
    stand: Stand,
    disk: Option<Disk>,
    snapshot: Option<Arc<Snapshot>>,
    clients: Vec<Client>,
    model: Vec<u8>,
    random: Random,
}

impl Machine {
    fn new(seed: u64) -> Self {
        let stand = Stand::new();
        let mut random = Random::new(seed);
        // With or without something to stand on.
        let (snapshot, model) = if random.percent(70) {
            let model = content(random.number(), BYTES);
            (Some(stand.snapshot(&model)), model)
        } else {
            (None, vec![0; BYTES])
        };
        let disk = Some(stand.disk(BYTES, snapshot.as_deref()));
        let mut machine = Self { stand, disk, snapshot, clients: Vec::new(), model, random };
        machine.connect();
        machine
    }

    fn connect(&mut self) {
        let styles = [Style::Structured, Style::Oldest, Style::Structured];
        let socket = self.stand.socket();
        self.clients = styles.map(|style| Client::connect(&socket, style).unwrap()).into();
    }

    /// A range that begins and ends where a page does or does not.
    fn range(&mut self) -> (usize, usize) {
        let start = self.random.position(BYTES);
        let start = if self.random.percent(40) { start / PAGE * PAGE } else { start };
        let longest = (BYTES - start).min([700, 3 * PAGE, 150 * PAGE][self.random.position(3)]);
        let length = 1 + self.random.position(longest);
        match self.random.below(10) {
            0..4 => (start, length.next_multiple_of(PAGE).min(BYTES - start)),
            4 => (start, BYTES - start),
            _ => (start, length),
        }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..35 => self.write(),
            35..50 => self.zero(),
            50..60 => self.discard(),
            60..85 => self.read(),
            85..90 => self.write_while_frozen(),
            90..93 => self.restart(),
            93..96 => self.pause(),
            96..98 => self.connect(),
            _ => self.flush(),
        }
    }

    fn client(&mut self) -> usize {
        self.random.position(self.clients.len())
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        if !self.random.percent(10) {
            self.random.fill(&mut bytes);
        }
        bytes
    }

    fn write(&mut self) {
        let ((start, length), client) = (self.range(), self.client());
        let bytes = self.bytes(length);
        self.clients[client].write(word(start), &bytes).unwrap();
        self.model[start..start + length].copy_from_slice(&bytes);
    }

    fn zero(&mut self) {
        let ((start, length), client) = (self.range(), self.client());
        let flags = [0, NO_HOLE, FAST_ZERO, FUA][self.random.position(4)];
        self.clients[client].without_data(WRITE_ZEROES, flags, word(start), word(length)).unwrap();
        self.model[start..start + length].fill(0);
    }

    /// Whole pages become zero, the others stay: stricter than the protocol, which lets them be anything.
    fn discard(&mut self) {
        let ((start, length), client) = (self.range(), self.client());
        self.clients[client].without_data(TRIM, 0, word(start), word(length)).unwrap();
        let end = if start + length == BYTES { BYTES } else { (start + length) / PAGE * PAGE };
        let start = start.next_multiple_of(PAGE);
        if start < end {
            self.model[start..end].fill(0);
        }
    }

    fn read(&mut self) {
        let ((start, length), client) = (self.range(), self.client());
        let found = self.clients[client].read(word(start), length).unwrap();
        assert!(found == self.model[start..start + length], "{length} bytes from {start} are wrong");
    }

    fn flush(&mut self) {
        let client = self.client();
        self.clients[client].without_data(FLUSH, 0, 0, 0).unwrap();
    }

    /// Requests to a frozen disk are not in the volume that is taken of it, and are done after it goes on.
    fn write_while_frozen(&mut self) {
        let ((start, length), client) = (self.range(), self.client());
        let bytes = self.bytes(length);
        let disk = self.disk.as_ref().unwrap();
        let frozen = disk.freeze();
        let kept = frozen.volume(disk_name()).unwrap().pages.kept;
        let cookie = self.clients[client].send(WRITE, 0, word(start), u32::try_from(length).unwrap(), &bytes);
        let volume = frozen.volume(disk_name()).unwrap();
        assert!(volume.pages.kept == kept, "a frozen disk changes");
        frozen.thaw();
        self.clients[client].done(cookie).unwrap();
        self.model[start..start + length].copy_from_slice(&bytes);
    }

    /// The server goes, and the next one has its files.
    fn restart(&mut self) {
        let disk = self.disk.take().unwrap();
        let files = disk.overlay().files().unwrap();
        if self.random.percent(30) {
            // As if it were killed in a pause.
            drop(disk.freeze());
        }
        disk.end();
        let overlay = Overlay::recover(files).unwrap();
        let base = self.snapshot.as_deref().map(disk_of);
        self.disk = Some(self.stand.serve(BYTES, base, overlay));
        self.connect();
        self.check();
    }

    /// The writes become a child snapshot, and the disk goes on over that.
    fn pause(&mut self) {
        let disk = self.disk.take().unwrap();
        let volume = disk.freeze().volume(disk_name()).unwrap();
        let child = self.stand.commit(self.snapshot.as_ref(), volume);
        disk.end();
        assert!(self.stand.read(&child, BYTES) == self.model, "the snapshot is the disk");
        if self.random.percent(50) {
            child.wait_manifest(rekindle_testkit::site::PATIENCE).unwrap();
            assert!(self.stand.read(&child, BYTES) == self.model, "the sealed snapshot is the disk");
        }
        self.disk = Some(self.stand.disk(BYTES, Some(&child)));
        self.snapshot = Some(child);
        self.connect();
    }

    fn check(&mut self) {
        for client in &mut self.clients {
            assert!(client.read(0, BYTES).unwrap() == self.model, "the whole disk");
        }
    }
}

fn history(seed: u64) {
    println!("seed {seed}");
    let mut machine = Machine::new(seed);
    for _ in 0..STEPS {
        machine.step();
    }
    machine.check();
    machine.pause();
    machine.check();
}

#[test]
fn histories_read_as_an_array_of_bytes_does() {
    (1..=6).for_each(history);
}
