//! `rekindle demo` as a user runs it.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rekindle_kernel::HugepageReservation;
use rekindle_testkit::skip::skipped;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::program;

const MEMORY: [&str; 2] = ["--memory", "64MiB"];
const MEMORY_PAGES: u64 = 16384;
/// Huge pages for every guest and capture of a demo of 64 MiB.
const HUGE_PAGES: u64 = 8 * 32;

fn demo(words: &[&str]) -> Output {
    Command::new(program()).arg("demo").args(MEMORY).args(words).output().expect("the program runs")
}

/// The demo's report with `words`; every page of it was right.
fn report(words: &[&str]) -> Value {
    let output = demo(&[&["--json"], words].concat());
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object and nothing else");
    assert_fields(&report);
    assert_eq!(report["verified"]["mismatches"], 0);
    assert!(report["verified"]["pages"].as_u64().is_some_and(|pages| pages >= 4 * MEMORY_PAGES));
    report
}

fn assert_fields(report: &Value) {
    let seconds = [
        ["pause", "answer_seconds"],
        ["overlap_resume", "first_progress_seconds"],
        ["overlap_resume", "control_first_progress_seconds"],
        ["overlap_resume", "ratio"],
        ["overlap_resume", "ratio_min"],
        ["overlap_resume", "ratio_max"],
        ["waiting_resume", "first_progress_seconds"],
        ["seal", "seconds"],
        ["cold_resume", "first_progress_seconds"],
        ["checkpoint", "answer_seconds"],
        ["checkpoint", "frozen_seconds"],
    ];
    for [of, name] in seconds {
        assert!(report[of][name].as_f64().is_some_and(|value| value > 0.0), "{of}.{name}: {report}");
    }
    let counts = [
        ["overlap_resume", "pages_from_capture"],
        ["seal", "dirty_pages"],
        ["seal", "zero_pages"],
        ["seal", "equal_pages"],
        ["seal", "kept_pages"],
        ["publish", "stored_bytes"],
        ["cold_resume", "fetched_bytes"],
        ["verified", "pages"],
        ["verified", "mismatches"],
    ];
    for [of, name] in counts {
        assert!(report[of][name].is_u64(), "{of}.{name}: {report}");
    }
    assert!(report["overlap_resume"]["seal_was_running"].is_boolean(), "{report}");
    assert_eq!(report["overlap_resume"]["pairs"].as_array().map(Vec::len), Some(5), "{report}");
    let seal = |name: &str| report["seal"][name].as_u64().expect("checked above");
    assert_eq!(
        seal("dirty_pages"),
        seal("zero_pages") + seal("equal_pages") + seal("kept_pages"),
        "{report}"
    );
}

#[test]
fn the_demo_reports_in_json_what_it_measured() {
    let report = report(&[]);
    assert!(report["publish"]["stored_bytes"].as_u64() > Some(0));
    assert!(report["cold_resume"]["fetched_bytes"].as_u64() > Some(0));
    let dirty = report["seal"]["dirty_pages"].as_u64().expect("a count");
    assert!(dirty.abs_diff(MEMORY_PAGES / 2) < MEMORY_PAGES / 10, "half of it was rewritten: {dirty}");
}

#[test]
fn the_demo_with_nothing_rewritten_keeps_nothing() {
    let report = report(&["--dirty", "0"]);
    assert_eq!(report["seal"]["dirty_pages"], 0);
    assert_eq!(report["seal"]["kept_pages"], 0);
}

#[test]
fn the_demo_with_everything_rewritten_captures_every_page() {
    let report = report(&["--dirty", "100"]);
    assert_eq!(report["seal"]["dirty_pages"], MEMORY_PAGES);
    assert!(report["overlap_resume"]["pages_from_capture"].as_u64() > Some(0));
}

#[test]
fn the_demo_copies_memory_that_it_cannot_adopt() {
    report(&["--capture", "copy"]);
}

#[test]
fn the_demo_runs_on_huge_pages() {
    let reserved = match HugepageReservation::reserve(HUGE_PAGES) {
        Ok(reserved) => reserved,
        Err(error) => return skipped("huge pages", &error.to_string()),
    };
    report(&["--pages", "huge"]);
    report(&["--pages", "huge", "--capture", "copy"]);
    drop(reserved);
}

#[test]
fn the_demo_without_early_serving_waits_for_the_seal() {
    let report = report(&["--no-early-serve"]);
    assert_eq!(report["overlap_resume"]["seal_was_running"], false);
}

#[test]
fn the_demo_publishes_into_the_store_it_is_given() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = directory.path().join("of/its/own");
    report(&["--store", store.to_str().expect("plain words")]);
    let entries = |name: &str| {
        let entries = std::fs::read_dir(store.join(name)).expect("the store was made");
        entries.map(|entry| entry.expect("it is read").file_name()).collect::<BTreeSet<_>>()
    };
    assert_eq!(entries("manifests").difference(&entries("deleted")).count(), 4);
    assert!(!entries("layers").is_empty());
}

#[test]
fn the_last_line_says_how_many_pages_were_verified() {
    let output = demo(&[]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    let last = text.lines().last().expect("lines");
    let pages = last.strip_suffix(" pages verified, 0 wrong").expect(last);
    assert!(pages.parse::<u64>().is_ok_and(|pages| pages >= 4 * MEMORY_PAGES), "{last}");
    assert!(!text.contains('\u{1b}'), "no terminal, no colours");
}

/// A demo whose temporary directory is `directory`, once its guest has filled its memory.
fn begun_in(directory: &Path) -> Child {
    let mut program = Command::new(program());
    program.arg("demo").args(MEMORY).env("TMPDIR", directory).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut demo = program.spawn().expect("the program runs");
    let mut first = String::new();
    BufReader::new(demo.stdout.as_mut().expect("it was asked for")).read_line(&mut first).expect("text");
    assert!(first.contains("filled"), "{first}");
    demo
}

fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).expect("it is there").count()
}

#[test]
fn the_demo_leaves_nothing_behind_whatever_ends_it() {
    let directory = tempfile::tempdir().expect("a directory");
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let mut demo = begun_in(directory.path());
        assert_eq!(entries(directory.path()), 1);
        kill_process(Pid::from_child(&demo), signal).expect("it runs");
        let status = demo.wait().expect("it ends");
        assert_eq!(status.code(), Some(128 + signal.as_raw()), "{signal:?}");
        assert_eq!(entries(directory.path()), 0, "{signal:?}");
    }
    let mut killed = begun_in(directory.path());
    killed.kill().expect("it runs");
    killed.wait().expect("it ends");
    let next = Command::new(program()).arg("demo").args(MEMORY).env("TMPDIR", directory.path()).output();
    let next = next.expect("the program runs");
    assert!(next.status.success(), "{next:?}");
    assert!(String::from_utf8_lossy(&next.stderr).contains("which a killed demo left"), "{next:?}");
    assert_eq!(entries(directory.path()), 0, "a killed one's goes with the next one");
}

/// The demo refuses, and says why naming each of `named`.
fn assert_refused(words: &[&str], named: &[&str]) {
    let output = Command::new(program()).arg("demo").args(words).output().expect("the program runs");
    assert!(!output.status.success(), "{words:?} was accepted");
    assert_ne!(output.status.code(), Some(1), "status 1 means that a page was wrong");
    assert!(output.status.code().is_some(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    for name in named {
        assert!(said.contains(name), "{words:?} does not name {name}: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
    assert!(output.stdout.is_empty(), "{output:?}");
}

#[test]
fn arguments_that_cannot_be_are_refused_by_name() {
    assert_refused(&["--memory", "1MiB"], &["--memory", "64MiB"]);
    assert_refused(&["--memory", "65MiB"], &["--memory", "2MiB"]);
    assert_refused(&["--memory", "900TiB"], &["--memory", "available"]);
    assert_refused(&["--memory", "nonsense"], &["--memory", "nonsense"]);
    assert_refused(&["--memory", "64MiB", "--dirty", "101"], &["--dirty", "101"]);
    assert_refused(&["--memory", "64MiB", "--pages", "large"], &["--pages", "large", "huge"]);
    assert_refused(&["--memory", "64MiB", "--capture", "steal"], &["--capture", "steal", "copy"]);
}

#[test]
fn a_store_that_cannot_be_written_is_refused_by_name() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let inside = file.path().join("store");
    let store = inside.to_str().expect("plain words");
    assert_refused(&["--memory", "64MiB", "--store", store], &["store", store]);
    assert_no_writing_to(Path::new("/proc"));
}

fn assert_no_writing_to(directory: &Path) {
    let store = directory.to_str().expect("plain words");
    assert_refused(&["--memory", "64MiB", "--json", "--store", store], &["store", store]);
}
