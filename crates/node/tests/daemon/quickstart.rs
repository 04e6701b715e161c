//! README's quickstart does what it says: its commands are run as they stand there.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rekindle_kernel::{ProcessHandle, Signal};
use rekindle_testkit::black_box::BlackBox;
use rekindle_testkit::linux::kernel_or_skip;
use rekindle_testkit::skip::skipped;

use crate::machine_console::have_qemu;
use crate::support::program;

/// What stands before the blocks that are run.
const MARK: &str = "<!-- quickstart -->";
const MACHINES_MARK: &str = "<!-- quickstart: machines -->";

/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(180);

/// The shell block after the mark, if the page has one.
fn marked_block(page: &str, mark: &str) -> Option<String> {
    let (_, after) = page.split_once(mark)?;
    let mut lines = after.lines().skip_while(|line| line.trim().is_empty());
    let fence = lines.next()?.trim();
    let ticks =
        fence.strip_suffix("sh").filter(|ticks| ticks.len() >= 3 && ticks.chars().all(|tick| tick == '`'))?;
    let block: Vec<&str> = lines.by_ref().take_while(|line| line.trim() != ticks).collect();
    Some(block.join("\n") + "\n")
}

#[test]
fn the_readmes_quickstart_does_what_it_says() {
    run_block(MARK);
}

#[test]
fn the_readmes_quickstart_with_machines_does_what_it_says() {
    const TIER: &str = "the quickstart with machines";
    if have_qemu(TIER) && kernel_or_skip(TIER).is_some() {
        run_block(MACHINES_MARK);
    }
}

fn run_block(mark: &str) {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let page = fs::read_to_string(readme).expect("there is one");
    let Some(block) = marked_block(&page, mark) else {
        return skipped("quickstart", &format!("README.md has no shell block after {mark}"));
    };
    let place = BlackBox::new(&program()).expect("directories");
    let output = place.home_directory().join("output");
    let said = || fs::read_to_string(&output).unwrap_or_default();
    let mut shell = Command::new("bash");
    shell.args(["-euo", "pipefail", "-c", &block]).stdin(Stdio::null());
    place.surround(&mut shell);
    let mut path = vec![place.program().parent().expect("it lies in a directory").to_owned()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    shell.env("PATH", std::env::join_paths(path).expect("no directory has a colon"));
    // A file, not a pipe: what the block leaves running would hold a pipe open.
    let file = fs::File::create(&output).expect("a file");
    shell.stdout(file.try_clone().expect("a descriptor")).stderr(file);
    let mut shell = shell.spawn().expect("there is a shell");
    let handle = ProcessHandle::open(shell.id()).expect("it was just started");
    if !handle.wait_exit(LIMIT) {
        handle.signal(Signal::Kill).expect("it can be killed");
        shell.wait().expect("it ends");
        unreachable!("the quickstart did not end within {LIMIT:?}:\n{block}\nIt said:\n{}", said());
    }
    let status = shell.wait().expect("it has ended");
    assert!(status.success(), "{status}:\n{block}\nIt said:\n{}", said());
}

#[test]
fn a_marked_block_is_found_and_no_other() {
    let page =
        "# x\n\n```sh\nno\n```\n\n<!-- quickstart -->\n\n```sh\none\n  two\n```\n\n```sh\nthree\n```\n";
    assert_eq!(marked_block(page, MARK).as_deref(), Some("one\n  two\n"));
    assert_eq!(marked_block("```sh\nno\n```\n", MARK), None);
    assert_eq!(marked_block("<!-- quickstart -->\nno block\n```sh\nno\n```\n", MARK), None);
    assert_eq!(marked_block("<!-- quickstart -->\n```text\nno\n```\n", MARK), None);
}
