//! The host's 2 MiB pages that guests were promised and have not taken yet. Firecracker takes a page at its first touch
//! and reserves none, so a guest that finds none left cannot go on.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytesize::ByteSize;
use rekindle_api::types::{MemoryBacking, VmmKind};
use rekindle_kernel::hugepages;
use uuid::Uuid;

use super::spec::GuestSpec;

/// All promises of this node.
#[derive(Debug, Default)]
pub(super) struct HugePages(Mutex<BTreeMap<Uuid, Promised>>);

/// The promise to one guest; over when this drops.
#[derive(Debug)]
pub(super) struct HugePromise {
    id: Uuid,
    all: Arc<HugePages>,
}

#[derive(Clone, Copy, Debug)]
struct Promised {
    pages: u64,
    /// The process that takes them, once there is one.
    pid: Option<u32>,
}

/// Reason that a guest cannot have its huge pages now.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoHugePages {
    /// Too few are left.
    #[error(
        "the memory asked for needs {needed} huge pages of 2 MiB ({}), and {left} are left ({free} are free, {promised} of them \
         promised to other guests): reserve {} more (sysctl vm.nr_hugepages), or use another --backing",
        ByteSize::b(needed * HUGE_PAGE), needed - left
    )]
    TooFew {
        /// Pages that are asked for.
        needed: u64,
        /// Pages that could be had.
        left: u64,
        /// Pages that are not in use and that the kernel has reserved for no process.
        free: u64,
        /// Pages of those that were promised here.
        promised: u64,
    },
    /// The kernel does not say.
    #[error("the kernel does not say how many huge pages are free: {0}")]
    Unknown(#[from] io::Error),
}

const HUGE_PAGE: u64 = 2 << 20;

/// Huge pages that a guest's memory needs; none where its memory is of other pages.
pub(super) fn pages_of(memory_bytes: u64, backing: MemoryBacking) -> Option<u64> {
    backing.is_huge().then(|| memory_bytes.div_ceil(HUGE_PAGE))
}

impl HugePages {
    /// Promises each of some guests the pages it needs: all of them, or none.
    pub(super) fn promise(self: &Arc<Self>, needed: &[u64]) -> Result<Vec<HugePromise>, NoHugePages> {
        match needed.is_empty() {
            true => Ok(Vec::new()),
            false => self.promise_of(needed, hugepages::pages_free()?),
        }
    }

    fn promise_of(self: &Arc<Self>, needed: &[u64], free: u64) -> Result<Vec<HugePromise>, NoHugePages> {
        // A page that is taken after `free` was read counts twice: too few are promised then, never too many.
        let taken = self.taken();
        let mut all = self.lock();
        let left_of = |(id, promised): (&Uuid, &Promised)| {
            promised.pages.saturating_sub(taken.get(id).copied().unwrap_or(0))
        };
        let promised = all.iter().map(left_of).sum::<u64>().min(free);
        let (left, sum) =
            (free - promised, needed.iter().fold(0, |sum: u64, pages| sum.saturating_add(*pages)));
        if sum > left {
            return Err(NoHugePages::TooFew { needed: sum, left, free, promised });
        }
        let ids: Vec<_> = needed.iter().map(|pages| (Uuid::now_v7(), *pages)).collect();
        all.extend(ids.iter().map(|(id, pages)| (*id, Promised { pages: *pages, pid: None })));
        Ok(ids.into_iter().map(|(id, _)| HugePromise { id, all: Arc::clone(self) }).collect())
    }

    /// The promise to a guest that runs already, whether or not there is enough for it.
    pub(super) fn renew(self: &Arc<Self>, spec: &GuestSpec, pid: u32) -> Option<HugePromise> {
        let (id, pages) = (Uuid::now_v7(), pages_of(spec.memory_bytes(), spec.backing())?);
        self.lock().insert(id, Promised { pages, pid: None });
        HugePromise { id, all: Arc::clone(self) }.taken_by(spec, pid)
    }

    /// Pages that the guests' processes have taken.
    fn taken(&self) -> BTreeMap<Uuid, u64> {
        let promised = self.lock().clone();
        promised.into_iter().map(|(id, promised)| (id, promised.pid.map_or(0, pages_taken))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Promised>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HugePromise {
    /// The promise that is left once the guest's process runs. All but Firecracker have reserved their pages by then, which
    /// the kernel counts.
    pub(super) fn taken_by(self, spec: &GuestSpec, pid: u32) -> Option<Self> {
        match spec.kind() {
            VmmKind::Process | VmmKind::Qemu => None,
            VmmKind::Firecracker => {
                if let Some(promised) = self.all.lock().get_mut(&self.id) {
                    promised.pid = Some(pid);
                }
                Some(self)
            }
        }
    }
}

impl Drop for HugePromise {
    fn drop(&mut self) {
        self.all.lock().remove(&self.id);
    }
}

/// 2 MiB pages that a process has (`HugetlbPages`, proc(5)); none of one that is gone.
fn pages_taken(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("HugetlbPages:"));
    let kib = line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024 / HUGE_PAGE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_that_were_promised_to_one_guest_are_promised_to_no_other() {
        let pages = Arc::<HugePages>::default();
        let promise = pages.promise_of(&[6], 10).expect("there are enough");
        let refused = pages.promise_of(&[5], 10).expect_err("there are not enough for both");
        assert!(
            matches!(refused, NoHugePages::TooFew { needed: 5, left: 4, free: 10, promised: 6 }),
            "{refused}"
        );
        let said = refused.to_string();
        assert!(said.contains("(10.0 MiB)") && said.contains("reserve 1 more"), "{said}");
        drop(promise);
        pages.promise_of(&[10], 10).map(drop).expect("the first guest is gone");
    }

    #[test]
    fn several_guests_are_promised_their_huge_pages_together_or_not_at_all() {
        let pages = Arc::<HugePages>::default();
        assert!(pages.promise_of(&[4, 4, 4], 10).is_err(), "two of them would fit");
        let mut promises = pages.promise_of(&[4, 4], 10).expect("nothing is left of those that were refused");
        assert!(pages.promise_of(&[3], 10).is_err());
        promises.pop();
        pages.promise_of(&[6], 10).map(drop).expect("one of them is gone");
    }

    #[test]
    fn a_process_of_small_pages_has_taken_no_huge_ones() {
        assert_eq!(pages_taken(std::process::id()), 0);
    }
}
