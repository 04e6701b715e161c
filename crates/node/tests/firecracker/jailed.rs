//! Firecracker in its jailer's jail: its paths are the jail's, and it has no `/proc`.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Command;

use rekindle_testkit::skip::skipped;
use rekindle_vmm::firecracker::{Drive, DriveContent, FirecrackerError, Jailer, NoJail};

use crate::support::{Listens, MIB, Node};

const USER: u32 = 61_234;

/// A tmpfs that is unmounted with this.
struct Mounted(PathBuf);

impl Mounted {
    fn without_devices(at: PathBuf) -> Self {
        std::fs::create_dir(&at).expect("there is room");
        let words = ["-t", "tmpfs", "-o", "nodev,size=1m", "rekindle-test"];
        let mounted = Command::new("mount").args(words).arg(&at).status().expect("there is a mount program");
        assert!(mounted.success(), "root may mount a tmpfs");
        Self(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{} stays mounted", self.0.display());
    }
}

/// A node whose Firecrackers are jailed; none where that cannot be.
fn jailing() -> Option<Node> {
    if !rustix::process::geteuid().is_root() {
        skipped("Firecracker's jailer", "only root can change its root");
        return None;
    }
    let mut node = Node::start();
    node.places.jailer = Some(Jailer {
        program: node.file("jailer"),
        base: node.file("jails"),
        user_id: USER,
        group_id: USER,
        arguments: vec!["--cgroup-version".into(), "2".into()],
    });
    Some(node)
}

#[test]
fn a_jailed_vm_is_started_paused_and_resumed_by_paths_of_its_jail() {
    let Some(node) = jailing() else { return };
    std::fs::write(node.file("base.img"), [7; 8192]).expect("there is room");
    let mut spec = node.spec(8);
    let base = DriveContent::ReadOnly(node.boot_file("base.img"));
    spec.drives = vec![
        Drive { id: "base".to_owned(), bytes: 8192, is_root: true, content: base },
        node.disk("data", MIB, b"image"),
    ];
    let mut vm = node.run(&spec);
    let root = vm.guest.facts().directory.root().to_owned();
    assert_eq!(root, node.file("jails/firecracker/vm-0/root"));
    assert_eq!(std::fs::metadata(root.join("drive-data")).expect("it is there").uid(), USER);
    vm.say("fill 3");
    vm.say("disk data write 3 4");
    let mut snapshot = node.pause(vm);
    assert_eq!(node.last_in_jail(&root), None, "the jail is gone with its VM");
    for seed in [4, 5] {
        let mut vm = node.resume(&snapshot);
        assert_eq!(vm.verify(), 2048);
        assert_eq!(vm.say("disk data check 3 4"), "right data 3");
        vm.say(&format!("dirty {seed} 20"));
        snapshot = node.pause(vm);
    }
    let mut vm = node.resume(&snapshot);
    assert_eq!(vm.verify(), 2048);
    let root = vm.guest.facts().directory.root().to_owned();
    let load = node.last_in_jail(&root).expect("it was asked");
    assert_eq!(load["snapshot_path"], "state");
    assert_eq!(load["mem_backend"]["backend_path"], "handover.sock");
    node.end(vm);
    assert!(!root.exists());
}

#[test]
fn a_jail_that_cannot_be_is_refused_by_the_path_that_is_wrong_and_nothing_is_made() {
    let Some(mut node) = jailing() else { return };
    let jailer = node.places.jailer.clone().expect("it jails");
    node.places.jailer = Some(Jailer { program: "/no/such/jailer".into(), ..jailer.clone() });
    let error = node.try_start(&node.spec(8)).map(drop).expect_err("there is no jailer");
    assert!(matches!(error, FirecrackerError::Jail(NoJail::Program { .. })), "{error}");
    assert!(error.to_string().contains("/no/such/jailer"), "{error}");
    let mounted = Mounted::without_devices(node.file("nodev"));
    node.places.jailer = Some(Jailer { base: mounted.0.join("jails"), ..jailer });
    let error = node.try_start(&node.spec(8)).map(drop).expect_err("there would be no /dev/kvm");
    assert!(matches!(error, FirecrackerError::Jail(NoJail::WithoutDevices { .. })), "{error}");
    assert!(error.to_string().contains("firecracker.jailer.base"), "{error}");
    assert!(node.left_behind().is_empty());
}

#[test]
fn a_jailed_vm_whose_pause_failed_goes_on_and_is_captured_whole_later() {
    let Some(node) = jailing() else { return };
    let snapshot = node.pause(node.filled(&node.spec(8)));
    let mut vm = node.resume(&snapshot);
    vm.say("dirty 4 20");
    vm.guest.suspend().expect("it is written");
    vm.guest.go_on().expect("it goes on");
    vm.say("dirty 5 20");
    let snapshot = node.pause(vm);
    node.assert_resumes(&snapshot);
}

#[test]
fn a_vm_saved_outside_a_jail_resumes_inside_one() {
    let Some(mut node) = jailing() else { return };
    let jailer = node.places.jailer.take();
    let mut spec = node.spec(8);
    spec.drives = vec![node.disk("data", MIB, b"image")];
    let mut vm = node.filled(&spec);
    vm.say("disk data write 3 4");
    let snapshot = node.pause(vm);
    node.places.jailer = jailer;
    node.listens = Listens::Elsewhere;
    let mut vm = node.resume(&snapshot);
    assert_eq!(vm.verify(), 2048);
    assert_eq!(vm.say("disk data check 3 4"), "right data 3");
    node.end(vm);
}

impl Node {
    /// The last load that a peer noted down in its jail.
    fn last_in_jail(&self, root: &std::path::Path) -> Option<serde_json::Value> {
        let noted = std::fs::read_to_string(root.join("requests")).ok()?;
        let line = noted.lines().rfind(|line| line.starts_with("PUT /snapshot/load "))?.to_owned();
        serde_json::from_str(line.strip_prefix("PUT /snapshot/load ")?).ok()
    }
}
