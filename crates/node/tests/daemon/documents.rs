//! README and the documents do what they say: each of their `sh` blocks is run as it stands there, in directories of
//! its own. Commands that a test cannot run, such as installing packages, are `console` blocks, in which
//! `cargo xtask tidy` checks the words.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rekindle_kernel::{ProcessHandle, Signal};
use rekindle_testkit::black_box::BlackBox;
use rekindle_testkit::linux::kernel_or_skip;
use rekindle_testkit::s3::{BUCKET, KEY_ID, S3Server, SECRET};
use rekindle_testkit::skip::skipped;
use rekindle_testkit::stores::Operation;

use crate::machine_console::have_qemu;
use crate::support::program;

/// Longest time for one block.
const LIMIT: Duration = Duration::from_secs(180);

/// Address of a service in the documents, in place of which there is a server.
const SERVICE: &str = "https://s3.example.org";

/// Start of a block that starts no daemon of its own: a daemon with a sandbox called `web`.
const BEFORE: &str = "rekindle run web --memory 8MiB >/dev/null; rekindle tell web fill >/dev/null\n";

/// A block of a page.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    line: usize,
    text: String,
}

impl Block {
    fn needs_machines(&self) -> bool {
        self.text.contains("--kernel")
    }

    fn needs_namespaces(&self) -> bool {
        self.text.contains("ip netns add")
    }

    fn has_a_daemon(&self) -> bool {
        self.text.contains("rekindle serve")
    }
}

fn page(name: &str) -> Vec<Block> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name);
    blocks(&fs::read_to_string(path).expect("there is one"))
}

/// The shell blocks of a page.
fn blocks(page: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((line, fence)) = lines.next() {
        let Some(language) = fence.trim().strip_prefix("```") else { continue };
        let inside = lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim() != "```");
        let text: String = inside.map(|line| format!("{line}\n")).collect();
        if language == "sh" {
            found.push(Block { line: line + 2, text });
        }
    }
    found
}

#[test]
fn the_readmes_quickstart_does_what_it_says() {
    let blocks = page("README.md");
    let mut ran = 0;
    for block in blocks.iter().filter(|block| !block.needs_machines()) {
        run("README.md", block);
        ran += 1;
    }
    assert!(ran > 0, "README.md has a quickstart");
}

#[test]
fn the_readmes_quickstart_with_machines_does_what_it_says() {
    const TIER: &str = "the quickstart with machines";
    if have_qemu(TIER) && kernel_or_skip(TIER).is_some() {
        page("README.md")
            .iter()
            .filter(|block| block.needs_machines())
            .for_each(|block| run("README.md", block));
    }
}

#[test]
fn every_command_block_of_the_documents_does_what_it_says() {
    for name in ["docs/operations.md", "docs/machines.md", "docs/firecracker.md"] {
        page(name).iter().filter(|block| !block.needs_machines()).for_each(|block| run(name, block));
    }
}

#[test]
fn the_example_of_a_channel_does_what_it_says() {
    const TIER: &str = "the example of a channel";
    if have_qemu(TIER) && kernel_or_skip(TIER).is_some() {
        let is_it = |block: &Block| block.needs_machines() && !block.needs_namespaces();
        let blocks: Vec<_> = page("docs/machines.md").into_iter().filter(is_it).collect();
        assert_eq!(blocks.len(), 1, "there is an example");
        run("docs/machines.md", &blocks[0]);
    }
}

/// The network namespaces of an example, ended with this where the example has not done so.
struct Namespaces;

impl Drop for Namespaces {
    fn drop(&mut self) {
        for number in 0..=10 {
            // Most are gone.
            let name = format!("clone-{number}");
            Command::new("ip").args(["netns", "delete", &name]).stderr(Stdio::null()).status().ok();
        }
    }
}

#[test]
fn the_example_of_clones_with_a_network_does_what_it_says() {
    const TIER: &str = "the example of clones with a network";
    // Not a skip: a kernel without tap devices has none to give a machine.
    if !Path::new("/dev/net/tun").exists() || !have_qemu(TIER) {
        return;
    }
    if !Command::new("nft").arg("--version").output().is_ok_and(|output| output.status.success()) {
        skipped(TIER, "there is no nft");
        return;
    }
    let _ended = Namespaces;
    let blocks: Vec<_> = page("docs/machines.md").into_iter().filter(Block::needs_namespaces).collect();
    assert_eq!(blocks.len(), 1, "there is an example");
    run("docs/machines.md", &blocks[0]);
}

fn run(page: &str, block: &Block) {
    let place = BlackBox::new(&program()).expect("directories");
    let output = place.home_directory().join("output");
    let said = || fs::read_to_string(&output).unwrap_or_default();
    let daemon = (!block.has_a_daemon()).then(|| place.start().expect("a daemon starts"));
    let before = if daemon.is_some() { BEFORE } else { "" };
    // The two things of a machine that only one can have: the usual directory of sockets, and the usual port.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("there is a port");
    let text = block
        .text
        .replace("/run/rekindle/", &format!("{}/", place.run_directory().display()))
        .replace(":7433", &format!(":{}", port.port()));
    let server = text.contains(SERVICE).then(|| S3Server::start().expect("a server"));
    let text = match &server {
        Some(server) => {
            let keys = format!("AWS_ACCESS_KEY_ID={KEY_ID} AWS_SECRET_ACCESS_KEY={SECRET}");
            let text = text.replace("AWS_ACCESS_KEY_ID=key AWS_SECRET_ACCESS_KEY=secret", &keys);
            assert!(text.contains(&keys) && text.contains(&format!("s3://{BUCKET}/")), "they are replaced");
            text.replace(SERVICE, &server.endpoint())
        }
        None => text,
    };
    let mut shell = Command::new("bash");
    shell.args(["-euo", "pipefail", "-c", &format!("{before}{text}")]).stdin(Stdio::null());
    place.surround(&mut shell);
    if server.is_some() {
        // Servers of tests have no TLS.
        shell.env("REKINDLE_BUCKET_ALLOW_HTTP", "true");
    }
    // A file, not a pipe: what the block leaves running would hold a pipe open.
    let file = fs::File::create(&output).expect("a file");
    shell.stdout(file.try_clone().expect("a descriptor")).stderr(file);
    let mut shell = shell.spawn().expect("there is a shell");
    let handle = ProcessHandle::open(shell.id()).expect("it was just started");
    let line = block.line;
    if !handle.wait_exit(LIMIT) {
        handle.signal(Signal::Kill).expect("it can be killed");
        shell.wait().expect("it ends");
        unreachable!("{page}:{line} did not end within {LIMIT:?}:\n{text}\nIt said:\n{}", said());
    }
    let status = shell.wait().expect("it has ended");
    assert!(status.success(), "{page}:{line}: {status}:\n{text}\nIt said:\n{}", said());
    drop(daemon);
    if let Some(server) = server {
        assert!(server.requests(Operation::Put, "fleet/manifests/") > 0, "{page}:{line} published nothing");
    }
}

#[test]
fn shell_blocks_are_found_and_no_others() {
    let page =
        "# x\n\n```sh\none\n  two\n```\n\n```console\n$ no\n```\n\n```\nno\n```\n\n```sh\nthree\n```\n";
    let found = blocks(page);
    let texts: Vec<&str> = found.iter().map(|block| block.text.as_str()).collect();
    assert_eq!(texts, ["one\n  two\n", "three\n"]);
    assert_eq!(found[0].line, 4);
}
