//! Requests to Firecracker, to the field: it refuses fields that it does not know.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use rekindle_vmm::firecracker::{
    Balloon, Drive, DriveContent, FirecrackerError, FirecrackerSpec, MemoryPages, Seccomp, SpecError,
};
use rekindle_vmm::qemu::BootFile;
use serde_json::json;

use crate::support::{Node, interface};

/// True if an error is the one that is meant.
type IsIt = fn(&SpecError) -> bool;

/// A server's answer to one request with a body.
pub(crate) fn raw(mut stream: &UnixStream, call: &str, body: &str) -> String {
    let request = format!("{call} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).expect("it listens");
    let mut answer = vec![0; 4096];
    let count = stream.read(&mut answer).expect("it answers");
    String::from_utf8(answer[..count].to_vec()).expect("it is text")
}

#[test]
fn a_fresh_vm_is_configured_by_the_documented_calls_in_order() {
    let node = Node::start();
    std::fs::write(node.file("initrd"), b"an initial RAM disk").expect("there is room");
    std::fs::write(node.file("base.img"), [7; 8192]).expect("there is room");
    let mut spec = node.spec(8);
    spec.initrd = Some(node.boot_file("initrd"));
    spec.cpu_profile = Some("T2".to_owned());
    spec.balloon = Some(Balloon { mib: 1, deflates: false });
    spec.interfaces = vec![interface("eth0", "tap3")];
    spec.drives = vec![
        Drive {
            id: "base".to_owned(),
            bytes: 8192,
            is_root: true,
            content: DriveContent::ReadOnly(node.boot_file("base.img")),
        },
        node.disk("data", 4096, b"data"),
    ];
    let vm = node.run(&spec);
    let asked: Vec<(String, serde_json::Value)> = node
        .requests()
        .into_iter()
        .map(|line| {
            let at = line.match_indices(' ').nth(1).expect("method, path, body").0;
            (line[..at].to_owned(), serde_json::from_str(&line[at + 1..]).unwrap_or_default())
        })
        .collect();
    let expected = [
        ("GET /version", json!(null)),
        (
            "PUT /machine-config",
            json!({"vcpu_count": 2, "mem_size_mib": 8, "track_dirty_pages": true, "cpu_template": "T2"}),
        ),
        (
            "PUT /boot-source",
            json!({"kernel_image_path": "kernel", "boot_args": "console=ttyS0 reboot=k panic=1", "initrd_path": "initrd"}),
        ),
        (
            "PUT /drives/base",
            json!({"drive_id": "base", "path_on_host": "drive-base", "is_root_device": true, "is_read_only": true}),
        ),
        (
            "PUT /drives/data",
            json!({"drive_id": "data", "path_on_host": "drive-data", "is_root_device": false, "is_read_only": false}),
        ),
        ("PUT /network-interfaces/eth0", json!({"iface_id": "eth0", "host_dev_name": "tap3"})),
        ("PUT /balloon", json!({"amount_mib": 1, "deflate_on_oom": false})),
        ("PUT /actions", json!({"action_type": "InstanceStart"})),
    ];
    assert_eq!(asked, expected.map(|(call, body)| (call.to_owned(), body)));
    node.end(vm);
}

#[test]
fn a_pause_and_a_resume_are_the_documented_calls() {
    let node = Node::start();
    let mut spec = node.spec(8);
    spec.interfaces = vec![interface("eth0", "tap3")];
    let vm = node.run(&spec);
    let snapshot = node.pause(vm);
    assert_eq!(node.last_request("PATCH /vm"), json!({"state": "Paused"}));
    assert_eq!(
        node.last_request("PUT /snapshot/create"),
        json!({"snapshot_type": "Diff", "snapshot_path": "/proc/self/fd/31", "mem_file_path": "/proc/self/fd/30"})
    );
    let mut resumed = node.spec_of(&snapshot);
    resumed.interfaces[0].tap = "tap9".to_owned();
    let vm = node.try_resume(&snapshot, &resumed).expect("the VM resumes");
    let mut load = node.last_request("PUT /snapshot/load");
    let socket = load["mem_backend"]["backend_path"].take();
    assert!(socket.as_str().is_some_and(|path| path.starts_with('/')), "{socket}");
    assert_eq!(
        load,
        json!({
            "snapshot_path": "/proc/self/fd/31",
            "mem_backend": {"backend_type": "Uffd", "backend_path": null},
            "resume_vm": true,
            "track_dirty_pages": true,
            "network_overrides": [{"iface_id": "eth0", "host_dev_name": "tap9"}],
            "clock_realtime": true,
        })
    );
    assert_eq!(vm.guest.saved().taps, ["tap9"]);
    node.end(vm);
}

#[test]
fn the_process_gets_its_socket_its_id_and_no_filter_where_that_is_wanted() {
    let mut node = Node::start();
    node.places.seccomp = Seccomp::Unfiltered;
    let vm = node.run(&node.spec(8));
    // Of the script that stands for Firecracker these words are the environment.
    let environment = std::fs::read(format!("/proc/{}/environ", vm.guest.process.id())).expect("it lives");
    let environment = String::from_utf8(environment).expect("it is text");
    let socket = vm.guest.facts().directory.api().display().to_string();
    let log = node.file("firecracker-vm-0.log").display().to_string();
    let words = format!(
        "firecracker\n--api-sock\n{socket}\n--id\nvm-0\n--log-path\n{log}\n--level\nWarning\n--no-seccomp\n"
    );
    assert!(environment.contains(&words), "{environment}");
    let started_in = std::fs::read_link(format!("/proc/{}/cwd", vm.guest.process.id())).expect("it lives");
    assert_eq!(started_in, vm.guest.facts().directory.root());
    node.end(vm);
}

#[test]
fn what_firecracker_refuses_is_said_in_its_own_words_and_nothing_is_left() {
    let node = Node::start();
    for call in ["PUT /machine-config", "PUT /boot-source", "PUT /drives/data", "PUT /actions"] {
        node.set(|settings| {
            settings.refuses.insert(call.to_owned(), format!("no {call} today"));
        });
        let mut spec = node.spec(8);
        spec.drives = vec![node.disk("data", 4096, b"data")];
        let error = node.try_start(&spec).map(drop).expect_err("it refuses");
        let said = error.to_string();
        assert!(said.contains(call) && said.contains(&format!("no {call} today")), "{said}");
        assert!(node.left_behind().is_empty(), "{:?}", node.left_behind());
    }
}

#[test]
fn what_there_cannot_be_is_refused_before_anything_is_asked() {
    let node = Node::start();
    let good = node.spec(8);
    let drive = |id: &str, bytes| Drive {
        id: id.to_owned(),
        bytes,
        is_root: false,
        content: DriveContent::Writable(Some("/image".into())),
    };
    let wrong: [(FirecrackerSpec, IsIt); 9] = [
        (FirecrackerSpec { cpus: 0, ..good.clone() }, |error| matches!(error, SpecError::Cpus { cpus: 0 })),
        (FirecrackerSpec { cpus: 33, ..good.clone() }, |error| matches!(error, SpecError::Cpus { .. })),
        (FirecrackerSpec { memory_bytes: 5000, ..good.clone() }, |error| {
            matches!(error, SpecError::Memory { .. })
        }),
        (FirecrackerSpec { memory_bytes: 3 << 20, pages: MemoryPages::Huge, ..good.clone() }, |error| {
            matches!(error, SpecError::Memory { .. })
        }),
        (
            FirecrackerSpec {
                pages: MemoryPages::Huge,
                balloon: Some(Balloon { mib: 0, deflates: true }),
                ..good.clone()
            },
            |error| matches!(error, SpecError::NotWithHugePages { .. }),
        ),
        (FirecrackerSpec { drives: vec![drive("memory", 512)], ..good.clone() }, |error| {
            matches!(error, SpecError::SameIdTwice { .. })
        }),
        (FirecrackerSpec { drives: vec![drive("../x", 512)], ..good.clone() }, |error| {
            matches!(error, SpecError::DriveId { .. })
        }),
        (FirecrackerSpec { drives: vec![drive("data", 513)], ..good.clone() }, |error| {
            matches!(error, SpecError::DriveSize { .. })
        }),
        (
            FirecrackerSpec {
                kernel: BootFile { path: "vmlinux".into(), blake3: String::new(), named: None },
                ..good.clone()
            },
            |error| matches!(error, SpecError::RelativePath { .. }),
        ),
    ];
    for (spec, is_it) in wrong {
        let error = node.try_start(&spec).map(drop).expect_err("it is refused");
        assert!(matches!(&error, FirecrackerError::Spec(error) if is_it(error)), "{error}");
    }
    assert!(node.requests().is_empty());
}
