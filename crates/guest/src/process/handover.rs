//! The guest's side of the hand-over: gives the faults of its memory to a handler, by Firecracker's protocol.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::Context as _;
use rekindle_kernel::{FaultScope, Features, GuestRange, RegisterMode, Userfaultfd, fd_passing};
use serde::{Deserialize, Serialize};

use super::arguments::{MemoryKind, TrackingKind};
use super::memory::GuestSpace;
use super::protocol::MemoryRegion;

/// A userfaultfd and the stream it was sent over. Both stay open as long as the guest lives: the handler takes the end
/// of the stream for the end of the guest, and without a userfaultfd later faults would read zeroes.
#[derive(Debug)]
pub(super) struct HandedOver {
    userfaultfd: Userfaultfd,
    _stream: UnixStream,
}

/// One region of the hand-over message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionMessage {
    /// Address of the region in the sender's process.
    pub base_host_virt_addr: u64,
    /// Length in bytes.
    pub size: u64,
    /// Position in guest memory.
    pub offset: u64,
    /// Size of the pages that the handler installs.
    pub page_size: u64,
    /// The same size, also in bytes, under the name that older handlers read.
    pub page_size_kib: u64,
}

/// The descriptors of a hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SentFds {
    /// The userfaultfd alone.
    Userfaultfd,
    /// The userfaultfd, then the memfd.
    UserfaultfdAndMemfd,
}

impl HandedOver {
    /// Registers all of `memory` and sends it to the handler that listens at `socket`.
    pub(super) fn send(
        memory: &GuestSpace,
        socket: &Path,
        tracking: TrackingKind,
        fds: SentFds,
    ) -> anyhow::Result<Self> {
        let userfaultfd = open(memory.kind(), tracking)?;
        for region in memory.regions() {
            let range = GuestRange { start: region.start, bytes: region.bytes };
            userfaultfd.register(range, register_mode(memory.kind(), tracking)).with_context(|| {
                format!("registering guest memory at {:#x} for {tracking:?} tracking", region.start)
            })?;
        }
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("connecting to the fault handler at {}", socket.display()))?;
        let message = serde_json::to_vec(&message_of(memory))?;
        let memfd = match fds {
            SentFds::Userfaultfd => None,
            SentFds::UserfaultfdAndMemfd => {
                Some(memory.memfd().context("private memory has no memfd to send")?)
            }
        };
        let fds: Vec<_> = [userfaultfd.as_fd()].into_iter().chain(memfd.map(AsFd::as_fd)).collect();
        fd_passing::send(&stream, &message, &fds).context("sending the hand-over message")?;
        Ok(Self { userfaultfd, _stream: stream })
    }

    /// The faults that the handler receives.
    pub(super) fn scope(&self) -> Option<FaultScope> {
        self.userfaultfd.scope()
    }
}

/// Opens a userfaultfd with the features that memory and tracking need, and with thread ids if the kernel has them.
fn open(kind: MemoryKind, tracking: TrackingKind) -> anyhow::Result<Userfaultfd> {
    let needed = features(kind, tracking);
    Userfaultfd::open(needed.union(Features::THREAD_ID))
        .or_else(|_| Userfaultfd::open(needed))
        .context("opening a userfaultfd for guest memory")
}

fn features(kind: MemoryKind, tracking: TrackingKind) -> Features {
    let memory = match kind {
        MemoryKind::Private => Features::EVENT_REMOVE,
        MemoryKind::Shared => Features::EVENT_REMOVE.union(Features::MISSING_SHMEM),
        MemoryKind::Huge | MemoryKind::PrivateHuge => {
            Features::EVENT_REMOVE.union(Features::MISSING_HUGETLBFS)
        }
        MemoryKind::Image => {
            Features::EVENT_REMOVE.union(Features::MISSING_SHMEM).union(Features::MINOR_SHMEM)
        }
    };
    let protecting = match kind {
        MemoryKind::Private | MemoryKind::Image => Features::PAGEFAULT_FLAG_WP,
        MemoryKind::Shared | MemoryKind::Huge | MemoryKind::PrivateHuge => {
            Features::PAGEFAULT_FLAG_WP.union(Features::WP_HUGETLBFS_SHMEM)
        }
    };
    match tracking {
        TrackingKind::Resident => memory,
        TrackingKind::Events => memory.union(protecting),
        TrackingKind::Scan => {
            memory.union(protecting).union(Features::WP_UNPOPULATED).union(Features::WP_ASYNC)
        }
    }
}

fn register_mode(kind: MemoryKind, tracking: TrackingKind) -> RegisterMode {
    match (kind, tracking) {
        (MemoryKind::Image, _) => RegisterMode::MissingAndMinor,
        (_, TrackingKind::Resident) => RegisterMode::Missing,
        (_, TrackingKind::Events | TrackingKind::Scan) => RegisterMode::MissingAndWriteProtect,
    }
}

fn message_of(memory: &GuestSpace) -> Vec<RegionMessage> {
    let page_size = u64::try_from(memory.kind().page_kind().bytes()).expect("usize is 64 bits");
    let region = |region: &MemoryRegion| RegionMessage {
        base_host_virt_addr: region.start,
        size: region.bytes,
        offset: region.offset,
        page_size,
        page_size_kib: page_size,
    };
    memory.regions().iter().map(region).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_an_array_of_regions_in_firecrackers_words() {
        let memory = GuestSpace::map(MemoryKind::Private, 1 << 20, 3).expect("1 MiB can be mapped");
        let message = serde_json::to_value(message_of(&memory)).expect("serializes");
        let regions = message.as_array().expect("an array");
        assert_eq!(regions.len(), 3);
        for (sent, region) in regions.iter().zip(memory.regions()) {
            assert_eq!(sent["base_host_virt_addr"], region.start);
            assert_eq!(sent["size"], region.bytes);
            assert_eq!(sent["offset"], region.offset);
            assert_eq!(sent["page_size"], 4096);
            assert_eq!(sent["page_size_kib"], 4096);
        }
    }
}
