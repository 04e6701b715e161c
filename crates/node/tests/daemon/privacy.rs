//! Other users of a machine can read nothing of guests.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rekindle_api::types::SnapshotState;
use rekindle_testkit::black_box::BlackBox;

use crate::support::{Node, program};

#[test]
fn no_other_user_can_read_what_a_daemon_writes_whatever_stood_there_before() {
    let place = BlackBox::new(&program()).expect("directories");
    let places = [place.state_directory(), place.run_directory(), place.store_directory()];
    for path in &places {
        DirBuilder::new().recursive(true).mode(0o777).create(path).expect("a directory");
        fs::set_permissions(path, Permissions::from_mode(0o755)).expect("it is this user's");
    }
    // As an earlier version left it.
    let layers = place.state_directory().join("layers");
    fs::create_dir(&layers).expect("a directory");
    for (path, mode) in [(layers.clone(), 0o755), (place.store_directory(), 0o777)] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("it is this user's");
    }
    let mut node = Node::start_in(place);
    node.filled("a", 1);
    node.pause("a", "base");
    node.wait("base", SnapshotState::Published);
    node.resume("a");
    let open: Vec<_> = places.iter().flat_map(|path| open_in(path)).collect();
    assert!(open.is_empty(), "{open:?}");
    assert_eq!(doctor_of(&node.place), Vec::<String>::new());
    node.kill();
}

#[test]
fn a_directory_with_files_of_others_is_left_open_and_doctor_names_it() {
    let place = BlackBox::new(&program()).expect("directories");
    let store = place.store_directory();
    fs::create_dir(&store).expect("a directory");
    fs::write(store.join("holiday.jpg"), b"not ours").expect("there is room");
    fs::set_permissions(&store, Permissions::from_mode(0o755)).expect("it is this user's");
    let node = Node::start_in(place);
    node.filled("a", 1);
    node.pause("a", "base");
    node.wait("base", SnapshotState::Published);
    assert_eq!(mode_of(&store), 0o755, "others may need what is in it");
    for made in ["layers", "manifests"] {
        assert_eq!(open_in(&store.join(made)), Vec::<PathBuf>::new());
    }
    let told = doctor_of(&node.place);
    assert!(told.iter().any(|told| told.contains(&format!("{} (mode 0755)", store.display()))), "{told:?}");
}

/// Every file and directory that users besides this one may do something with.
fn open_in(path: &Path) -> Vec<PathBuf> {
    let found = path.symlink_metadata().expect("it is there");
    let mut open = Vec::new();
    if found.mode() & 0o077 != 0 && !found.is_symlink() {
        open.push(path.to_owned());
    }
    if found.is_dir() {
        let entries = path.read_dir().expect("it can be read");
        open.extend(entries.flat_map(|entry| open_in(&entry.expect("it can be read").path())));
    }
    assert!(found.is_dir() || found.is_file() || found.file_type().is_socket(), "{}", path.display());
    open
}

fn mode_of(path: &Path) -> u32 {
    path.metadata().expect("it is there").mode() & 0o777
}

/// Output of `rekindle doctor` on open directories.
fn doctor_of(place: &BlackBox) -> Vec<String> {
    let output = place.command(["doctor", "--json"]).output().expect("it runs");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    let checks = report["checks"].as_array().expect("a list");
    let privacy = checks.iter().filter(|check| check["name"] == "privacy" && check["outcome"] != "ok");
    privacy.map(|check| check["found"].as_str().unwrap_or_default().to_owned()).collect()
}
