//! Snapshots as files, and nodes that are made again from their store.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use rekindle_api::types::{PauseSandbox, SnapshotState};
use rekindle_testkit::black_box::BlackBox;

use crate::support::{Node, files_in, program, rewrite};

/// A node with two snapshots in its store, the second with a name and a label, and nodes to import them.
struct Exporter {
    node: Node,
    files: tempfile::TempDir,
}

impl Exporter {
    fn new() -> Self {
        let node = Node::start();
        node.filled("a", 1);
        node.pause("a", "first");
        node.resume("a");
        node.told("a").rewrite(rewrite(2)).expect("its guest rewrites a part of its memory");
        let labels = BTreeMap::from([("team".to_owned(), "blue".to_owned())]);
        let labels = labels.try_into().expect("a label");
        let name = Some("second".parse().expect("a name"));
        let how = PauseSandbox { name, labels };
        node.client.pause_sandbox("a", None, &how).expect("it is paused");
        node.wait("second", SnapshotState::Published);
        Self { node, files: tempfile::tempdir().expect("a directory") }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// An export of the second snapshot.
    fn exported(&self) -> PathBuf {
        let file = self.file("second.tar");
        let done = run(&self.node.place, &["export", "second"], &file);
        assert!(done.status.success(), "{}", said(&done));
        file
    }

    /// A place for a node with the same keys and a store of its own.
    fn elsewhere(&self) -> BlackBox {
        let place = BlackBox::new(&program()).expect("directories");
        place.copy_key_ring(&self.node.place).expect("it has keys");
        place
    }
}

fn run(place: &BlackBox, words: &[&str], file: &Path) -> Output {
    place.command(words).arg(file).output().expect("the program runs")
}

/// Number of objects of one kind in the store of a place.
fn objects(place: &BlackBox, kind: &str) -> usize {
    let directory = place.store_directory().join(kind);
    if directory.is_dir() { files_in(&directory).len() } else { 0 }
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said).into_owned()).concat()
}

/// The same node on an empty state directory, with its keys from a back-up.
fn with_state_lost(node: &mut Node) {
    let backed_up = fs::read(node.place.key_ring()).expect("it has keys");
    node.terminate();
    node.place.end_all().expect("its keeper ends");
    fs::remove_dir_all(node.place.state_directory()).expect("it can be lost");
    fs::create_dir(node.place.state_directory()).expect("a disk");
    private(&node.place.key_ring(), &backed_up);
    node.start_again();
}

fn private(path: &Path, content: &[u8]) {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).expect("a disk");
    file.write_all(content).expect("a disk");
}

#[test]
fn a_snapshot_goes_into_another_store_as_one_file() {
    let from = Exporter::new();
    // A sign that has a successor goes in the background, and so does the publisher's root.
    let settled = || objects(&from.node.place, "nodes") == 1 && objects(&from.node.place, "roots") == 0;
    from.node.eventually("its node having one sign and no root", settled);
    let file = from.exported();
    assert_eq!(objects(&from.node.place, "roots"), 0, "the reader's root is gone");
    assert_eq!(objects(&from.node.place, "nodes"), 1, "the store has no sign of the command");
    let place = from.elsewhere();
    let done = run(&place, &["import"], &file);
    assert!(done.status.success() && said(&done).contains(" is in the store: "), "{}", said(&done));
    let again = run(&place, &["import"], &file);
    assert!(again.status.success() && said(&again).contains(" was in the store already"), "{}", said(&again));
    assert_eq!(objects(&place, "roots"), 0, "the publisher's root is gone");
    assert_eq!(objects(&place, "nodes"), 0, "the store has no sign of the commands");
    let node = Node::start_in(place);
    let id = from.node.client.snapshot("second").expect("it is there").id;
    node.resumed(&id.to_string(), "b");
    node.assert_verified("b");
    let snapshot = node.client.snapshot("second").expect("it has its name here too");
    assert_eq!(snapshot.labels.get("team").map(String::as_str), Some("blue"));
    assert_eq!(files_in(from.files.path()).len(), 1, "nothing is left beside the file");
}

#[test]
fn a_file_that_is_there_is_not_written_over() {
    let from = Exporter::new();
    let file = from.file("mine");
    fs::write(&file, "precious").expect("a disk");
    let refused = run(&from.node.place, &["export", "second"], &file);
    assert!(!refused.status.success() && said(&refused).contains("is there already"), "{}", said(&refused));
    assert_eq!(fs::read(&file).expect("it is there"), b"precious");
}

#[test]
fn an_export_from_a_store_that_lacks_the_snapshot_names_that_store() {
    let from = Exporter::new();
    let store = tempfile::tempdir().expect("a directory");
    let store = store.path().display().to_string();
    let refused = run(&from.node.place, &["export", "second", "--store", &store], &from.file("none.tar"));
    assert!(!refused.status.success() && said(&refused).contains(&store), "{}", said(&refused));
    assert!(files_in(from.files.path()).is_empty(), "nothing is left");
}

#[test]
fn a_damaged_export_is_refused_and_leaves_the_store_as_it_was() {
    let from = Exporter::new();
    let whole = fs::read(from.exported()).expect("it is there");
    let place = from.elsewhere();
    let find = |name: &[u8]| whole.windows(name.len()).position(|at| at == name).expect("it is an entry");
    let with = |at: usize, bytes: &[u8]| {
        let mut damaged = whole.clone();
        damaged[at..at + bytes.len()].copy_from_slice(bytes);
        damaged
    };
    // An archive's entry begins a block of 512 bytes before its content.
    let cases = [
        ("text", b"not an archive".repeat(100), "it is no export of a snapshot"),
        ("empty", Vec::new(), "it has no entry rekindle-export"),
        ("newer", with(find(b"rekindle-export\0") + 512, b"2\n"), "it is an export of format \"2\""),
        (
            "other-manifest",
            with(find(b"manifest\0") + 512 + 40, &[0xff; 8]),
            "the manifest in the file cannot be read",
        ),
        ("other-frame", with(find(b"layers/") + 512 + 100, &[0x55; 64]), "frame 0 of layer"),
        ("cut-short", whole[..find(b"layers/") + 512 + 4096].to_vec(), "the file"),
    ];
    for (name, content, why) in cases {
        let file = from.file(name);
        fs::write(&file, content).expect("a disk");
        let refused = run(&place, &["import"], &file);
        assert!(!refused.status.success(), "{name}: {}", said(&refused));
        assert!(said(&refused).contains(why), "{name}: {}", said(&refused));
    }
    for kind in ["manifests", "layers", "roots"] {
        assert_eq!(objects(&place, kind), 0, "{kind}");
    }
}

#[test]
fn a_deleted_snapshot_does_not_come_back_by_an_import_into_its_store() {
    let from = Exporter::new();
    let file = from.exported();
    from.node.client.remove_sandbox("a").expect("it is removed");
    from.node.client.delete_snapshot("second").expect("it is deleted");
    from.node.eventually("only the first being in the store", || objects(&from.node.place, "manifests") == 1);
    let refused = run(&from.node.place, &["import"], &file);
    assert!(!refused.status.success() && said(&refused).contains("was deleted"), "{}", said(&refused));
}

#[test]
fn a_file_is_refused_where_its_key_is_missing_and_the_key_is_named() {
    let from = Exporter::new();
    let file = from.exported();
    let place = BlackBox::new(&program()).expect("directories");
    let refused = run(&place, &["import"], &file);
    assert!(said(&refused).contains("has no key of domain default"), "{}", said(&refused));
    let other = Node::start_in(place);
    let refused = run(&other.place, &["import"], &file);
    assert!(!refused.status.success() && said(&refused).contains(" of domain default"), "{}", said(&refused));
}

#[test]
fn a_node_that_lost_its_disk_is_made_again_from_its_key_ring_and_its_store() {
    let Exporter { mut node, files: _files } = Exporter::new();
    with_state_lost(&mut node);
    assert_eq!(node.client.all_snapshots(&[]).expect("it answers"), Vec::new());
    let rebuild = || node.place.command(["catalog", "rebuild"]).output().expect("the program runs");
    let done = rebuild();
    assert!(done.status.success(), "{}", said(&done));
    assert!(
        said(&done).starts_with("2 snapshots of the store are listed here now, 0 were before"),
        "{}",
        said(&done)
    );
    let again = said(&rebuild());
    assert!(again.starts_with("0 snapshots of the store are listed here now, 2 were before"), "{again}");
    let snapshot = node.client.snapshot("second").expect("it has its name");
    assert_eq!(snapshot.labels.get("team").map(String::as_str), Some("blue"));
    node.resumed("second", "b");
    node.assert_verified("b");
    node.resumed("first", "c");
    node.assert_verified("c");
}
