//! Output of a VMM's program when it is run with a few words.

use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rekindle_kernel::said::{Said, said_within};

/// Longest time for a program to answer.
const SAY_LIMIT: Duration = Duration::from_secs(10);

/// Runs a program with these words and gives its answer; see [`said_within`].
pub(super) fn said_by(program: &Path, words: &[&str]) -> io::Result<Said> {
    said_within(SAY_LIMIT, Command::new(program).args(words))
}
