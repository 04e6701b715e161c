//! What a VMM printed last, for the error that says it has ended.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// How much of a log's end is looked at.
const LOG_BYTES: u64 = 2048;
/// Lines of it that are told.
const LINES: usize = 3;

/// The last lines of the log of a VMM, in one; empty where there are none.
pub(crate) fn last_words(log: &Path) -> String {
    let end = || {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES)))?;
        let mut end = Vec::new();
        file.take(LOG_BYTES).read_to_end(&mut end).map(|_| end)
    };
    let end: io::Result<Vec<u8>> = end();
    let end = String::from_utf8_lossy(&end.unwrap_or_default()).into_owned();
    let lines: Vec<_> = end.lines().rev().filter(|line| !line.trim().is_empty()).take(LINES).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("; ")
}
