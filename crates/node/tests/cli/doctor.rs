//! `rekindle doctor` as root and as a user who owns nothing.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rekindle_testkit::skip::skipped;
use serde_json::Value;

use crate::program::{Place, ProgramOutput, said};

/// `nobody` and `nogroup` of Debian.
const NOBODY: u32 = 65_534;

const NAMES: [&str; 29] = [
    "kernel",
    "page faults",
    "fault features",
    "write tracking",
    "shared pages",
    "memory files",
    "process handles",
    "guests' memory",
    "huge pages",
    "KVM",
    "rehearsal",
    "open files",
    "mappings",
    "locked memory",
    "RAM",
    "overcommit",
    "settings",
    "state directory",
    "run directory",
    "store",
    "store's speed",
    "store's habits",
    "key ring",
    "privacy",
    "set aside",
    "QEMU",
    "Firecracker",
    "daemon",
    "keeper",
];

/// Doctor's output as JSON, after checking what holds of every answer of it.
fn checked(said: &ProgramOutput) -> Value {
    let report: Value =
        serde_json::from_str(&said.out).unwrap_or_else(|error| unreachable!("{error}: {said:?}"));
    let checks = report["checks"].as_array().expect("a list");
    let names: Vec<&str> = checks.iter().filter_map(|check| check["name"].as_str()).collect();
    assert_eq!(names, NAMES);
    let fails = checks.iter().any(|check| check["outcome"] == "fail");
    assert_eq!(said.status, i32::from(fails), "{report:#}");
    assert_eq!(report["can_serve"], !fails);
    for check in checks {
        assert!(check["found"].as_str().is_some_and(|found| !found.is_empty()), "{check}");
        assert_eq!(
            check["advice"].is_string(),
            check["outcome"] != "ok",
            "what is not well says what to do: {check}"
        );
    }
    report
}

fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().expect("a list");
    checks.iter().find(|check| check["name"] == name).expect("it is there")
}

fn here(place: &Place, words: &[&str]) -> Command {
    let all = ["doctor", "--state-directory", "state", "--run-directory", "run"];
    place.program(all.iter().chain(words))
}

#[test]
fn this_machine_can_serve_and_doctor_says_so() {
    let place = Place::new();
    let said = said(here(&place, &["--json"]));
    let report = checked(&said);
    let failing: Vec<&Value> = report["checks"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|check| check["outcome"] == "fail")
        .collect();
    if !failing.is_empty() {
        return skipped("doctor", "this machine cannot serve");
    }
    assert!(check(&report, "rehearsal")["found"].as_str().expect("words").contains("1024 pages right"));
    assert_eq!(check(&report, "daemon")["outcome"], "warn");
    assert!(check(&report, "daemon")["advice"].as_str().expect("words").contains("rekindle serve"));
    assert!(!place.path("state").exists() && !place.path("run").exists(), "looking makes nothing");
}

#[test]
fn people_are_told_the_same_in_lines() {
    let place = Place::new();
    let said = said(here(&place, &[]));
    for name in NAMES {
        assert!(
            said.out.lines().any(|line| line.get(6..).is_some_and(|rest| rest.starts_with(name))),
            "{name}: {}",
            said.out
        );
    }
    assert!(said.out.lines().last().is_some_and(|line| line.starts_with("rekindle can")), "{}", said.out);
}

#[test]
fn a_store_that_works_is_tried_and_left_as_it_was() {
    let place = Place::new();
    std::fs::create_dir(place.path("objects")).unwrap();
    let said = said(here(&place, &["--json", "--store", "objects"]));
    let report = checked(&said);
    let found = check(&report, "store")["found"].as_str().expect("words").to_owned();
    assert!(found.contains("parts, reading, ranges, listing and deleting work"), "{found}");
    let told = |name| check(&report, name)["found"].as_str().expect("words").to_owned();
    assert!(told("store's speed").starts_with("first byte after "), "{}", told("store's speed"));
    assert!(told("store's habits").contains("conditional puts are obeyed"), "{}", told("store's habits"));
    assert_eq!(std::fs::read_dir(place.path("objects")).unwrap().count(), 0);
}

#[test]
fn what_settings_name_wrongly_fails_by_name() {
    let place = Place::new();
    std::fs::write(place.path("file"), "").unwrap();
    let report = checked(&said(here(&place, &["--json", "--store", "file"])));
    assert_eq!(check(&report, "store")["outcome"], "fail");
    let long = "x".repeat(120);
    let report = checked(&said(place.program([
        "doctor",
        "--json",
        "--state-directory",
        "s",
        "--run-directory",
        &long,
    ])));
    assert_eq!(check(&report, "run directory")["outcome"], "fail");
    assert!(check(&report, "run directory")["found"].as_str().expect("words").contains("Linux allows 107"));
    let report = said(place.program(["doctor", "--json", "--pause-wait", "soon"]));
    assert_eq!(report.status, 1);
    assert!(report.out.contains("--pause-wait: pause_wait cannot be"), "{}", report.out);
}

#[test]
fn the_firecracker_and_the_jail_that_settings_name_are_looked_at() {
    let place = Place::new();
    let program = |name: &str, version: &str| {
        rekindle_testkit::programs::write(&place.path(name), format!("#!/bin/sh\necho {version}\n")).unwrap();
        place.path(name).display().to_string()
    };
    let found = |words: &[&str]| {
        let report = checked(&said(here(&place, &[&["--json"], words].concat())));
        let check = check(&report, "Firecracker");
        (check["outcome"] == "ok", check["found"].as_str().expect("words").to_owned())
    };
    let (driven, old) = (program("driven", "v1.9.3"), program("old", "v1.7.0"));
    assert_eq!(found(&["--firecracker-program", &driven]), (true, format!("1.9.3 ({driven})")));
    let (well, text) = found(&["--firecracker-program", &old]);
    assert!(!well && text.starts_with(&old) && text.contains("1.7.0 is older than 1.8.0"), "{text}");
    let missing = place.path("missing").display().to_string();
    let (well, text) = found(&["--firecracker-program", &missing]);
    assert!(!well && text.starts_with(&missing), "{text}");
    let base = place.path("jails").display().to_string();
    let jailed = |jailer: &str, base: &str| {
        let user = ["--firecracker-jailer-uid", "1", "--firecracker-jailer-gid", "1"];
        let jail = ["--firecracker-jailer-program", jailer, "--firecracker-jailer-base", base];
        found(&[&["--firecracker-program", &driven], &jail[..], &user[..]].concat())
    };
    let (well, text) = jailed(&missing, &base);
    assert!(!well && text.contains(&missing) && text.contains("firecracker.jailer.program"), "{text}");
}

#[test]
fn a_user_who_owns_nothing_is_told_what_is_true_for_that_user() {
    if !rustix::process::geteuid().is_root() {
        return skipped("doctor", "only root can be somebody else");
    }
    let place = Place::new();
    // The program and the place are where everybody can get to them.
    let program = place.path("rekindle");
    rekindle_testkit::programs::copy(env!("CARGO_BIN_EXE_rekindle").as_ref(), &program).unwrap();
    std::fs::set_permissions(place.directory(), Permissions::from_mode(0o755)).unwrap();
    let as_nobody = |words: &[&str]| {
        let mut command = Command::new(&program);
        command.args(words).env_clear().env("HOME", "/nonexistent").env("PATH", "/nowhere");
        command.current_dir("/").uid(NOBODY).gid(NOBODY);
        said(command)
    };
    let report = checked(&as_nobody(&["doctor", "--json"]));
    let state = check(&report, "state directory");
    assert_eq!(state["outcome"], "fail", "nobody has no home: {state}");
    assert!(state["found"].as_str().expect("words").contains("cannot be made in /"), "{state}");
    let own = place.path("own");
    std::fs::create_dir(&own).unwrap();
    std::fs::set_permissions(&own, Permissions::from_mode(0o777)).unwrap();
    let directory = own.display().to_string();
    let report = checked(&as_nobody(&["doctor", "--json", "--state-directory", &directory]));
    // A disk that is nearly full is a warning.
    assert_ne!(check(&report, "state directory")["outcome"], "fail");
    let faults = check(&report, "page faults");
    assert_ne!(faults["outcome"], "fail", "{faults}");
    if faults["outcome"] == "warn" {
        assert!(faults["found"].as_str().expect("words").contains("of user code alone"), "{faults}");
    }
    let memory = check(&report, "guests' memory")["found"].as_str().expect("words").to_owned();
    assert!(!memory.contains("every user's"), "nobody has no capability: {memory}");
    assert_eq!(check(&report, "rehearsal")["outcome"], "ok", "process guests need no privilege: {report:#}");
}
