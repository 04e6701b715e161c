//! A program that plays Firecracker as its API documents it and as its hand-over protocol is on the wire, with real
//! memory and a real userfaultfd. It is the test program that has it, started by a script that stands for Firecracker's.

mod api;
mod configured;
mod console;
mod guest;
mod jail;
mod memory;
mod settings;
mod snapshot;
mod vm;
mod vsock;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rekindle_kernel::Userfaultfd;

pub(crate) use settings::{Settings, Step};

use vm::Peer;

/// Variable in which the script puts the path of its settings, then its words, one a line.
const SETTINGS: &str = "REKINDLE_TEST_PEER";
const WORDS: &str = "REKINDLE_TEST_PEER_WORDS";

/// Writes scripts `firecracker` and `jailer` that are peers with the settings in that directory, by running `this` test
/// program.
pub(crate) fn install(directory: &Path, this: &Path) -> PathBuf {
    for name in ["firecracker", "jailer"] {
        let path = directory.join(name);
        let script = format!(
            "#!/bin/sh\nfor word; do words=\"$words$word\n\"; done\n{SETTINGS}='{settings}' {WORDS}=\"{name}\n$words\" exec '{this}' -q --exact peer::is_firecracker --nocapture --test-threads=1\n",
            settings = directory.join("settings.json").display(),
            this = this.display(),
        );
        rekindle_testkit::programs::write(&path, script).expect("the directory can be written");
    }
    directory.join("firecracker")
}

/// No test, but the process of a peer, if the environment says that it is to be one.
#[test]
fn is_firecracker() {
    let Some(settings) = std::env::var_os(SETTINGS).map(PathBuf::from) else { return };
    let words = std::env::var(WORDS).expect("the script says what it was told");
    let words: Vec<String> = words.lines().map(str::to_owned).collect();
    let (name, words) = words.split_first().expect("the script says its name");
    match name.as_str() {
        "jailer" => jail::run(&settings, words),
        _ => run(settings, words),
    }
}

/// Firecracker's arguments.
struct Arguments {
    socket: PathBuf,
    /// Path of its log; without one it logs among the guest's output.
    log: Option<PathBuf>,
}

impl Arguments {
    fn of(words: &[String]) -> Self {
        let mut words = words.iter();
        let (mut socket, mut id, mut log) = (None, None, None);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--api-sock" => socket = words.next().map(PathBuf::from),
                "--id" => id = words.next().cloned(),
                "--log-path" => log = words.next().map(PathBuf::from),
                "--level" => match words.next().map(String::as_str) {
                    Some("Error" | "Warning" | "Info") => {}
                    other => fail(&format!("Could not parse log level: {other:?}")),
                },
                "--no-seccomp" => {}
                other => {
                    fail(&format!("Arguments parsing error: Found argument '{other}' which wasn't expected"))
                }
            }
        }
        let legal = |id: &String| {
            (1..=64).contains(&id.len())
                && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        if !id.as_ref().is_some_and(legal) {
            fail("Invalid instance ID");
        }
        match socket {
            Some(socket) => Self { socket, log },
            None => fail("no API socket"),
        }
    }
}

fn run(settings: PathBuf, words: &[String]) {
    let now = Settings::read(&settings);
    match words.first().map(String::as_str) {
        Some("--version") => say(&format!("Firecracker v{}\n", now.version)),
        Some("--snapshot-version") => say(&format!("v{}", now.format)),
        _ => serve(settings, words),
    }
}

/// Serves the API, and plays the guest on the serial console, until the process ends.
fn serve(settings: PathBuf, words: &[String]) {
    let arguments = Arguments::of(words);
    play(settings, None, arguments);
}

fn play(settings: PathBuf, userfaultfd: Option<Userfaultfd>, Arguments { socket, log }: Arguments) {
    let peer = Arc::new(Peer::new(settings, userfaultfd, log));
    peer.log(&format!("Running Firecracker v{}", peer.settings().version));
    peer.step(Step::Start);
    console::begin(&peer);
    api::serve(&peer, &socket);
}

fn say(text: &str) -> ! {
    println!("\n{text}");
    std::process::exit(0)
}

fn fail(why: &str) -> ! {
    eprintln!("{why}");
    std::process::exit(153)
}
