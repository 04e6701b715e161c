//! The host's 2 MiB pages that guests were promised and have not taken yet. Firecracker takes a page at its first touch
//! and reserves none, so a guest that finds none left cannot go on.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytesize::ByteSize;
use rekindle_kernel::hugepages;
use uuid::Uuid;

use super::guests::GuestSpec;
use crate::api::types::{MemoryBacking, VmmKind};

/// All promises of this node.
#[derive(Debug, Default)]
pub(super) struct HugePages(Mutex<BTreeMap<Uuid, Promised>>);

/// The promise to one guest; over when this drops.
#[derive(Debug)]
pub(super) struct HugePromise {
    guest: Uuid,
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
        "its memory needs {needed} huge pages of 2 MiB ({}), and {left} are left ({free} are free, {promised} of them \
         promised to other guests): reserve {} more (sysctl vm.nr_hugepages), or use another --backing",
        ByteSize::b(needed * HUGE_PAGE), needed - left
    )]
    TooFew {
        /// Pages it needs.
        needed: u64,
        /// Pages it could have.
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

impl HugePages {
    /// Promises a guest the pages that its memory needs; none where its memory is of other pages.
    pub(super) fn promise(
        self: &Arc<Self>,
        guest: Uuid,
        spec: &GuestSpec,
    ) -> Result<Option<HugePromise>, NoHugePages> {
        match spec.backing() {
            MemoryBacking::Shared | MemoryBacking::Private => Ok(None),
            MemoryBacking::Huge => {
                let needed = spec.memory_bytes().div_ceil(HUGE_PAGE);
                self.promise_pages(guest, needed, hugepages::pages_free()?).map(Some)
            }
        }
    }

    fn promise_pages(
        self: &Arc<Self>,
        guest: Uuid,
        needed: u64,
        free: u64,
    ) -> Result<HugePromise, NoHugePages> {
        // A page that is taken after `free` was read counts twice: too few are promised then, never too many.
        let taken = self.taken();
        let mut all = self.lock();
        let left_of = |(guest, promised): (&Uuid, &Promised)| {
            promised.pages.saturating_sub(taken.get(guest).copied().unwrap_or(0))
        };
        let promised = all.iter().map(left_of).sum::<u64>().min(free);
        let left = free - promised;
        if needed > left {
            return Err(NoHugePages::TooFew { needed, left, free, promised });
        }
        all.insert(guest, Promised { pages: needed, pid: None });
        drop(all);
        Ok(HugePromise { guest, all: Arc::clone(self) })
    }

    /// The promise to a guest that runs already, whether or not there is enough for it.
    pub(super) fn renew(self: &Arc<Self>, guest: Uuid, spec: &GuestSpec, pid: u32) -> Option<HugePromise> {
        if spec.backing() != MemoryBacking::Huge {
            return None;
        }
        let promised = Promised { pages: spec.memory_bytes().div_ceil(HUGE_PAGE), pid: None };
        self.lock().insert(guest, promised);
        HugePromise { guest, all: Arc::clone(self) }.taken_by(spec, pid)
    }

    /// Pages that the guests' processes have taken.
    fn taken(&self) -> BTreeMap<Uuid, u64> {
        let promised = self.lock().clone();
        promised.into_iter().map(|(guest, promised)| (guest, promised.pid.map_or(0, pages_taken))).collect()
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
                if let Some(promised) = self.all.lock().get_mut(&self.guest) {
                    promised.pid = Some(pid);
                }
                Some(self)
            }
        }
    }
}

impl Drop for HugePromise {
    fn drop(&mut self) {
        self.all.lock().remove(&self.guest);
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
        let [first, second] = [1, 2].map(Uuid::from_u128);
        let promise = pages.promise_pages(first, 6, 10).expect("there are enough");
        let refused = pages.promise_pages(second, 5, 10).expect_err("there are not enough for both");
        assert!(
            matches!(refused, NoHugePages::TooFew { needed: 5, left: 4, free: 10, promised: 6 }),
            "{refused}"
        );
        let said = refused.to_string();
        assert!(said.contains("(10.0 MiB)") && said.contains("reserve 1 more"), "{said}");
        drop(promise);
        pages.promise_pages(second, 10, 10).map(drop).expect("the first guest is gone");
    }

    #[test]
    fn a_process_of_small_pages_has_taken_no_huge_ones() {
        assert_eq!(pages_taken(std::process::id()), 0);
    }
}
