//! The last output of a VMM, for the error that says it has ended.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Length of a log's end that is read.
const LOG_BYTES: u64 = 2048;
/// Lines of it that are told.
const LINES: usize = 3;

/// The last lines of the log of a VMM, in one; empty without any. A VMM that can write to the log's directory may have
/// put anything in its place, so it is read only if it is a file, and through no link.
pub fn last_words(log: &Path) -> String {
    let end = || {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::open(log, flags, Mode::empty())?);
        let facts = file.metadata()?;
        if !facts.is_file() {
            return Ok(Vec::new());
        }
        let length = facts.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES)))?;
        let mut end = Vec::new();
        file.take(LOG_BYTES).read_to_end(&mut end).map(|_| end)
    };
    let end: io::Result<Vec<u8>> = end();
    let end = String::from_utf8_lossy(&end.unwrap_or_default()).into_owned();
    let lines: Vec<_> = end.lines().rev().filter(|line| !line.trim().is_empty()).take(LINES).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_told_and_nothing_that_a_link_leads_to() {
        let directory = tempfile::tempdir().unwrap();
        let [log, link] = ["log", "link"].map(|name| directory.path().join(name));
        std::fs::write(&log, "first\nsecond\n\nthird\nfourth\n").unwrap();
        assert_eq!(last_words(&log), "second; third; fourth");
        std::os::unix::fs::symlink(&log, &link).unwrap();
        assert_eq!(last_words(&link), "");
        assert_eq!(last_words(&directory.path().join("missing")), "");
    }
}
