//! Reports that a test could not run here, so that a skipped test does not look like a passed one.

use std::fs::OpenOptions;
use std::io::Write;

/// The environment variable that names the file in which skipped tiers are listed; `.ci/run` fails when it is not empty.
pub const SKIPS_FILE: &str = "REKINDLE_SKIPS_FILE";

/// Reports on standard error, and in the file named by [`SKIPS_FILE`] if that is set, that `tier` was skipped and why.
pub fn skipped(tier: &str, why: &str) {
    let line = format!("skipped: {tier}: {why}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os(SKIPS_FILE) {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .expect("the file for skipped tiers is one that .ci/run made");
    }
}
