//! The processors and the priority of threads.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::thread::CpuSet;

use crate::process::pid_of;

/// The CPU that the calling thread runs on at this moment.
pub fn current_cpu() -> usize {
    rustix::thread::sched_getcpu()
}

/// Makes the calling thread run on `cpu` only.
pub fn run_on(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "there is no CPU of that number"));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// Lets the calling thread run on every CPU that the process may use.
pub fn run_anywhere() -> io::Result<()> {
    let mut set = CpuSet::new();
    for cpu in 0..CpuSet::MAX_CPU {
        set.set(cpu);
    }
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// Gives the calling thread only the processor time that no other thread wants (SCHED_IDLE). Threads that it starts are
/// normal ones: a pool that it makes grow may serve others later.
pub fn idle_priority() -> io::Result<()> {
    set_policy(libc::SCHED_IDLE, 0)
}

/// Lets the calling thread run before every normal thread (SCHED_FIFO). Threads and processes that it starts are normal
/// ones. Needs a privilege (CAP_SYS_NICE) or a limit (RLIMIT_RTPRIO).
pub fn first_priority() -> io::Result<()> {
    set_policy(libc::SCHED_FIFO, 1)
}

fn set_policy(policy: libc::c_int, priority: libc::c_int) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: priority };
    let policy = policy | libc::SCHED_RESET_ON_FORK;
    // SAFETY: `parameters` is read only; 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives every thread that process `pid` has now the lowest normal priority (nice 19).
pub fn lower_priority(pid: u32) -> io::Result<()> {
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        let thread = thread.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        match rustix::process::setpriority_process(Some(pid_of(thread)?), 19) {
            // The thread ended meanwhile.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Makes the kernel end this process after others when memory runs out: `score` is its `oom_score_adj` (proc(5)),
/// unless it has a lower one already. Lowering it needs a privilege (CAP_SYS_RESOURCE).
pub fn outlive_others(score: i16) -> io::Result<()> {
    const OWN: &str = "/proc/self/oom_score_adj";
    let now = std::fs::read_to_string(OWN)?;
    if now.trim().parse().is_ok_and(|now: i16| now <= score) {
        return Ok(());
    }
    std::fs::write(OWN, score.to_string())
}

/// The CPU that thread `tid` of process `pid` ran on last.
pub fn cpu_of_thread(pid: u32, tid: u32) -> io::Result<usize> {
    ThreadCpu::open(pid, tid)?.cpu()
}

/// A thread of another process whose CPU is looked up again and again.
#[derive(Debug)]
pub struct ThreadCpu {
    stat: File,
}

impl ThreadCpu {
    /// Thread `tid` of process `pid`.
    pub fn open(pid: u32, tid: u32) -> io::Result<Self> {
        Ok(Self { stat: File::open(format!("/proc/{pid}/task/{tid}/stat"))? })
    }

    /// The CPU that it runs on, or ran on last; an error once it has ended.
    pub fn cpu(&self) -> io::Result<usize> {
        let mut line = [0; 1024];
        let read = self.stat.read_at(&mut line, 0)?;
        cpu_in_stat(&line[..read]).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// Field 39 of a stat line (proc(5)), counted from behind the thread's name, which may hold anything.
fn cpu_in_stat(line: &[u8]) -> Option<usize> {
    let name_end = line.iter().rposition(|byte| *byte == b')')?;
    let mut fields = line.get(name_end + 2..)?.split(|byte| *byte == b' ');
    std::str::from_utf8(fields.nth(39 - 3)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_found_behind_any_thread_name() {
        let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let line = format!("77 (a ) b) R {}\n", fields.join(" "));
        assert_eq!(cpu_in_stat(line.as_bytes()), Some(39));
        assert_eq!(cpu_in_stat(b"77 (x) R 1 2"), None);
        assert_eq!(cpu_in_stat(b"77 (x)"), None);
        assert_eq!(cpu_in_stat(b""), None);
    }

    #[test]
    fn a_cpu_number_without_a_cpu_is_refused() {
        assert_eq!(run_on(usize::MAX).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(run_on(CpuSet::MAX_CPU - 1).is_err());
    }

    #[test]
    fn a_thread_runs_where_it_is_put() {
        std::thread::spawn(|| {
            let cpu = current_cpu();
            run_on(cpu).unwrap();
            let tid = u32::try_from(rustix::thread::gettid().as_raw_pid()).unwrap();
            assert_eq!(cpu_of_thread(std::process::id(), tid).unwrap(), cpu);
            run_anywhere().unwrap();
            idle_priority().unwrap();
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_thread_that_runs_first_starts_threads_that_do_not_and_one_that_may_not_stays_as_it_was() {
        // SAFETY: 0 is the calling thread, and nothing is written.
        let policy = || unsafe { libc::sched_getscheduler(0) };
        let [own, of_its_thread] = std::thread::spawn(move || {
            let wanted = match first_priority() {
                Ok(()) => libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
                    libc::SCHED_OTHER
                }
            };
            let own = policy();
            assert_eq!(own, wanted);
            [own, std::thread::spawn(policy).join().unwrap()]
        })
        .join()
        .unwrap();
        assert_eq!(of_its_thread, libc::SCHED_OTHER, "its parent has {own}");
    }

    #[test]
    fn a_thread_that_is_not_there_has_no_cpu() {
        // A thread that was joined may still be listed in /proc for a moment. No thread ever has this id.
        assert!(cpu_of_thread(std::process::id(), u32::MAX).is_err());
        assert!(cpu_of_thread(0, 1).is_err());
    }
}
