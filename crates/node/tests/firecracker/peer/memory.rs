//! A guest's memory: anonymous as Firecracker's is, or shared; each page's bytes follow from its seed.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rekindle_kernel::{
    Backing, Discard, Features, GuestMemory, Memfd, PAGE_BYTES, PageKind, RegisterMode, Userfaultfd,
    fd_passing,
};
use rustix::fs::SealFlags;
use serde_json::json;

/// Start of the hole for devices.
const LOW_BYTES: u64 = 3 << 30;

pub(super) struct Memory {
    kind: PageKind,
    regions: Vec<GuestMemory>,
    memfd: Option<Memfd>,
    /// Held as long as the guest lives: without any, missing pages would read zeroes.
    served: Option<(Userfaultfd, UnixStream)>,
}

/// Other holders of the memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sharing {
    Private,
    Shared,
    /// As a file that can never be sealed against writing.
    SharedUnsealable,
}

impl Memory {
    /// Memory in one region, or in two at falling addresses if it reaches beyond the hole.
    pub(super) fn map(bytes: u64, kind: PageKind, sharing: Sharing) -> Self {
        let memfd = (sharing != Sharing::Private)
            .then(|| Memfd::create("guest", bytes, kind).expect("there is memory"));
        if let (Sharing::SharedUnsealable, Some(memfd)) = (sharing, &memfd) {
            rustix::fs::fcntl_add_seals(memfd, SealFlags::SEAL).expect("it has no such seal yet");
        }
        let low = bytes.min(LOW_BYTES);
        let mut regions: Vec<GuestMemory> = Vec::new();
        let mut offset = 0;
        for length in [low, bytes - low].into_iter().filter(|length| *length > 0) {
            let backing = match &memfd {
                Some(memfd) => Backing::Shared(memfd, offset),
                None => Backing::Private(kind),
            };
            let shift = if kind == PageKind::Small { PAGE_BYTES * (1 + 2 * regions.len()) } else { 0 };
            let length_here = usize::try_from(length).expect("64 bits");
            regions.push(GuestMemory::map(backing, length_here, shift).expect("there is memory"));
            offset += length;
        }
        let falling = regions.is_sorted_by_key(|region| std::cmp::Reverse(region.range().start));
        assert!(falling, "a higher region lies at a lower address");
        Self { kind, regions, memfd, served: None }
    }

    pub(super) fn pages(&self) -> u32 {
        let bytes: usize = self.regions.iter().map(GuestMemory::bytes).sum();
        u32::try_from(bytes / PAGE_BYTES).expect("a small guest")
    }

    /// Registers all of it and sends it to the handler: one message, two descriptors at most, nothing after it.
    pub(super) fn hand_over(
        &mut self,
        userfaultfd: Option<Userfaultfd>,
        socket: &Path,
        tells_size_in_bytes: bool,
    ) -> std::io::Result<()> {
        let userfaultfd = match userfaultfd {
            Some(opened) => opened,
            None => Userfaultfd::open(Features::EVENT_REMOVE).map_err(std::io::Error::other)?,
        };
        let mut message = Vec::new();
        let mut offset = 0;
        for region in &self.regions {
            let range = region.range();
            userfaultfd.register(range, RegisterMode::Missing)?;
            let page_size = self.kind.bytes();
            let mut one = json!({ "base_host_virt_addr": range.start, "size": range.bytes, "offset": offset, "page_size_kib": page_size });
            if tells_size_in_bytes {
                one["page_size"] = json!(page_size);
            }
            message.push(one);
            offset += range.bytes;
        }
        let stream = UnixStream::connect(socket)?;
        let fds: Vec<_> =
            [userfaultfd.as_fd()].into_iter().chain(self.memfd.iter().map(|file| file.as_fd())).collect();
        let message = serde_json::to_vec(&message).expect("it is plain data");
        fd_passing::send(&stream, &message, &fds)?;
        self.served = Some((userfaultfd, stream));
        Ok(())
    }

    pub(super) fn read(&self, page: u32) -> [u8; PAGE_BYTES] {
        let (region, offset) = self.locate(page);
        let mut bytes = [0; PAGE_BYTES];
        region.read(offset, &mut bytes).expect("no page of a test is lost");
        bytes
    }

    pub(super) fn write(&self, page: u32, bytes: &[u8]) {
        let (region, offset) = self.locate(page);
        region.write(offset, bytes);
    }

    /// Gives pages back, as a balloon does.
    pub(super) fn discard(&self, first: u32, pages: u32) {
        for page in first..first + pages {
            let (region, offset) = self.locate(page);
            let how = if self.memfd.is_some() { Discard::Remove } else { Discard::DontNeed };
            region.discard(offset, PAGE_BYTES, how).expect("whole pages are given back");
        }
    }

    fn locate(&self, page: u32) -> (&GuestMemory, usize) {
        let mut offset = usize::try_from(page).expect("64 bits") * PAGE_BYTES;
        for region in &self.regions {
            if offset < region.bytes() {
                return (region, offset);
            }
            offset -= region.bytes();
        }
        unreachable!("page {page} is of this guest")
    }
}

/// Content of a page with this seed; zeroes without one.
pub(super) fn page_bytes(page: u32, seed: u64) -> [u8; PAGE_BYTES] {
    let mut bytes = [0; PAGE_BYTES];
    if seed == 0 {
        return bytes;
    }
    let first =
        seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(page).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    for (at, word) in bytes.chunks_exact_mut(8).enumerate() {
        let at = u64::try_from(at).expect("512 words");
        word.copy_from_slice(
            &first.rotate_left(13).wrapping_add(at.wrapping_mul(0x1656_67b1_9e37_79f9)).to_le_bytes(),
        );
    }
    bytes
}
