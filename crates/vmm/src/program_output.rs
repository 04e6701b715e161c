//! Output of a VMM's program when it is run with a few words.

use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rekindle_kernel::program_output::{ProgramOutput, output_within};

/// Longest time for a program to answer.
const SAY_LIMIT: Duration = Duration::from_secs(10);

/// Runs a program with these words and gives its answer; see [`output_within`].
pub(super) fn output_of(program: &Path, words: &[&str]) -> io::Result<ProgramOutput> {
    output_within(SAY_LIMIT, Command::new(program).args(words))
}
