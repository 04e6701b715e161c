//! A copy of the sources that mutations are put into, one after the other, and tested in.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, bail, ensure};

use super::list::Mutation;

/// The copy, and where it is built.
pub(super) struct Workshop {
    sources: PathBuf,
    target: PathBuf,
}

/// Outcome of a mutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Its test failed.
    Noticed,
    /// Its test did not end.
    Hung,
    /// Its test passed.
    Survived,
}

/// `cargo test` of a package, and of what makes Cargo build the code of others with the same features as for the whole
/// workspace, instead of once more.
const TEST: [&str; 7] =
    ["test", "--package", "xtask", "--package", "rekindle-testkit", "--features", "rekindle-testkit/s3"];

/// Longest time for a test that takes seconds: one that hangs has noticed something.
const TEST_SECONDS: u32 = 180;

/// The status of `timeout` for a command that it ended.
const TIMED_OUT: i32 = 124;

impl Outcome {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Noticed => "noticed",
            Self::Hung => "noticed: hung",
            Self::Survived => "SURVIVED",
        }
    }
}

impl Workshop {
    /// Makes `sources` a copy of the files that git knows under `root`, or would.
    pub(super) fn prepare(root: &Path, sources: PathBuf, target: PathBuf) -> anyhow::Result<Self> {
        let known = files_of(root)?;
        for file in &known {
            copy_if_different(&root.join(file), &sources.join(file))?;
        }
        remove_others(&sources, Path::new(""), &known)?;
        Ok(Self { sources, target })
    }

    /// Fails unless there are such tests and they pass in the sources as they are: a test that always fails proves
    /// nothing.
    pub(super) fn pass_unchanged(&self, tests: &str) -> anyhow::Result<()> {
        self.compile(tests).with_context(|| format!("building `cargo test {tests}`"))?;
        let output = self.test(tests)?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "`cargo test {tests}` fails without any mutation:\n{said}");
        ensure!(ran_any(&said), "`cargo test {tests}` runs no test; mend `noticed_by`");
        Ok(())
    }

    /// Puts a mutation in, runs its test, and takes it out.
    pub(super) fn try_out(&self, mutation: &Mutation) -> anyhow::Result<Outcome> {
        let path = self.sources.join(&mutation.file);
        let right = std::fs::read_to_string(&path)?;
        std::fs::write(&path, right.replacen(&mutation.find, &mutation.replace, 1))?;
        let outcome = self.outcome(&mutation.noticed_by);
        std::fs::write(&path, right)?;
        outcome.with_context(|| format!("mutation `{}`", mutation.name))
    }

    fn outcome(&self, tests: &str) -> anyhow::Result<Outcome> {
        self.compile(tests).context("a mutation must compile, or it proves nothing")?;
        let output = self.test(tests)?;
        Ok(match output.status.code() {
            Some(0) => Outcome::Survived,
            Some(TIMED_OUT) => Outcome::Hung,
            Some(_) | None => Outcome::Noticed,
        })
    }

    fn compile(&self, tests: &str) -> anyhow::Result<()> {
        let mut cargo = Command::new("cargo");
        let output = self.within(cargo.args(TEST).arg("--no-run").args(tests.split_whitespace()))?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    fn test(&self, tests: &str) -> anyhow::Result<Output> {
        let mut timeout = Command::new("timeout");
        let seconds = TEST_SECONDS.to_string();
        let limited = timeout.args(["--kill-after", "10", &seconds, "cargo"]).args(TEST);
        self.within(limited.args(tests.split_whitespace()))
    }

    fn within(&self, command: &mut Command) -> anyhow::Result<Output> {
        command.current_dir(&self.sources).env("CARGO_TARGET_DIR", &self.target);
        // Set by the Cargo that runs this, and of another package.
        command.env_remove("CARGO_MANIFEST_DIR");
        command.output().with_context(|| format!("starting {:?}", command.get_program()))
    }
}

/// True if the output of `cargo test` tells of a test that ran.
fn ran_any(said: &str) -> bool {
    said.lines().any(|line| {
        let count = line.strip_prefix("running ").and_then(|rest| rest.split_whitespace().next());
        count.is_some_and(|count| count != "0")
    })
}

fn files_of(root: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let mut git = Command::new("git");
    git.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let output = git.output().context("starting git")?;
    ensure!(output.status.success(), "git: {}", String::from_utf8_lossy(&output.stderr));
    let names = output.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let files = names.map(|name| PathBuf::from(OsStr::from_bytes(name)));
    // One that is deleted and not committed is listed and not there. Cargo's settings of the workspace hold below it: twice the
    // same flags are other flags, and all code of others would be built once more.
    Ok(files.filter(|file| root.join(file).is_file() && !file.starts_with(".cargo")).collect())
}

/// Leaves what is equal as it is: what is newer is built again.
fn copy_if_different(from: &Path, to: &Path) -> anyhow::Result<()> {
    let bytes = std::fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    if std::fs::read(to).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    let directory = to.parent().context("a file lies in a directory")?;
    std::fs::create_dir_all(directory)?;
    std::fs::copy(from, to).with_context(|| format!("writing {}", to.display()))?;
    Ok(())
}

/// Removes the files under `directory` of the copy that are not among `known`.
fn remove_others(copy: &Path, directory: &Path, known: &BTreeSet<PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(copy.join(directory))? {
        let entry = entry?;
        let path = directory.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            remove_others(copy, &path, known)?;
        } else if !known.contains(&path) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_no_test_has_is_seen() {
        assert!(!ran_any("running 0 tests\n\nrunning 0 tests\ntest result: ok"));
        assert!(ran_any("running 0 tests\n\nrunning 2 tests\ntest result: ok"));
    }
}
