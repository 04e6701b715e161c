//! The protocol, word by word.

use rekindle_disk::{Access, Overlay};

use crate::client::{
    Answer, Client, DF, DISCONNECT, EINVAL, ENOSPC, ENOTSUP, EPERM, FAST_ZERO, FLUSH, FUA, NO_HOLE, READ,
    REQ_ONE, Style, TRIM, WRITE, WRITE_ZEROES, ask, contexts, exactly, go, greeted, haggling, send_option,
    some,
};
use crate::stand::{PAGE, Stand, content, disk_of, word};
use std::io::{Read as _, Write as _};

const BYTES: usize = 40 * PAGE + 512;

#[test]
fn options_are_answered_as_the_protocol_says() {
    let stand = Stand::new();
    let _disk = stand.disk(BYTES, None);
    let stream = haggling(&stand.socket()).unwrap();
    let kinds = |option, data: &[u8]| -> Vec<u32> {
        ask(&stream, option, data).unwrap().iter().map(|reply| reply.kind).collect()
    };
    let error = |number: u32| (1 << 31) + number;
    assert_eq!(kinds(3, b""), [2, 1], "one export");
    assert_eq!(kinds(3, b"x"), [error(3)]);
    assert_eq!(kinds(5, b""), [error(1)], "no TLS");
    assert_eq!(kinds(11, b""), [error(1)], "no extended requests");
    assert_eq!(kinds(999, b"what"), [error(1)]);
    assert_eq!(kinds(10, &contexts(b"", &[b"base:allocation"])), [error(3)], "before structured replies");
    assert_eq!(kinds(8, b"x"), [error(3)]);
    assert_eq!(kinds(8, b""), [1]);
    assert_eq!(kinds(9, &contexts(b"", &[])), [4, 1], "all contexts");
    assert_eq!(kinds(9, &contexts(b"", &[b"base:"])), [4, 1]);
    assert_eq!(kinds(9, &contexts(b"", &[b"other:"])), [1]);
    assert_eq!(kinds(10, &contexts(b"", &[b"base:"])), [1], "a choice names what it wants");
    assert_eq!(kinds(10, &contexts(b"no", &[b"base:allocation"])), [error(6)]);
    assert_eq!(kinds(6, &go(b"no", &[])), [error(6)]);
    assert_eq!(kinds(6, &go(b"", &[0, 1, 2, 3, 77])), [3, 3, 1]);
    assert_eq!(kinds(6, &go(b"", &[3])[..5]), [error(3)]);
    assert_eq!(kinds(6, &[&go(b"", &[3])[..], b"more"].concat()), [error(3)]);
    assert_eq!(kinds(6, &vec![7; 100_000]), [error(9)], "too long to be looked at");
    let replies = ask(&stream, 7, &go(b"", &[3])).unwrap();
    assert_eq!(replies[1].data, [&[0, 3][..], &1_u32.to_be_bytes(), &[0, 0, 16, 0, 2, 0, 0, 0]].concat());
    let mut client = Client::connect(&stand.socket(), Style::Structured).unwrap();
    assert_eq!((client.bytes, client.flags), (word(BYTES), 0b1001_1110_1101));
    assert_eq!(client.read(0, 3), Ok(vec![0; 3]));
}

#[test]
fn the_oldest_clients_are_answered_in_their_way() {
    let stand = Stand::new();
    let disk = stand.disk(BYTES, None);
    for (flags, zeroes) in [(0_u32, 124), (1, 124), (3, 0)] {
        let stream = greeted(&stand.socket()).unwrap();
        (&stream).write_all(&flags.to_be_bytes()).unwrap();
        send_option(&stream, 1, b"").unwrap();
        assert_eq!(u64::from_be_bytes(exactly(&stream).unwrap()), disk.bytes());
        let offered = u16::from_be_bytes(exactly(&stream).unwrap());
        assert_eq!(offered, 0b1001_0110_1101, "no DF without structured replies");
        assert_eq!(some(&stream, zeroes).unwrap(), vec![0; zeroes]);
        let (mut client, cookie) = (&stream, 5);
        client.write_all(&crate::client::request(READ, 0, cookie, 0, 1)).unwrap();
        assert_eq!(some(&stream, 17).unwrap()[4..8], [0; 4]);
    }
    let stream = haggling(&stand.socket()).unwrap();
    send_option(&stream, 1, b"another").unwrap();
    assert_eq!((&stream).read(&mut [0]).unwrap(), 0, "there is no other export, and no way to say so");
    let stream = haggling(&stand.socket()).unwrap();
    assert_eq!(ask(&stream, 2, b"").unwrap()[0].kind, 1);
    assert_eq!((&stream).read(&mut [0]).unwrap(), 0, "aborted");
}

#[test]
fn requests_that_cannot_be_are_refused_and_change_nothing() {
    let stand = Stand::new();
    let _disk = stand.disk(BYTES, None);
    let end = word(BYTES);
    for style in [Style::Oldest, Style::Structured] {
        let mut client = Client::connect(&stand.socket(), style).unwrap();
        assert_eq!(client.read(end, 1), Err(EINVAL));
        assert_eq!(client.read(end - 1, 2), Err(EINVAL));
        assert_eq!(client.read(u64::MAX, 2), Err(EINVAL));
        assert_eq!(client.read(0, 33 << 20), Err(EINVAL), "too long");
        assert_eq!(client.read(end, 0), Ok(vec![]));
        assert_eq!(client.write(end, b"x"), Err(ENOSPC));
        assert_eq!(client.write(end - 1, b"xy"), Err(ENOSPC));
        assert_eq!(client.write(u64::MAX, b"xy"), Err(ENOSPC));
        assert_eq!(client.write(0, &vec![1; 33 << 20]), Err(EINVAL), "too long");
        assert_eq!(client.write(end, b""), Ok(()));
        assert_eq!(client.without_data(TRIM, 0, 1, end), Err(EINVAL));
        assert_eq!(client.without_data(WRITE_ZEROES, 0, 1, end), Err(ENOSPC));
        assert_eq!(client.without_data(WRITE_ZEROES, NO_HOLE | FAST_ZERO, 0, 4096), Err(ENOTSUP));
        assert_eq!(client.without_data(WRITE_ZEROES, REQ_ONE, 0, 4096), Err(EINVAL));
        assert_eq!(client.without_data(FLUSH, NO_HOLE, 0, 0), Err(EINVAL));
        assert_eq!(client.without_data(FLUSH, FUA, 0, 0), Ok(()));
        assert_eq!(client.without_data(5, 0, 0, 4096), Err(EINVAL), "no cache");
        assert_eq!(client.without_data(8, 0, 0, 4096), Err(EINVAL), "no resize");
        assert_eq!(client.without_data(77, 0, 0, 4096), Err(EINVAL));
        let cookie = client.send(READ, DF, 0, 4096, &[]);
        let one_chunk = client.data(cookie, 0, 4096);
        assert_eq!(one_chunk, if style == Style::Oldest { Err(EINVAL) } else { Ok(vec![0; 4096]) });
        assert_eq!(client.read(0, BYTES), Ok(vec![0; BYTES]));
    }
    let mut client = Client::connect(&stand.socket(), Style::Structured).unwrap();
    assert_eq!(client.status(0, 0, 0), Err(EINVAL));
    assert_eq!(client.status(0, end, 1), Err(EINVAL));
    let mut client = Client::connect(&stand.socket(), Style::Oldest).unwrap();
    assert_eq!(client.without_data(7, 0, 0, 4096), Err(EINVAL), "nobody asked for the context");
}

#[test]
fn a_disk_that_is_only_read_says_so() {
    let stand = Stand::new();
    let snapshot = stand.snapshot(&content(3, BYTES));
    let overlay = Overlay::create(word(BYTES)).unwrap();
    let _disk = stand.serve_as(BYTES, Some(disk_of(&snapshot)), overlay, Access::ReadOnly);
    let mut client = Client::connect(&stand.socket(), Style::Structured).unwrap();
    assert_eq!(client.flags, 0b1_1000_1111);
    assert_eq!(client.write(0, b"x"), Err(EPERM));
    assert_eq!(client.without_data(TRIM, 0, 0, 4096), Err(EPERM));
    assert_eq!(client.without_data(WRITE_ZEROES, 0, 0, 4096), Err(EPERM));
    assert_eq!(client.without_data(FLUSH, 0, 0, 0), Ok(()));
    assert_eq!(client.read(0, BYTES), Ok(content(3, BYTES)));
}

#[test]
fn block_status_tells_data_from_zeroes() {
    let stand = Stand::new();
    let mut base = vec![0; BYTES];
    base[10 * PAGE..20 * PAGE].fill(1);
    let snapshot = stand.snapshot(&base);
    let _disk = stand.disk(BYTES, Some(&snapshot));
    let mut client = Client::connect(&stand.socket(), Style::Structured).unwrap();
    let page = word(PAGE);
    let (data, zero) = (0, 3);
    client.write(2 * page + 5, b"one byte makes a page").unwrap();
    client.without_data(WRITE_ZEROES, 0, 12 * page, page).unwrap();
    client.without_data(WRITE_ZEROES, NO_HOLE, 30 * page, page).unwrap();
    client.without_data(TRIM, 0, 19 * page + 1, 2 * page).unwrap();
    let all = [
        (2 * page, zero),
        (page, data),
        (7 * page, zero),
        (2 * page, data),
        (page, zero),
        (7 * page, data),
        (10 * page, zero),
        (page, data),
        (9 * page + 512, zero),
    ];
    assert_eq!(client.status(0, 0, word(BYTES)).unwrap(), all);
    assert_eq!(client.status(REQ_ONE, 0, word(BYTES)).unwrap(), all[..1]);
    assert_eq!(client.status(REQ_ONE, 11 * page + 7, 10).unwrap(), [(10, data)]);
    assert_eq!(client.status(0, 11 * page + 7, page).unwrap(), [(page - 7, data), (7, zero)]);
}

#[test]
fn reads_come_in_one_chunk_where_that_is_asked_for() {
    let stand = Stand::new();
    let bytes = content(9, BYTES);
    let snapshot = stand.snapshot(&bytes);
    let _disk = stand.disk(BYTES, Some(&snapshot));
    let mut client = Client::connect(&stand.socket(), Style::Structured).unwrap();
    let length = u32::try_from(BYTES).unwrap();
    let cookie = client.send(READ, DF, 0, length, &[]);
    let chunks = client.chunks(cookie).unwrap();
    assert_eq!((chunks.len(), chunks[0].kind, &chunks[0].data[8..]), (1, 1, &bytes[..]));
    let cookie = client.send(READ, 0, 0, length, &[]);
    assert!(client.chunks(cookie).unwrap().iter().any(|chunk| chunk.kind == 2), "holes are told as holes");
}

#[test]
fn what_was_asked_before_a_goodbye_is_answered() {
    let stand = Stand::new();
    let _disk = stand.disk(BYTES, None);
    let mut client = Client::connect(&stand.socket(), Style::Oldest).unwrap();
    let cookie = client.send(WRITE, 0, 0, 3, b"bye");
    client.send(DISCONNECT, 0, 0, 0, &[]);
    assert_eq!(client.done(cookie), Ok(()));
    assert!(client.answer().is_err(), "closed");
    let mut client = Client::connect(&stand.socket(), Style::Oldest).unwrap();
    assert_eq!(client.read(0, 3), Ok(b"bye".to_vec()));
}

#[test]
fn many_requests_at_once_are_all_answered() {
    let stand = Stand::new();
    let _disk = stand.disk(BYTES, None);
    let mut client = Client::connect(&stand.socket(), Style::Structured).unwrap();
    let mut cookies = Vec::new();
    for page in 0..40_u8 {
        let data = vec![page + 1; PAGE];
        cookies.push(client.send(WRITE, 0, u64::from(page) * 4096, 4096, &data));
    }
    for cookie in cookies {
        assert_eq!(client.answer().unwrap(), Answer::Simple { error: 0, cookie });
    }
    let cookies: Vec<_> =
        (0..40_u8).map(|page| (page, client.send(READ, 0, u64::from(page) * 4096, 4096, &[]))).collect();
    for (page, cookie) in cookies {
        assert_eq!(client.data(cookie, u64::from(page) * 4096, PAGE), Ok(vec![page + 1; PAGE]));
    }
}
