//! Whether every thread of a process stands still, asked of a process that need not be our child.

use std::collections::BTreeSet;
use std::{fs, io};

/// Whether every thread of process `pid` is stopped, or ended.
///
/// A thread that was not in the list when it was read was started by one that still ran then. So a second list, read
/// when all of the first stood, misses nobody.
pub(super) fn all_threads_stand(pid: u32) -> io::Result<bool> {
    let first = threads(pid)?;
    if !all_stand(pid, &first)? {
        return Ok(false);
    }
    let second = threads(pid)?;
    Ok(second == first || all_stand(pid, &second)?)
}

fn threads(pid: u32) -> io::Result<BTreeSet<String>> {
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    fs::read_dir(format!("/proc/{pid}/task"))?.map(name).collect()
}

fn all_stand(pid: u32, threads: &BTreeSet<String>) -> io::Result<bool> {
    for thread in threads {
        match fs::read(format!("/proc/{pid}/task/{thread}/stat")) {
            Ok(stat) if !stands(&stat) => return Ok(false),
            Ok(_) => {}
            // The thread has ended meanwhile: ESRCH where the file was open by then.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Field 3 of a stat line (proc(5)), behind the thread's name, which may hold anything.
fn stands(stat: &[u8]) -> bool {
    let name_end = stat.iter().rposition(|byte| *byte == b')');
    let state = name_end.and_then(|end| stat.get(end + 2));
    state.is_some_and(|state| b"TtZXx".contains(state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_found_behind_any_thread_name() {
        assert!(stands(b"77 (a ) R) T 1 2"));
        assert!(stands(b"77 (x) t 1 2"));
        assert!(stands(b"77 (x) Z 1 2"));
        assert!(!stands(b"77 (T) R 1 2"));
        assert!(!stands(b"77 (T) S 1 2"));
        assert!(!stands(b"77 (T)"));
        assert!(!stands(b""));
    }

    #[test]
    fn a_process_that_runs_does_not_stand() {
        assert!(!all_threads_stand(std::process::id()).expect("this process can be read"));
    }
}
