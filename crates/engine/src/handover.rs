//! The message by which a VMM hands its memory over to be served: regions as JSON, a userfaultfd, perhaps a memfd.
//!
//! The protocol is Firecracker's: one message on a stream, without a length before it and without an answer. Both of
//! its page size fields are in bytes. The stream then stays open; its end means that the VMM is gone.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rekindle_kernel::{Memfd, PageKind, Userfaultfd, fd_passing, memfd, userfaultfd};
use serde::Deserialize;

use crate::deadline::Deadline;
use crate::geometry::bytes_of_pages;
use crate::image::Image;
use crate::limits;
use crate::regions::{Region, Regions, RegionsError};

/// A guest whose memory was handed over to be served.
#[derive(Debug)]
pub struct Handover {
    /// Addresses of its pages.
    pub regions: Regions,
    /// The userfaultfd that reports its faults.
    pub userfaultfd: Userfaultfd,
    /// The file of its memory, if the VMM shares it.
    pub memfd: Option<Memfd>,
    /// The image that its memory is a private mapping of, if it was started on one.
    pub image: Option<Arc<Image>>,
    /// The VMM's process.
    pub pid: u32,
    /// Open while the VMM lives.
    pub stream: UnixStream,
}

/// Reason that a VMM could not be taken over; the descriptors it sent are closed again.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// It connected and sent nothing.
    #[error("the VMM connected but said nothing for {} ms", limit.as_millis())]
    Silent {
        /// The limit of the wait.
        limit: Duration,
    },
    /// It closed the connection before the end of its message.
    #[error("the VMM closed the connection after {bytes} bytes, before its message was whole")]
    Closed {
        /// Length of the message.
        bytes: usize,
    },
    /// It did not finish its message in time.
    #[error("the VMM sent {bytes} bytes and did not finish its message in {} ms", limit.as_millis())]
    Unfinished {
        /// Length received so far.
        bytes: usize,
        /// The limit of the wait.
        limit: Duration,
    },
    /// Its message is longer than the limit.
    #[error("the VMM's message is longer than {} bytes", limits::HANDOVER_BYTES_MAX)]
    TooLong,
    /// Its message is not a list of regions.
    #[error("the VMM's message is not a list of memory regions: {0}")]
    Malformed(#[source] serde_json::Error),
    /// A region has pages of a size that is not served.
    #[error(
        "memory region at offset {offset:#x} has pages of {page_bytes} bytes; 4096 and 2097152 are served"
    )]
    PageSize {
        /// The region's offset.
        offset: u64,
        /// The size in the message.
        page_bytes: u64,
    },
    /// The regions are not the memory of the volume.
    #[error(transparent)]
    Regions(#[from] RegionsError),
    /// No descriptor came with the message.
    #[error("the VMM sent no userfaultfd with its message")]
    NoDescriptor,
    /// It sent more than the protocol's two descriptors.
    #[error("the VMM sent {count} descriptors with its message; a userfaultfd and a memfd are expected")]
    TooManyDescriptors {
        /// Number of descriptors.
        count: usize,
    },
    /// The first descriptor is not a userfaultfd.
    #[error("the first descriptor the VMM sent is not usable as userfaultfd: {0}")]
    NotUserfaultfd(#[source] userfaultfd::AdoptError),
    /// The second descriptor is not memory that can be adopted.
    #[error("the second descriptor the VMM sent is not usable as guest memory: {0}")]
    NotMemory(#[source] memfd::AdoptError),
    /// The memory file is not as long as the regions.
    #[error("the VMM's memory file has {memfd_bytes} bytes, its regions have {bytes}")]
    MemorySize {
        /// Bytes of the file.
        memfd_bytes: u64,
        /// Bytes of the regions.
        bytes: u64,
    },
    /// The memory file has pages of another size than a region says.
    #[error(
        "the VMM's memory file is made of {found:?} pages, its region at offset {offset:#x} of {said:?} ones"
    )]
    MemoryPages {
        /// The region's offset.
        offset: u64,
        /// Pages of the region.
        said: PageKind,
        /// Pages of the file.
        found: PageKind,
    },
    /// The VMM's process is not visible from here.
    #[error("the VMM's process cannot be seen: run it in rekindle's pid namespace, or in one inside it: {0}")]
    HiddenProcess(#[source] io::Error),
    /// The connection failed.
    #[error("the hand-over connection failed: {0}")]
    Connection(#[from] io::Error),
}

impl Handover {
    /// Reads the one message of a VMM that has connected, within `limit`, and checks it against a volume of
    /// `volume_pages`. Blocks the calling thread.
    pub fn receive(stream: UnixStream, volume_pages: u32, limit: Duration) -> Result<Self, HandoverError> {
        let message = Message::read(&stream, limit)?;
        let regions = checked(&message.regions, volume_pages)?;
        let count = message.fds.len();
        let mut fds = message.fds.into_iter();
        let first = fds.next().ok_or(HandoverError::NoDescriptor)?;
        let second = fds.next();
        if fds.next().is_some() {
            return Err(HandoverError::TooManyDescriptors { count });
        }
        let userfaultfd = Userfaultfd::adopt(first).map_err(HandoverError::NotUserfaultfd)?;
        let memfd = second.map(|fd| adopt_memory(fd, &regions)).transpose()?;
        let pid = fd_passing::peer_pid(&stream).map_err(HandoverError::HiddenProcess)?;
        Ok(Self { regions, userfaultfd, memfd, image: None, pid, stream })
    }
}

/// The regions of a complete message, checked against a volume of `volume_pages`; `None` if `message` is only its
/// beginning.
pub fn regions_of(message: &[u8], volume_pages: u32) -> Result<Option<Regions>, HandoverError> {
    parse(message)?.map(|regions| checked(&regions, volume_pages)).transpose()
}

fn checked(regions: &[RegionMessage], volume_pages: u32) -> Result<Regions, HandoverError> {
    let regions = regions.iter().map(RegionMessage::region).collect::<Result<_, _>>()?;
    Ok(Regions::new(regions, volume_pages)?)
}

/// Takes over the memory file of a guest with these regions.
pub(crate) fn adopt_memory(fd: OwnedFd, regions: &Regions) -> Result<Memfd, HandoverError> {
    let memfd = Memfd::adopt(fd).map_err(HandoverError::NotMemory)?;
    let bytes = bytes_of_pages(regions.pages());
    if memfd.bytes() != bytes {
        return Err(HandoverError::MemorySize { memfd_bytes: memfd.bytes(), bytes });
    }
    let found = memfd.page_kind();
    match regions.iter().find(|region| region.page != found) {
        Some(region) => Err(HandoverError::MemoryPages { offset: region.offset, said: region.page, found }),
        None => Ok(memfd),
    }
}

/// A complete message and its descriptors.
struct Message {
    regions: Vec<RegionMessage>,
    fds: Vec<OwnedFd>,
}

/// A region in the message. Unknown fields are ignored.
#[derive(Deserialize)]
struct RegionMessage {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    page_size: Option<u64>,
    /// The older name of the same number, also in bytes.
    page_size_kib: Option<u64>,
}

impl Message {
    /// Reads until the bytes are a complete JSON value: nothing else marks the end of the message.
    fn read(stream: &UnixStream, limit: Duration) -> Result<Self, HandoverError> {
        let deadline = Deadline::after(limit);
        let mut bytes = vec![0; limits::HANDOVER_BYTES_MAX + 1];
        let mut filled = 0;
        let mut fds = Vec::new();
        loop {
            let (count, more) = receive_before(deadline, limit, stream, &mut bytes[filled..], filled)?;
            fds.extend(more);
            if count == 0 {
                return Err(HandoverError::Closed { bytes: filled });
            }
            filled += count;
            if filled > limits::HANDOVER_BYTES_MAX {
                return Err(HandoverError::TooLong);
            }
            if fds.len() > FDS_MAX {
                return Err(HandoverError::TooManyDescriptors { count: fds.len() });
            }
            if let Some(regions) = parse(&bytes[..filled])? {
                return Ok(Self { regions, fds });
            }
        }
    }
}

impl RegionMessage {
    fn region(&self) -> Result<Region, HandoverError> {
        let page_bytes = self.page_size.or(self.page_size_kib).unwrap_or(bytes_of_pages(1));
        let page = PageKind::of_bytes(page_bytes)
            .ok_or(HandoverError::PageSize { offset: self.offset, page_bytes })?;
        Ok(Region { start: self.base_host_virt_addr, bytes: self.size, offset: self.offset, page })
    }
}

/// The userfaultfd and the memfd.
const FDS_MAX: usize = 2;

/// The regions, or `None` if `bytes` is only the beginning of a message.
fn parse(bytes: &[u8]) -> Result<Option<Vec<RegionMessage>>, HandoverError> {
    // An array ends with its bracket; without one at the end there is no need to parse everything again.
    let plausible = bytes.trim_ascii_end().ends_with(b"]") || !bytes.trim_ascii_start().starts_with(b"[");
    if !plausible {
        return Ok(None);
    }
    match serde_json::from_slice(bytes) {
        Ok(regions) => Ok(Some(regions)),
        Err(error) if error.is_eof() => Ok(None),
        Err(error) => Err(HandoverError::Malformed(error)),
    }
}

/// One receive that ends at `deadline`; `filled` is the length received before, for the error.
fn receive_before(
    deadline: Deadline,
    limit: Duration,
    stream: &UnixStream,
    buffer: &mut [u8],
    filled: usize,
) -> Result<(usize, Vec<OwnedFd>), HandoverError> {
    let late = || match filled {
        0 => HandoverError::Silent { limit },
        bytes => HandoverError::Unfinished { bytes, limit },
    };
    let left = deadline.left();
    if left.is_zero() {
        return Err(late());
    }
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(left))?;
    match fd_passing::receive(stream, buffer, FDS_MAX + 1) {
        Ok(received) => Ok(received),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(late()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
