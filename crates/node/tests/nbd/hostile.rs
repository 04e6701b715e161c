//! Clients that keep to nothing: each harms only its own connection.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use rekindle_disk::limits;
use rekindle_testkit::random::Random;

use crate::client::{
    BLOCK_STATUS, Client, OPTION_MAGIC, READ, Style, WRITE, WRITE_ZEROES, ask, greeted, haggling, request,
    send_option,
};
use crate::stand::{PAGE, Stand, content, word};

const BYTES: usize = 64 * PAGE;

/// A disk with content that must survive, and a client that must be served throughout.
struct Victim {
    stand: Stand,
    disk: rekindle_disk::Disk,
    client: Client,
    model: Vec<u8>,
}

impl Victim {
    fn new() -> Self {
        let stand = Stand::new();
        let model = content(41, BYTES);
        let snapshot = stand.snapshot(&model);
        let disk = stand.disk(BYTES, Some(&snapshot));
        let client = Client::connect(&stand.socket(), Style::Structured).unwrap();
        Self { stand, disk, client, model }
    }

    fn is_well(&mut self, after: &str) {
        assert!(self.client.read(0, BYTES).unwrap() == self.model, "after {after}");
        let mut new = Client::connect(&self.stand.socket(), Style::Oldest).unwrap();
        assert!(new.read(0, BYTES).unwrap() == self.model, "a new client after {after}");
    }

    fn transmitting(&self) -> UnixStream {
        Client::connect(&self.stand.socket(), Style::Structured).unwrap().stream
    }
}

/// Everything the server still says, until it closes.
fn until_closed(stream: &UnixStream) -> usize {
    let mut rest = Vec::new();
    // A server that closes with bytes unread resets the connection: closed it is.
    (&mut &*stream).read_to_end(&mut rest).ok();
    rest.len()
}

fn say(stream: &UnixStream, bytes: &[u8]) {
    // The server may have closed already.
    (&mut &*stream).write_all(bytes).ok();
}

#[test]
fn what_is_no_handshake_ends_the_connection() {
    let mut victim = Victim::new();
    let socket = victim.stand.socket();
    for (what, bytes) in [
        ("unknown flags", 0x8000_0003_u32.to_be_bytes().to_vec()),
        ("noise", [&3_u32.to_be_bytes()[..], &[0x55; 4000]].concat()),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ] {
        let stream = greeted(&socket).unwrap();
        say(&stream, &bytes);
        assert_eq!(until_closed(&stream), 0, "{what}");
        victim.is_well(what);
    }
}

#[test]
fn options_of_any_length_are_bounded() {
    let mut victim = Victim::new();
    let socket = victim.stand.socket();
    for length in [limits::OPTION_BYTES_SKIPPED_MAX + 1, u32::MAX] {
        let stream = haggling(&socket).unwrap();
        say(&stream, &OPTION_MAGIC.to_be_bytes());
        say(&stream, &[7_u32.to_be_bytes(), length.to_be_bytes()].concat());
        assert_eq!(until_closed(&stream), 0, "{length} bytes");
    }
    let stream = haggling(&socket).unwrap();
    let long = vec![0; usize::try_from(limits::OPTION_BYTES_SKIPPED_MAX).unwrap()];
    assert_eq!(ask(&stream, 7, &long).unwrap()[0].kind, (1 << 31) + 9);
    // Counts and lengths within an option that speak of more than it has.
    for data in [
        &b"\xff\xff\xff\xff"[..],
        b"\0\0\0\0\xff\xff",
        b"\0\0\0\0\xff\xff\xff\xff",
        b"\0\0\0\0\0\0\0\x01\xff\xff\xff\xff",
        b"\0\0\x20\0",
        b"",
    ] {
        for option in [6, 7, 9, 10] {
            assert_eq!(ask(&stream, option, data).unwrap()[0].kind, (1 << 31) + 3, "{option} {data:?}");
        }
    }
    for _ in 0..limits::OPTIONS_MAX {
        send_option(&stream, 3, b"").ok();
    }
    until_closed(&stream);
    victim.is_well("too many options");
}

#[test]
fn what_is_no_request_ends_the_connection() {
    let mut victim = Victim::new();
    for (what, bytes) in [
        ("noise", vec![0x99; 1000]),
        ("zeroes", vec![0; 28]),
        ("another magic", [&[0x25, 0x60, 0x95, 0x14][..], &[0; 24]].concat()),
        ("a request and noise", [request(READ, 0, 1, 0, 10), vec![1; 28]].concat()),
    ] {
        let stream = victim.transmitting();
        say(&stream, &bytes);
        until_closed(&stream);
        victim.is_well(what);
    }
}

#[test]
fn what_stops_half_way_changes_nothing() {
    let mut victim = Victim::new();
    let socket = victim.stand.socket();
    let greeting =
        [&3_u32.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes(), &[0, 0, 0, 7, 0, 0, 0, 6]].concat();
    for length in 0..greeting.len() {
        let stream = greeted(&socket).unwrap();
        say(&stream, &greeting[..length]);
    }
    victim.is_well("half handshakes");
    let whole = [request(WRITE, 0, 1, 5, 9000), vec![0xbb; 9000]].concat();
    for length in [1, 4, 27, 28, 29, 28 + 4091, 28 + 4096, 28 + 8999] {
        let stream = victim.transmitting();
        say(&stream, &whole[..length]);
        drop(stream);
    }
    victim.is_well("half writes");
    // One that stays open and says no more does not hold up a freeze.
    let stream = victim.transmitting();
    say(&stream, &whole[..28 + 8999]);
    victim.disk.freeze().thaw();
    victim.is_well("a write that is not whole yet");
}

#[test]
fn lengths_and_offsets_of_any_size_are_refused() {
    let mut victim = Victim::new();
    let stream = victim.transmitting();
    for kind in [READ, WRITE_ZEROES, BLOCK_STATUS, 4, 5, 99] {
        for (offset, length) in [(0, u32::MAX), (u64::MAX, 1), (u64::MAX, u32::MAX), (word(BYTES), 1)] {
            say(&stream, &request(kind, 0, 1, offset, length));
            let mut magic = [0; 4];
            (&stream).read_exact(&mut magic).unwrap();
            let rest = if magic == [0x67, 0x44, 0x66, 0x98] { 12 } else { 22 };
            crate::client::some(&stream, rest).unwrap();
        }
    }
    // A write of 4 GiB that never comes.
    say(&stream, &request(WRITE, 0, 1, 0, u32::MAX));
    say(&stream, &vec![1; 1 << 20]);
    victim.is_well("huge requests");
}

#[test]
fn a_client_that_takes_no_answers_harms_only_itself() {
    let mut victim = Victim::new();
    let stream = victim.transmitting();
    stream.set_nonblocking(true).unwrap();
    let read = request(READ, 4, 1, 0, u32::try_from(BYTES).unwrap());
    // Until neither side has room: a partial request stays behind, which is part of the point.
    while (&stream).write(&read).is_ok_and(|written| written == read.len()) {}
    victim.is_well("a client that does not read");
    victim.disk.freeze().thaw();
    drop(stream);
    victim.is_well("its end");
}

#[test]
fn more_connections_than_may_be_are_closed_and_those_there_are_served() {
    let mut victim = Victim::new();
    let socket = victim.stand.socket();
    let mut idle = Vec::new();
    let closed = loop {
        let stream = UnixStream::connect(&socket).unwrap();
        let mut greeting = Vec::new();
        (&stream).take(18).read_to_end(&mut greeting).unwrap();
        if greeting.is_empty() {
            break idle.len();
        }
        idle.push(stream);
    };
    assert_eq!(closed, limits::CONNECTIONS_MAX - 1, "the victim's is one");
    assert!(victim.client.read(0, BYTES).unwrap() == victim.model);
    drop(idle);
    // The server learns of the ends one by one.
    while Client::connect(&socket, Style::Oldest).is_err() {
        std::thread::yield_now();
    }
    victim.is_well("many connections");
}

#[test]
fn noise_at_every_step_harms_nobody_else() {
    let mut victim = Victim::new();
    let socket = victim.stand.socket();
    let mut random = Random::new(42);
    for round in 0..300 {
        let stream = match random.below(3) {
            0 => greeted(&socket).unwrap(),
            1 => haggling(&socket).unwrap(),
            _ => victim.transmitting(),
        };
        let mut bytes = vec![0; random.position(300)];
        random.fill(&mut bytes);
        if random.percent(50) {
            // Looks like an option or a request, with noise where lengths and kinds are; never one that writes.
            let mut front = if random.percent(50) {
                OPTION_MAGIC.to_be_bytes().to_vec()
            } else {
                vec![0x25, 0x60, 0x95, 0x13, 0, 0, 0, [0, 2, 3, 5, 7][random.position(5)]]
            };
            front.append(&mut bytes);
            bytes = front;
        }
        say(&stream, &bytes);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        until_closed(&stream);
        if round % 50 == 0 {
            victim.is_well("noise");
        }
    }
    victim.is_well("all noise");
}
