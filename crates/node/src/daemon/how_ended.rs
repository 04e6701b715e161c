//! The end of a process, in words.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

/// The signal by which a process is killed that does not end by itself.
const SIGKILL: i32 = 9;

/// Reason of a guest's end: its VMM's account `told`, the status of wait(2) if known, and its last output.
pub(super) fn reason_of_end(status: Option<i32>, told: Option<&str>, last_words: &str) -> String {
    let how = status.map_or_else(|| "ended, and its keeper does not know how".to_owned(), how_ended);
    match (told, last_words) {
        (Some(told), _) => format!("{told}; its VMM {how}"),
        (None, "") => format!("its guest {how}"),
        (None, words) => format!("its guest {how}; its VMM said: {words}"),
    }
}

/// Words for a status of wait(2), with the exit status or the signal: "was killed by signal 9 (SIGKILL), ...".
fn how_ended(status: i32) -> String {
    let status = ExitStatus::from_raw(status);
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended by itself with status {code}"),
        (None, Some(signal)) => match named(signal) {
            Some((name, perhaps)) => format!("was killed by signal {signal} ({name}){perhaps}"),
            None => format!("was killed by signal {signal}"),
        },
        (None, None) => format!("ended ({status})"),
    }
}

/// The same of a process that is killed where it has not ended by itself; none where it was killed.
pub(super) fn how_ended_by_itself(status: i32) -> Option<String> {
    let is_killed = ExitStatus::from_raw(status).signal() == Some(SIGKILL);
    (!is_killed).then(|| how_ended(status))
}

/// The name of a signal that ends processes, and what it mostly means where that is known.
fn named(signal: i32) -> Option<(&'static str, &'static str)> {
    let named = [
        (1, "SIGHUP", ""),
        (2, "SIGINT", ""),
        (3, "SIGQUIT", ""),
        (4, "SIGILL", ""),
        (6, "SIGABRT", ", by a failed check of its own"),
        (7, "SIGBUS", ", perhaps by memory that could not be had, as when no huge page is left"),
        (8, "SIGFPE", ""),
        (SIGKILL, "SIGKILL", ", perhaps out of memory (`dmesg` says so)"),
        (11, "SIGSEGV", ""),
        (13, "SIGPIPE", ""),
        (15, "SIGTERM", ""),
        (24, "SIGXCPU", ", by a limit of its processor time"),
        (25, "SIGXFSZ", ", by a limit of file size"),
        (31, "SIGSYS", ", perhaps by its seccomp filter (Firecracker's is set by firecracker.seccomp)"),
    ];
    named.into_iter().find(|(number, ..)| *number == signal).map(|(_, name, perhaps)| (name, perhaps))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_an_end_has_what_the_vmm_told_or_its_last_words() {
        let off = reason_of_end(Some(0), Some("its guest powered off"), "a line");
        assert_eq!(off, "its guest powered off; its VMM ended by itself with status 0");
        let said = reason_of_end(Some(256), None, "no such option");
        assert_eq!(said, "its guest ended by itself with status 1; its VMM said: no such option");
        assert_eq!(reason_of_end(None, None, ""), "its guest ended, and its keeper does not know how");
    }

    #[test]
    fn an_end_is_told_with_its_status_or_signal() {
        assert_eq!(how_ended(3 << 8), "ended by itself with status 3");
        assert_eq!(how_ended(9), "was killed by signal 9 (SIGKILL), perhaps out of memory (`dmesg` says so)");
        assert_eq!(how_ended(11 | 0x80), "was killed by signal 11 (SIGSEGV)");
        assert_eq!(how_ended(40), "was killed by signal 40");
        assert_eq!(how_ended_by_itself(9), None);
        assert_eq!(how_ended_by_itself(3 << 8).as_deref(), Some("ended by itself with status 3"));
        assert!(how_ended_by_itself(31).is_some_and(|how| how.contains("SIGSYS")));
    }
}
