//! A QEMU with a guest's serial console at hand.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

/// Longest time of the slowest answer before the test fails.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// The program of QEMU.
pub(crate) const QEMU: &str = "qemu-system-x86_64";

/// True if QEMU can be run here.
pub(crate) fn have_qemu() -> bool {
    let version = Command::new(QEMU).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// A running QEMU; it ends with this value.
pub(crate) struct Console {
    qemu: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Console {
    /// Starts `kernel` in `machine` without any device that is not named in `more`.
    pub(crate) fn start(machine: &str, memory: &str, kernel: &Path, more: &[&str]) -> Self {
        let mut qemu = Command::new(QEMU)
            .args(["-M", machine, "-accel", "tcg", "-m", memory, "-nodefaults", "-no-user-config"])
            .args(["-display", "none", "-no-reboot", "-serial", "stdio", "-kernel"])
            .arg(kernel)
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("QEMU was run before");
        let input = qemu.stdin.take().expect("its input is a pipe");
        let mut output = BufReader::new(qemu.stdout.take().expect("its output is a pipe"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut line = Vec::new();
            while output.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(text).is_err() {
                    break;
                }
                line.clear();
            }
        });
        Self { qemu, input, lines }
    }

    /// The next line.
    pub(crate) fn line(&self) -> String {
        let line = self.lines.recv_timeout(ANSWER_MAX).expect("the guest says a line");
        println!("{line}");
        line
    }

    /// The next line that has `words` in it; firmware and kernels say much before.
    pub(crate) fn line_with(&self, words: &str) -> String {
        loop {
            let line = self.line();
            if line.contains(words) {
                return line;
            }
        }
    }

    /// The answer to `command`.
    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.say(command);
        self.line()
    }

    /// Waits until the machine has ended by itself.
    pub(crate) fn wait(&mut self) {
        while self.lines.recv_timeout(ANSWER_MAX).is_ok() {}
        self.qemu.wait().expect("a child of ours");
    }

    /// Says `command` without waiting for the answer.
    pub(crate) fn say(&mut self, command: &str) {
        println!("> {command}");
        self.input.write_all(format!("{command}\n").as_bytes()).expect("QEMU runs");
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.qemu.kill().expect("a child of ours");
        self.qemu.wait().expect("a child of ours");
    }
}

/// The number after the first word of an answer.
pub(crate) fn number(answer: &str) -> u32 {
    let word = answer.split(' ').nth(1).expect("a word and a number");
    word.parse().expect("a number")
}
