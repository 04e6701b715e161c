//! Chooses the processor of a handler thread. A fault that is served on its own core costs a twentieth of one that has
//! to wake another core.

use rekindle_kernel::placement::{self, ThreadCpu};

use crate::limits;

/// Processor of the handler thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The processor of the faulting threads, if the VMM's userfaultfd reports threads.
    FollowFaults,
    /// This processor.
    Cpu(usize),
    /// Any processor, as the scheduler decides.
    Anywhere,
}

/// Moves the calling thread to the processor of the faulting threads.
#[derive(Debug)]
pub(super) struct Placer {
    follow: Option<Follow>,
    pid: u32,
    watched: Option<(u32, ThreadCpu)>,
}

/// Decides when to look up the processor of a faulting thread, and when to move there.
#[derive(Debug, Default)]
struct Follow {
    faults_until_look: u32,
    here: Option<usize>,
    seen: Option<usize>,
}

impl Placer {
    /// Places the calling thread, which serves the process `pid`. A refusal by the system costs only speed.
    pub(super) fn start(placement: Placement, pid: u32) -> Self {
        let follow = match placement {
            Placement::FollowFaults => Some(Follow::default()),
            Placement::Anywhere => None,
            Placement::Cpu(cpu) => {
                run_on(cpu);
                None
            }
        };
        Self { follow, pid, watched: None }
    }

    /// Notes a fault of `thread`.
    pub(super) fn fault(&mut self, thread: Option<u32>) {
        let (Some(follow), Some(thread)) = (&mut self.follow, thread) else { return };
        if !follow.fault() {
            return;
        }
        let Some(cpu) = cpu_of(&mut self.watched, self.pid, thread) else { return };
        if let Some(cpu) = follow.see(cpu) {
            run_on(cpu);
        }
    }
}

fn cpu_of(watched: &mut Option<(u32, ThreadCpu)>, pid: u32, thread: u32) -> Option<usize> {
    if watched.as_ref().is_none_or(|(known, _)| *known != thread) {
        *watched = Some((thread, ThreadCpu::open(pid, thread).ok()?));
    }
    let (_, cpu) = watched.as_ref().expect("set above");
    cpu.cpu().ok()
}

fn run_on(cpu: usize) {
    if let Err(error) = placement::run_on(cpu) {
        tracing::debug!(cpu, %error, "the fault handler stays where it is");
    }
}

impl Follow {
    /// True if the processor of this fault's thread should be looked up: for the first fault, then for one of many.
    fn fault(&mut self) -> bool {
        if self.faults_until_look > 0 {
            self.faults_until_look -= 1;
            return false;
        }
        self.faults_until_look = limits::PLACEMENT_FAULTS - 1;
        true
    }

    /// The processor to move to after a faulting thread was seen on `cpu`: at once the first time, later only if it was
    /// seen there twice in a row, so that two threads do not make the handler jump between them.
    fn see(&mut self, cpu: usize) -> Option<usize> {
        let settled = self.here.is_none() || self.seen == Some(cpu);
        self.seen = Some(cpu);
        if self.here == Some(cpu) || !settled {
            return None;
        }
        self.here = Some(cpu);
        self.here
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_at_the_first_fault_and_then_rarely() {
        let mut follow = Follow::default();
        let looks: Vec<_> = (0..limits::PLACEMENT_FAULTS * 2 + 1).filter(|_| follow.fault()).collect();
        assert_eq!(looks, [0, limits::PLACEMENT_FAULTS, limits::PLACEMENT_FAULTS * 2]);
    }

    #[test]
    fn it_moves_at_once_at_first_and_then_only_when_sure() {
        let mut follow = Follow::default();
        assert_eq!(follow.see(1), Some(1));
        assert_eq!(follow.see(1), None);
        assert_eq!(follow.see(0), None);
        assert_eq!(follow.see(1), None);
        assert_eq!(follow.see(0), None);
        assert_eq!(follow.see(0), Some(0));
        assert_eq!(follow.see(0), None);
    }
}
