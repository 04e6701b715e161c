//! A disk over a snapshot that is only in the store.

use rekindle_testkit::stores::{Fault, Operation, Rule};

use crate::client::{Client, READ, Style, WRITE, WRITE_ZEROES};
use crate::stand::{PAGE, Stand, content, word};

const PAGES: usize = 700;

#[test]
fn cold_pages_are_fetched_when_they_are_read() {
    let stand = Stand::new();
    let model = content(31, PAGES * PAGE);
    let (cold, snapshot) = stand.cold(&stand.snapshot(&model));
    let disk = cold.disk(PAGES * PAGE, Some(&snapshot));
    for style in [Style::Structured, Style::Oldest] {
        let mut client = Client::connect(&cold.socket(), style).unwrap();
        assert!(client.read(123, 300 * PAGE).unwrap() == model[123..123 + 300 * PAGE]);
        assert!(client.read(0, PAGES * PAGE).unwrap() == model);
    }
    let cold_requests = disk.stats().cold_requests;
    assert!(cold_requests > 0, "something was cold");
    assert_eq!(disk.watch().stalled(), None);
}

#[test]
fn a_part_of_a_cold_page_is_written_over_what_the_store_has() {
    let stand = Stand::new();
    let mut model = content(32, PAGES * PAGE);
    let (cold, snapshot) = stand.cold(&stand.snapshot(&model));
    let _disk = cold.disk(PAGES * PAGE, Some(&snapshot));
    let mut client = Client::connect(&cold.socket(), Style::Structured).unwrap();
    client.write(word(100 * PAGE + 9), &[7; 5 * PAGE]).unwrap();
    client.without_data(WRITE_ZEROES, 0, word(300 * PAGE + 10), word(100 * PAGE)).unwrap();
    model[100 * PAGE + 9..][..5 * PAGE].fill(7);
    model[300 * PAGE + 10..][..100 * PAGE].fill(0);
    assert!(client.read(0, PAGES * PAGE).unwrap() == model);
}

#[test]
fn a_cold_read_holds_up_neither_writes_nor_warm_reads_nor_a_freeze() {
    let stand = Stand::new();
    let model = content(33, PAGES * PAGE);
    let (cold, snapshot) = stand.cold(&stand.snapshot(&model));
    let disk = cold.disk(PAGES * PAGE, Some(&snapshot));
    let stalled = cold.site.faults.inject(Rule::always(Operation::Get, "layers/", Fault::Stall));
    let mut client = Client::connect(&cold.socket(), Style::Oldest).unwrap();
    let last = word((PAGES - 1) * PAGE);
    // A page of the base that has bytes, and a part of another: both wait.
    let with_bytes =
        (0..PAGES).find(|page| model[page * PAGE..][..PAGE].iter().any(|byte| *byte != 0)).unwrap();
    let read = client.send(READ, 0, word(with_bytes * PAGE), 4096, &[]);
    let write = client.send(WRITE, 0, word(with_bytes * PAGE) + 5, 3, b"new");
    cold.site.faults.wait_stalled();
    // The same connection, and another.
    client.write(last, &[1; PAGE]).unwrap();
    let mut other = Client::connect(&cold.socket(), Style::Structured).unwrap();
    assert_eq!(other.read(last, PAGE), Ok(vec![1; PAGE]));
    let frozen = disk.freeze();
    let kept = frozen.volume(crate::stand::disk_name()).unwrap().pages.kept;
    assert_eq!(kept.len(), 1, "what waits has changed nothing");
    frozen.thaw();
    drop(stalled);
    let mut answered = Vec::new();
    for _ in 0..2 {
        let crate::client::Answer::Simple { error: 0, cookie } = client.answer().unwrap() else {
            panic!("an answer without error")
        };
        if cookie == read {
            let found = crate::client::some(&client.stream, PAGE).unwrap();
            let before = &model[with_bytes * PAGE..][..PAGE];
            assert!(found[..5] == before[..5] && found[8..] == before[8..]);
        }
        answered.push(cookie);
    }
    answered.sort_unstable();
    assert_eq!(answered, [read, write]);
    assert_eq!(other.read(word(with_bytes * PAGE) + 5, 3), Ok(b"new".to_vec()));
}

#[test]
fn a_store_that_fails_makes_requests_wait_and_says_why() {
    let stand = Stand::new();
    let model = content(34, PAGES * PAGE);
    let (cold, snapshot) = stand.cold(&stand.snapshot(&model));
    let disk = cold.disk(PAGES * PAGE, Some(&snapshot));
    let failing = cold.site.faults.inject(Rule::always(Operation::Get, "layers/", Fault::Fail));
    let mut client = Client::connect(&cold.socket(), Style::Structured).unwrap();
    let cookie = client.send(READ, 0, 0, u32::try_from(PAGES * PAGE).unwrap(), &[]);
    let reason = loop {
        if let Some(reason) = disk.watch().stalled() {
            break reason;
        }
        std::thread::yield_now();
    };
    assert!(!reason.is_empty());
    drop(failing);
    assert!(client.data(cookie, 0, PAGES * PAGE).unwrap() == model, "never an error, never a wrong byte");
    assert_eq!(disk.watch().stalled(), None);
}

#[test]
fn a_disk_ends_while_requests_wait() {
    let stand = Stand::new();
    let (cold, snapshot) = stand.cold(&stand.snapshot(&content(35, PAGES * PAGE)));
    let disk = cold.disk(PAGES * PAGE, Some(&snapshot));
    let _stalled = cold.site.faults.inject(Rule::always(Operation::Get, "layers/", Fault::Stall));
    let mut client = Client::connect(&cold.socket(), Style::Oldest).unwrap();
    // More than may wait: the last ones are not even read.
    for page in 0..200 {
        client.send(READ, 0, page * 4096, 4096, &[]);
    }
    cold.site.faults.wait_stalled();
    let frozen = disk.freeze();
    drop(frozen);
    disk.end();
    while client.answer().is_ok_and(|_| crate::client::some(&client.stream, PAGE).is_ok()) {}
}
