//! Obstacles to the capture of a VMM that others start, found at its hand-over rather than at the capture.

use std::os::fd::AsFd as _;

use rekindle_engine::serve::KeptEpoch;
use rekindle_kernel::holders::{self, Holder, Holding};
use rekindle_kernel::{Memfd, Pagemap};

/// Parts of a VMM that its capture will need.
#[derive(Debug)]
pub(super) struct HandedOver {
    pid: u32,
    memfd: Option<Memfd>,
}

impl HandedOver {
    /// The process and the memory file, where there is one, of a VMM that was handed over.
    pub(super) fn of(kept: &KeptEpoch) -> anyhow::Result<Self> {
        let memfd = kept.memfd.as_ref().map(|memfd| anyhow::Ok(Memfd::adopt(memfd.try_clone()?)?));
        Ok(Self { pid: kept.facts.pid, memfd: memfd.transpose()? })
    }

    /// The reason that the VMM cannot be captured, or its capture not be saved, in its present state.
    pub(super) fn hindrance(&self, keeper: u32) -> Option<String> {
        let pid = self.pid;
        if let Err(error) = Pagemap::of(pid) {
            return Some(format!(
                "the page table of process {pid} cannot be read ({error}): run the daemon as root or as the VMM's user"
            ));
        }
        let memfd = self.memfd.as_ref()?;
        if memfd.can_seal_writes().unwrap_or(false) {
            return None;
        }
        let cannot = "its memory file cannot be sealed (F_SEAL_SEAL, or open for reading only)";
        match holders::holding(memfd.as_fd(), &[keeper, pid]) {
            Ok(Holding::Nobody) => None,
            Ok(Holding::Held(Holder { pid, name })) => Some(format!(
                "{cannot}, and process {pid} ({name}) holds it too: a capture is saved once that process has ended"
            )),
            Ok(Holding::Unseen(Holder { pid, name })) => Some(format!(
                "{cannot}, and process {pid} ({name}) cannot be looked at: run the daemon as root (or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH), or hand over a file without F_SEAL_SEAL"
            )),
            Err(error) => Some(format!("{cannot}, and /proc does not say who holds it: {error}")),
        }
    }
}
