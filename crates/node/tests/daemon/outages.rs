//! Stores and disks that fail, and daemons that start while they do.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use rekindle_api::types::{
    CreateSandbox, MemoryBacking, SandboxState, SnapshotState, StoreVerificationState,
};
use rekindle_testkit::black_box::{BlackBox, Told};
use rekindle_testkit::skip::skipped;

use crate::support::{Node, Outage, create, files_in, program, rewrite};

#[test]
fn case_31_an_upload_that_failed_is_tried_again_by_the_next_daemon() {
    let mut node = Node::start();
    let outage = Outage::of(&node.place.store_directory());
    node.filled("a", 1);
    node.pause("a", "base");
    node.wait("base", SnapshotState::Sealed);
    node.eventually("a failed upload being told of", || {
        node.client.snapshot("base").is_ok_and(|snapshot| snapshot.reason.is_some())
    });
    node.crash();
    assert_eq!(node.client.snapshot("base").expect("it is listed").state, SnapshotState::Sealed);
    outage.end();
    node.wait("base", SnapshotState::Published);
    assert_eq!(node.client.snapshot("base").expect("it is listed").reason, None);
    node.resume("a");
    node.assert_verified("a");
}

#[test]
fn case_35_a_start_wipes_nothing_that_is_nowhere_else() {
    let mut node = Node::start();
    let outage = Outage::of(&node.place.store_directory());
    node.filled("a", 1);
    node.pause("a", "first");
    node.resume("a");
    node.told("a").rewrite(rewrite(2)).expect("rewrites");
    node.pause("a", "second");
    node.wait("second", SnapshotState::Sealed);
    let layers = node.place.state_directory().join("layers");
    let before = files_in(&layers).len();
    assert!(before > 0);
    node.crash();
    node.crash();
    assert_eq!(files_in(&layers).len(), before);
    node.resume("a");
    node.assert_verified("a");
    node.resumed("first", "b");
    node.assert_verified("b");
    outage.end();
    node.wait("second", SnapshotState::Published);
}

#[test]
fn case_25_layer_files_that_were_cut_short_or_damaged_are_not_taken_for_good() {
    for damage in [cut_short, overwrite] {
        let mut node = Node::start();
        node.filled("a", 1);
        node.pause("a", "base");
        node.wait("base", SnapshotState::Published);
        node.kill();
        let layers = files_in(&node.place.state_directory().join("layers"));
        assert!(!layers.is_empty());
        layers.iter().for_each(|layer| damage(layer));
        node.start_again();
        node.resume("a");
        node.assert_verified("a");
    }
}

#[test]
fn a_daemon_starts_while_its_store_is_away_and_publishes_when_it_is_back() {
    let mut node = Node::start();
    let (store, away) = (node.place.store_directory(), node.place.state_directory().join("away"));
    node.filled("a", 1);
    node.pause("a", "first");
    node.wait("first", SnapshotState::Published);
    node.kill();
    fs::rename(&store, &away).expect("a directory is moved");
    node.begin_again();
    node.eventually("the daemon saying that its store is away", || {
        let said = node.client.readiness();
        said.is_ok_and(|said| said.ready && said.reasons.iter().any(|why| why.contains("is it mounted?")))
    });
    node.resume("a");
    node.assert_verified("a");
    node.told("a").rewrite(rewrite(2)).expect("rewrites");
    node.pause("a", "second");
    node.wait("second", SnapshotState::Sealed);
    assert!(!store.exists(), "nothing is made in its place");
    fs::rename(&away, &store).expect("a directory is moved");
    node.wait("second", SnapshotState::Published);
    node.eventually("the daemon having nothing to say of its store", || {
        node.client.readiness().is_ok_and(|said| said.ready && said.reasons.is_empty())
    });
    node.resume("a");
    node.assert_verified("a");
}

#[test]
fn a_store_that_was_swapped_is_published_to_by_nobody() {
    let mut node = Node::start();
    let (store, away) = (node.place.store_directory(), node.place.state_directory().join("away"));
    node.filled("a", 1);
    node.pause("a", "first");
    node.wait("first", SnapshotState::Published);
    // While it runs, and while it does not.
    for (name, restart) in [("second", false), ("third", true)] {
        fs::rename(&store, &away).expect("a directory is moved");
        fs::create_dir(&store).expect("a directory");
        if restart {
            node.kill();
            node.begin_again();
        }
        node.resume("a");
        node.told("a").rewrite(rewrite(3)).expect("rewrites");
        node.pause("a", name);
        node.eventually("a publish that failed for the store", || {
            let shown = node.client.snapshot(name);
            shown.is_ok_and(|shown| shown.reason.is_some_and(|why| why.contains("the store is away")))
        });
        assert!(files_in(&store).is_empty(), "nothing is written to it");
        fs::remove_dir(&store).expect("nothing is in it");
        fs::rename(&away, &store).expect("a directory is moved");
        node.wait(name, SnapshotState::Published);
    }
}

#[test]
fn an_older_copy_of_the_store_is_away_until_a_person_accepts_it_and_costs_nothing() {
    let mut node = Node::start();
    let (store, older) = (node.place.store_directory(), node.place.state_directory().join("older"));
    node.filled("a", 1);
    node.pause("a", "first");
    node.wait("first", SnapshotState::Published);
    node.eventually("the sign before the last being gone", || files_in(&store.join("nodes")).len() == 1);
    copy_directory(&store, &older);
    node.resume("a");
    node.told("a").rewrite(rewrite(2)).expect("rewrites");
    node.pause("a", "second");
    node.wait("second", SnapshotState::Published);
    node.kill();
    fs::remove_dir_all(&store).expect("it is there");
    copy_directory(&older, &store);
    node.begin_again();
    let says = |reasons: &[String]| {
        reasons.iter().any(|why| why.contains("earlier state of the store") && why.contains("--accept-store"))
    };
    node.eventually("the daemon saying that its store is an earlier state", || {
        node.client.readiness().is_ok_and(|said| said.ready && says(&said.reasons))
    });
    let doctor = node.place.command(["doctor"]).output().expect("it can be run");
    let doctor = String::from_utf8_lossy(&doctor.stdout).replace('\n', " ");
    assert!(doctor.contains("earlier state of"), "{doctor}");
    node.resume("a");
    node.assert_verified("a");
    node.told("a").rewrite(rewrite(3)).expect("rewrites");
    node.pause("a", "third");
    node.eventually("a publish that failed for the store", || {
        let shown = node.client.snapshot("third");
        shown.is_ok_and(|shown| shown.reason.is_some_and(|why| why.contains("the store is away")))
    });
    assert_eq!(files_in(&store.join("manifests")).len(), 1, "nothing is written to it");
    node.kill();
    node.place.serve_with(&["--accept-store"]);
    node.start_again();
    node.wait("third", SnapshotState::Published);
    node.eventually("every manifest being in the accepted store", || {
        files_in(&store.join("manifests")).len() == 3
    });
    node.wait("second", SnapshotState::Published);
    node.resumed("second", "b");
    node.assert_verified("b");
}

#[test]
fn verify_says_what_the_store_lacks_of_a_snapshot_that_is_whole_on_the_disk() {
    let node = Node::start();
    node.filled("a", 1);
    node.pause("a", "base");
    node.wait("base", SnapshotState::Published);
    let verify = || {
        let output = node.place.command(["verify", "base"]).output().expect("the program runs");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (status, said) = verify();
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("in the store: 2 objects, 0 missing"), "{said}");
    for layer in fs::read_dir(node.place.store_directory().join("layers")).expect("it is there") {
        fs::remove_dir_all(layer.expect("it can be read").path()).expect("it can be removed");
    }
    let (status, said) = verify();
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains(", 0 wrong") && said.contains("is not in the store"), "{said}");
    let found = node.client.verify_snapshot("base").expect("it is verified").store;
    assert_eq!((found.state, found.objects, found.wrong_objects), (StoreVerificationState::Asked, 2, 1));
    let store = node.place.store_directory();
    fs::rename(&store, node.place.state_directory().join("moved")).expect("a directory is moved");
    let (status, said) = verify();
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("in the store: not known") && said.contains("the store is away"), "{said}");
}

fn copy_directory(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.is_ok_and(|status| status.success()), "{} cannot be copied", from.display());
}

#[test]
fn a_catalog_that_is_empty_or_gone_beside_layer_files_or_guests_is_refused_and_costs_nothing() {
    let mut node = Node::start();
    node.filled("a", 1);
    let state = node.place.state_directory();
    let (catalog, saved) = (state.join("catalog.redb"), state.join("saved"));
    let refused = |node: &mut Node, what: &str| {
        fs::rename(&catalog, &saved).expect("it is there");
        for empty in [false, true] {
            if empty {
                fs::write(&catalog, b"").expect("there is room");
            }
            let error = node.place.start().expect_err("it is refused").to_string();
            assert!(error.contains("which is damage") && error.contains(what), "{error}");
        }
        fs::rename(&saved, &catalog).expect("it is there");
    };
    node.kill();
    refused(&mut node, "guests and captured snapshots");
    node.start_again();
    node.assert_verified("a");
    node.pause("a", "base");
    node.wait("base", SnapshotState::Published);
    let layers = files_in(&state.join("layers")).len();
    node.kill();
    refused(&mut node, "layer files");
    assert_eq!(files_in(&state.join("layers")).len(), layers);
    node.start_again();
    node.resume("a");
    node.assert_verified("a");
}

#[test]
fn on_a_full_disk_a_node_starts_and_deletes_and_refuses_what_needs_room() {
    let place = BlackBox::new(&program()).expect("directories");
    let Some(disk) = SmallDisk::at(place.state_directory()) else { return };
    let mut node = Node::start_in(place);
    node.filled("a", 1);
    node.filled("b", 2);
    disk.fill();
    let wanted = |number: u32| CreateSandbox {
        domain: None,
        memory_bytes: 4096,
        labels: (0..8)
            .map(|label| (format!("label-{label}"), "x".repeat(60)))
            .collect::<BTreeMap<_, _>>()
            .try_into()
            .expect("they are allowed"),
        ..create(&format!("more-{number}"), MemoryBacking::Shared)
    };
    let refused = (0..1000).find_map(|number| node.client.create_sandbox(None, &wanted(number)).err());
    let refused = refused.expect("the disk is full at last").to_string();
    assert!(refused.contains("No space left"), "{refused}");
    node.client.remove_sandbox("a").expect("what gives room back is never refused");
    node.crash();
    node.assert_verified("b");
    node.client.remove_sandbox("b").expect("what gives room back is never refused");
    assert!(node.client.sandbox("b").is_err());
    node.kill();
    node.place.end_all().expect("they can be killed");
}

#[test]
fn a_daemon_whose_disk_is_full_is_not_ready_and_says_so_until_there_is_room() {
    let place = BlackBox::new(&program()).expect("directories");
    let Some(disk) = SmallDisk::at(place.state_directory()) else { return };
    let node = Node::start_in(place);
    let said = || node.client.readiness().expect("it answers");
    assert!(said().ready, "{:?}", said());
    disk.fill();
    let full = said();
    assert!(!full.ready, "{full:?}");
    // The daemon may not have noted the store's identity yet, and then says that it cannot.
    let tells = |reason: &String| {
        ["state_directory", "is full", "make room"].iter().all(|told| reason.contains(told))
    };
    assert!(full.reasons.iter().any(tells), "{full:?}");
    disk.empty();
    assert!(said().ready, "{:?}", said());
    node.place.end_all().expect("they can be killed");
}

#[test]
fn a_start_on_a_disk_without_room_speaks_first_of_the_directory_and_what_is_missing_and_what_to_do() {
    let place = BlackBox::new(&program()).expect("directories");
    let Some(disk) = SmallDisk::of(place.state_directory(), "2m") else { return };
    let first_line = || {
        let mut serve = place.command(["serve"]);
        let mut daemon = serve.stderr(Stdio::piped()).spawn().expect("the program runs");
        let mut first = String::new();
        let said = daemon.stderr.take().expect("it was asked for");
        BufReader::new(said).read_line(&mut first).expect("it says something");
        daemon.kill().and_then(|()| daemon.wait()).expect("it is ours");
        first
    };
    let directory = place.state_directory().display().to_string();
    for is_filled in [false, true] {
        if is_filled {
            disk.fill();
        }
        let first = first_line();
        for told in [
            directory.as_str(),
            "is full",
            "of 2.0 MiB are left",
            "16.0 MiB are needed",
            "set state_directory",
        ] {
            assert!(first.contains(told), "{told}: {first}");
        }
    }
    place.end_all().expect("they can be killed");
}

/// A file system of its own with little room.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn at(path: PathBuf) -> Option<Self> {
        Self::of(path, "24m")
    }

    fn of(path: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir(&path).expect("a directory");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o"]).arg(format!("size={size},mode=0700")).arg("rekindle-test");
        let made = mount.arg(&path).status();
        if !made.is_ok_and(|status| status.success()) {
            skipped("a full disk", "only root can mount a file system");
            return None;
        }
        Some(Self(path))
    }

    /// Leaves no room.
    fn fill(&self) {
        let mut ballast = fs::File::create(self.0.join("ballast")).expect("there is room");
        let mut bytes = vec![1; 1 << 20];
        while !bytes.is_empty() {
            if ballast.write_all(&bytes).is_err() {
                bytes.truncate(bytes.len() / 2);
            }
        }
    }

    /// Leaves room again.
    fn empty(&self) {
        fs::remove_file(self.0.join("ballast")).expect("it is there");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let ended = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(ended.is_ok_and(|status| status.success()), "{} is still mounted", self.0.display());
    }
}

fn cut_short(file: &std::path::Path) {
    let bytes = fs::metadata(file).expect("it is there").len();
    let open = OpenOptions::new().write(true).open(file).expect("it can be opened");
    open.set_len(bytes / 2).expect("it can be cut");
}

fn overwrite(file: &std::path::Path) {
    let bytes = usize::try_from(fs::metadata(file).expect("it is there").len()).expect("64 bits");
    fs::write(file, vec![0xAA; bytes]).expect("it can be written");
}

#[test]
fn case_28_everyone_who_waits_for_a_page_gets_it_when_the_store_is_back() {
    let mut node = Node::start();
    node.filled("a", 1);
    node.pause("a", "base");
    node.wait("base", SnapshotState::Published);
    node.kill();
    for layer in files_in(&node.place.state_directory().join("layers")) {
        fs::remove_file(layer).expect("it can be removed");
    }
    node.start_again();
    node.resumed("base", "b");
    node.resumed("base", "c");
    let outage = Outage::of(&node.place.store_directory());
    let waiting: Vec<_> = ["b", "c"]
        .into_iter()
        .map(|name| {
            let client = node.client.clone();
            thread::spawn(move || Told::new(&client, name).verify())
        })
        .collect();
    for name in ["b", "c"] {
        node.eventually("a guest being stalled with a reason", || {
            let shown = node.client.sandbox(name).expect("it is listed");
            shown.state == SandboxState::Stalled && shown.reason.is_some()
        });
    }
    outage.end();
    for verified in waiting {
        let verified = verified.join().expect("asking does not panic").expect("the guest answers");
        assert_eq!(verified.mismatches, 0, "{verified:?}");
    }
    for name in ["b", "c"] {
        node.eventually("a guest going on", || {
            node.client.sandbox(name).is_ok_and(|shown| shown.state == SandboxState::Running)
        });
    }
}
