//! The program, run in a place of its own.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A user with an empty home, on a machine without settings of rekindle.
pub(crate) struct Place {
    directory: TempDir,
}

/// Output and end of the program.
#[derive(Debug)]
pub(crate) struct ProgramOutput {
    pub(crate) status: i32,
    pub(crate) out: String,
    pub(crate) error: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { directory: TempDir::new().expect("a temporary directory") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The program with these words.
    pub(crate) fn program(&self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rekindle"));
        command
            .args(words)
            .env_clear()
            .env("HOME", self.directory.path())
            .env("REKINDLE_STATE_DIRECTORY", self.path("state"))
            .env("REKINDLE_RUN_DIRECTORY", self.path("run"))
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("PATH", "/nowhere")
            .current_dir(self.directory.path())
            .stdin(Stdio::null());
        command
    }

    /// The program's output for these words.
    pub(crate) fn says(&self, words: &str) -> ProgramOutput {
        said(self.program(words.split_whitespace()))
    }

    /// `text` without what differs from run to run: this place's path and times.
    pub(crate) fn plain(&self, text: &str) -> String {
        without_times(&text.replace(&self.directory.path().display().to_string(), "PLACE"))
    }
}

/// Output of a program.
pub(crate) fn said(mut command: Command) -> ProgramOutput {
    let Output { status, stdout, stderr } = command.output().expect("the program runs");
    let text = |bytes| String::from_utf8(bytes).expect("it speaks UTF-8");
    ProgramOutput {
        status: status.code().expect("no signal ended it"),
        out: text(stdout),
        error: text(stderr),
    }
}

/// Compares with what is expected, or writes that anew.
pub(crate) fn compare(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/expected").join(name);
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        std::fs::write(&path, found).expect("the file can be written");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = expected.lines().zip(found.lines()).position(|(one, other)| one != other);
    let line = differs.unwrap_or_else(|| expected.lines().count().min(found.lines().count())) + 1;
    assert!(
        expected == found,
        "{} differs from line {line} on; UPDATE_EXPECTED=1 writes it anew. Found:\n{found}",
        path.display()
    );
}

/// Words that are times become `TIME`.
fn without_times(text: &str) -> String {
    let mut plain = String::new();
    for line in text.split_inclusive('\n') {
        let mut words = line.split(' ').peekable();
        while let Some(word) = words.next() {
            let unit = words.peek().map(|next| next.trim_end_matches([',', ';', '\n']));
            if word.len() == "2025-11-22T22:20:00.123Z".len() && word.contains('T') && word.ends_with('Z') {
                plain += "WHEN";
                plain.push_str(if words.peek().is_some() { " " } else { "" });
                continue;
            }
            let is_time = word.parse::<f64>().is_ok() && matches!(unit, Some("µs" | "ms" | "s" | "min"));
            if is_time {
                let end = words
                    .next()
                    .unwrap_or_default()
                    .trim_start_matches(|letter: char| letter.is_alphanumeric());
                plain += "TIME";
                plain += end;
            } else {
                plain += word;
            }
            if words.peek().is_some() {
                plain.push(' ');
            }
        }
    }
    plain
}
