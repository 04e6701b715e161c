//! Versions and hosts that differ: the requests to each, and the refusals before anything starts.

use rekindle_vmm::firecracker::{FirecrackerError, Found, Misfit, NotFirecracker, Version};

use crate::support::{Node, interface};

fn version(text: &str) -> Version {
    text.parse().expect("a version")
}

#[test]
fn a_version_is_sent_no_field_that_it_does_not_know() {
    let node = Node::start();
    for (is, fields) in [
        ("1.8.0", &["enable_diff_snapshots"][..]),
        ("1.12.1", &["enable_diff_snapshots", "network_overrides"]),
        ("1.13.0", &["network_overrides", "track_dirty_pages"]),
        ("1.16.0", &["clock_realtime", "network_overrides", "track_dirty_pages"]),
    ] {
        node.set(|settings| settings.version = is.to_owned());
        let mut spec = node.spec(8);
        spec.interfaces = vec![interface("eth0", "tap0")];
        let snapshot = node.pause(node.filled(&spec));
        let mut vm = node.resume(&snapshot);
        assert_eq!(vm.verify(), 2048);
        let load = node.last_request("PUT /snapshot/load");
        let always = ["snapshot_path", "mem_backend", "resume_vm"];
        let sent = load.as_object().expect("an object").keys().map(String::as_str);
        let sent: Vec<&str> = sent.filter(|field| !always.contains(field)).collect();
        assert_eq!(sent, fields, "{is}");
        vm.say("put 3 4");
        let snapshot = node.pause(vm);
        assert_eq!(node.last_request("PUT /snapshot/create")["snapshot_type"], "Diff");
        let mut vm = node.resume(&snapshot);
        vm.verify();
        node.end(vm);
    }
}

#[test]
fn another_tap_is_refused_by_name_where_the_version_cannot_be_told() {
    let node = Node::start();
    node.set(|settings| settings.version = "1.11.0".to_owned());
    let mut spec = node.spec(8);
    spec.interfaces = vec![interface("eth0", "tap0")];
    let vm = node.run(&spec);
    let snapshot = node.pause(vm);
    let mut resumed = node.spec_of(&snapshot);
    resumed.interfaces[0].tap = "tap1".to_owned();
    let before = node.requests().len();
    let error = node.begin_resume(&snapshot, &resumed).map(drop).expect_err("it cannot be told");
    assert!(
        matches!(&error, FirecrackerError::Misfit(Misfit::Tap { interface, saved, wanted, .. })
        if interface == "eth0" && saved == "tap0" && wanted == "tap1"),
        "{error}"
    );
    assert_eq!(node.requests().len(), before, "nothing was started");
}

#[test]
fn a_state_of_another_format_is_refused_with_both_versions_before_anything_starts() {
    let node = Node::start();
    node.set(|settings| {
        settings.version = "1.13.0".to_owned();
        settings.format = "7.0.0".to_owned();
    });
    let vm = node.run(&node.spec(8));
    let snapshot = node.pause(vm);
    node.set(|settings| {
        settings.version = "1.14.1".to_owned();
        settings.format = "8.0.0".to_owned();
    });
    let before = node.requests().len();
    let error = node.begin_resume(&snapshot, &node.spec_of(&snapshot)).map(drop).expect_err("it cannot load");
    let said = error.to_string();
    assert!(matches!(error, FirecrackerError::Misfit(Misfit::StateFormat { .. })), "{said}");
    for part in ["1.13.0", "7.0.0", "1.14.1", "8.0.0"] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(node.requests().len(), before);
    assert!(node.left_behind().is_empty());
    // A later one of the same major loads it.
    node.set(|settings| {
        settings.version = "1.13.2".to_owned();
        settings.format = "7.1.0".to_owned();
    });
    let mut vm = node.resume(&snapshot);
    vm.verify();
    node.end(vm);
}

#[test]
fn a_firecracker_that_is_too_old_or_not_known_is_refused_and_so_is_what_is_none() {
    let mut node = Node::start();
    node.set(|settings| settings.version = "1.7.9".to_owned());
    let error = node.try_start(&node.spec(8)).map(drop).expect_err("it is too old");
    assert!(
        matches!(&error, FirecrackerError::Misfit(Misfit::TooOld { found }) if *found == version("1.7.9")),
        "{error}"
    );
    node.set(|settings| settings.version = "2.0.0-dev".to_owned());
    let error = node.try_start(&node.spec(8)).map(drop).expect_err("nothing is known of it");
    assert!(
        matches!(&error, FirecrackerError::Misfit(Misfit::TooNew { found }) if *found == version("2.0.0")),
        "{error}"
    );
    assert!(error.to_string().contains("drives 1.8.0 up to"), "{error}");
    node.places.program = "/bin/true".into();
    let error = node.try_start(&node.spec(8)).map(drop).expect_err("it is none");
    assert!(matches!(error, FirecrackerError::Program(NotFirecracker::NoVersion { .. })), "{error}");
    node.places.program = "/no/such/program".into();
    let error = node.try_start(&node.spec(8)).map(drop).expect_err("it is not there");
    assert!(matches!(error, FirecrackerError::Program(NotFirecracker::NotRun { .. })), "{error}");
}

#[test]
fn another_cpu_or_an_older_kernel_is_refused_by_name() {
    let node = Node::start();
    let here = Found::look(&node.places.program).expect("it is one");
    let vm = node.run(&node.spec(8));
    let snapshot = node.pause(vm);
    let spec = node.spec_of(&snapshot);
    assert_eq!(spec.check(&here), Ok(()));
    let mut found = here.clone();
    found.host.cpu_vendor = "OtherVendor".to_owned();
    assert!(matches!(spec.check(&found), Err(Misfit::CpuVendor { found, .. }) if found == "OtherVendor"));
    let mut found = here.clone();
    found.host.cpu_model = "another (6/1/2)".to_owned();
    assert!(matches!(spec.check(&found), Err(Misfit::CpuModel { found, .. }) if found == "another (6/1/2)"));
    let mut alike = spec.clone();
    alike.cpu_profile = Some("T2".to_owned());
    assert_eq!(alike.check(&found), Ok(()), "a template makes CPUs of one vendor alike");
    let mut found = here.clone();
    found.host.kernel = (5, 10);
    assert!(matches!(spec.check(&found), Err(Misfit::Kernel { found: (5, 10), .. })));
    let mut found = here;
    (found.state_format, found.version) = (None, version("1.17.0"));
    assert!(matches!(spec.check(&found), Err(Misfit::UnknownFormat { .. })));
}
