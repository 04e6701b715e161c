//! The keeper's holdings: how they are listed, and that nothing of them stays when they are forgotten.

use std::io::Read as _;
use std::os::fd::AsFd as _;

use rekindle_keeper::{FDS_PER_KEY_MAX, KeeperError, NOTE_BYTES_MAX, PROCESS, Refusal};
use serde_json::{Value, json};

use super::support::{TestKeeper, bytes_of, eventually, file_of};

#[test]
fn descriptors_and_notes_are_held_until_they_are_replaced_or_forgotten() {
    let keeper = TestKeeper::start();
    let client = &keeper.client;
    assert!(client.get("snapshot/1").expect("answers").is_none());
    let (memory, sets, other) = (file_of(b"memory"), file_of(b"sets"), file_of(b"other"));
    let both = [("root.memory", memory.as_fd()), ("root.sets", sets.as_fd())];
    client.put("snapshot/1", &json!({ "a": [1, null] }), &both).expect("held");
    client.add("snapshot/1", &[("more", other.as_fd())]).expect("held");
    drop((memory, sets));

    let mut held = keeper.another_client().get("snapshot/1").expect("answers").expect("it is held");
    assert_eq!(held.note, json!({ "a": [1, null] }));
    assert_eq!(held.fds.keys().collect::<Vec<_>>(), ["more", "root.memory", "root.sets"]);
    assert!(held.process.is_none());
    assert_eq!(bytes_of(held.fds.remove("root.memory").expect("held")), b"memory");
    assert_eq!(bytes_of(held.fds.remove("root.sets").expect("held")), b"sets");

    client.put("snapshot/1", &json!(2), &[("root.sets", other.as_fd())]).expect("held");
    client.note("snapshot/2", &Value::Null).expect("held");
    let mut held = client.get("snapshot/1").expect("answers").expect("it is held");
    assert_eq!((held.note, held.fds.len()), (json!(2), 3));
    assert_eq!(bytes_of(held.fds.remove("root.sets").expect("held")), b"other");
    let keys: Vec<_> = client.list().expect("answers").into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys, ["snapshot/1", "snapshot/2"]);

    client.forget("snapshot/1").expect("forgotten");
    client.forget("snapshot/1").expect("there is nothing to forget");
    assert!(client.get("snapshot/1").expect("answers").is_none());
}

#[test]
fn a_forgotten_or_replaced_descriptor_is_closed() {
    let keeper = TestKeeper::start();
    for replace in [true, false] {
        let (mut end, other_end) = std::io::pipe().expect("a pipe");
        keeper.client.put("key", &Value::Null, &[("pipe", other_end.as_fd())]).expect("held");
        drop(other_end);
        if replace {
            keeper.client.add("key", &[("pipe", file_of(b"").as_fd())]).expect("held");
        } else {
            keeper.client.forget("key").expect("forgotten");
        }
        assert_eq!(end.read(&mut [0]).expect("a pipe"), 0, "no writer of the pipe is left");
    }
}

#[test]
fn a_thousand_keys_are_held_listed_in_order_and_forgotten_without_a_trace() {
    const KEYS: usize = 1000;
    let keeper = TestKeeper::start();
    let fds_before = keeper.open_fds();
    for at in 0..KEYS {
        let (one, two) = (file_of(&at.to_ne_bytes()), file_of(b""));
        let fds = [("one", one.as_fd()), ("two", two.as_fd())];
        keeper.client.put(&format!("key/{at:04}"), &json!({ "at": at }), &fds).expect("held");
    }
    let listed = keeper.client.list().expect("answers");
    assert_eq!(listed.len(), KEYS);
    for (at, entry) in listed.iter().enumerate() {
        assert_eq!((&entry.key, &entry.note), (&format!("key/{at:04}"), &json!({ "at": at })));
        assert_eq!(entry.names, ["one", "two"]);
        let mut held = keeper.client.get(&entry.key).expect("answers").expect("it is held");
        assert_eq!(bytes_of(held.fds.remove("one").expect("held")), at.to_ne_bytes());
    }
    for entry in &listed {
        keeper.client.forget(&entry.key).expect("forgotten");
    }
    assert_eq!(keeper.client.list().expect("answers"), []);
    eventually("the last descriptor is closed", || keeper.open_fds() == fds_before);
}

#[test]
fn the_longest_notes_and_names_and_the_most_descriptors_are_told() {
    let keeper = TestKeeper::start();
    let long = "n".repeat(NOTE_BYTES_MAX - 2);
    let names: Vec<String> = (0..FDS_PER_KEY_MAX).map(|at| format!("{at:096}")).collect();
    let file = file_of(b"");
    let fds: Vec<_> = names.iter().map(|name| (name.as_str(), file.as_fd())).collect();
    for key in ["a", "b", "c", "d", "e"] {
        keeper.client.put(key, &json!(long), &fds).expect("held");
    }
    let held = keeper.client.get("c").expect("answers").expect("it is held");
    assert_eq!((held.fds.len(), held.note.as_str().map(str::len)), (FDS_PER_KEY_MAX, Some(long.len())));
    let listed = keeper.client.list().expect("answers");
    assert!(listed.iter().all(|entry| entry.names == names && entry.note == json!(long)));
    assert_eq!(listed.len(), 5);
}

#[test]
fn what_is_too_much_or_badly_named_is_refused_and_changes_nothing() {
    let keeper = TestKeeper::start();
    let client = &keeper.client;
    let file = file_of(b"");
    client.put("key", &json!("before"), &[("one", file.as_fd())]).expect("held");
    let before = client.list().expect("answers");
    let refusal = |result: Result<(), KeeperError>| match result {
        Err(KeeperError::Refused { refusal, .. }) => refusal,
        other => unreachable!("{other:?}"),
    };
    let fd = file.as_fd();
    let names: Vec<String> = (0..FDS_PER_KEY_MAX).map(|at| at.to_string()).collect();
    let fds: Vec<_> = names.iter().map(|name| (name.as_str(), fd)).collect();
    let long = json!("n".repeat(NOTE_BYTES_MAX - 1));
    for too_much in [
        refusal(client.put("key", &json!("after"), &fds)),
        refusal(client.put("other", &json!("after"), &[&fds[..], &fds[..1]].concat())),
        refusal(client.put("key", &long, &[("two", fd)])),
    ] {
        assert!(matches!(too_much, Refusal::TooMuch { .. }), "{too_much:?}");
    }
    for malformed in [
        refusal(client.put("key", &json!("after"), &[("two", fd), ("two", fd)])),
        refusal(client.put("key", &json!("after"), &[(PROCESS, fd)])),
        refusal(client.put("key", &json!("after"), &[("", fd)])),
        refusal(client.put("a key", &json!("after"), &[("two", fd)])),
        refusal(client.forget("")),
    ] {
        assert!(matches!(malformed, Refusal::Malformed { .. }), "{malformed:?}");
    }
    assert_eq!(client.list().expect("answers"), before);
}
