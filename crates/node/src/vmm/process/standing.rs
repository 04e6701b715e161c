//! Whether every thread of a process stands still, asked of a process that need not be our child.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::io::Errno;

/// A process that is asked whether its threads stand.
#[derive(Debug)]
pub(super) struct Threads {
    pid: u32,
    first: File,
}

/// What a stat line (proc(5)) says of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    /// Whether the thread is stopped, or has ended.
    stands: bool,
    /// How many threads its process had when the line was made.
    of_threads: usize,
}

impl Threads {
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        Ok(Self { pid, first: File::open(format!("/proc/{pid}/task/{pid}/stat"))? })
    }

    /// Whether every thread is stopped, or has ended.
    ///
    /// A thread that is not in the list was started by one that still ran when the list was read. So if the list is as
    /// long as the process has threads at the end, when all in it stood, it misses nobody.
    pub(super) fn all_stand(&self) -> io::Result<bool> {
        let mut last = stat_in(&self.first)?;
        if !last.stands || last.of_threads == 1 {
            return Ok(last.stands);
        }
        let mut listed = 0;
        for entry in fs::read_dir(format!("/proc/{}/task", self.pid))? {
            let entry = entry?;
            listed += 1;
            if entry.file_name().to_str() == Some(self.pid.to_string().as_str()) {
                continue;
            }
            match File::open(entry.path().join("stat")).and_then(|file| stat_in(&file)) {
                Ok(stat) if stat.stands => last = stat,
                Ok(_) => return Ok(false),
                // The thread has ended meanwhile; the next list is without it.
                Err(error) if is_ended(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(listed == last.of_threads)
    }
}

fn is_ended(error: &io::Error) -> bool {
    let ended = [Errno::NOENT, Errno::SRCH].map(|errno| Some(errno.raw_os_error()));
    ended.contains(&error.raw_os_error())
}

fn stat_in(file: &File) -> io::Result<Stat> {
    let mut line = [0; 1024];
    let read = file.read_at(&mut line, 0)?;
    parsed(&line[..read]).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Fields 3 and 20, counted from behind the thread's name, which may hold anything.
fn parsed(line: &[u8]) -> Option<Stat> {
    let name_end = line.iter().rposition(|byte| *byte == b')')?;
    let mut fields = line.get(name_end + 2..)?.split(|byte| *byte == b' ');
    let stands = matches!(fields.next()?, b"T" | b"t" | b"Z" | b"X" | b"x");
    let of_threads = std::str::from_utf8(fields.nth(20 - 4)?).ok()?.parse().ok()?;
    Some(Stat { stands, of_threads })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_and_the_number_of_threads_are_found_behind_any_thread_name() {
        let line = |state: &str| {
            let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
            parsed(format!("77 (a ) R) {state} {}\n", fields.join(" ")).as_bytes())
        };
        for (state, stands) in
            [("T", true), ("t", true), ("Z", true), ("R", false), ("S", false), ("D", false)]
        {
            assert_eq!(line(state), Some(Stat { stands, of_threads: 20 }), "{state}");
        }
        assert_eq!(parsed(b"77 (T) T 1 2"), None);
        assert_eq!(parsed(b"77 (T)"), None);
        assert_eq!(parsed(b""), None);
    }

    #[test]
    fn a_process_that_runs_does_not_stand() {
        let threads = Threads::of(std::process::id()).expect("this process can be read");
        assert!(!threads.all_stand().expect("this process can be read"));
    }
}
