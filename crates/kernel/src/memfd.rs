//! A memory file: guest memory, or a volume's bytes frozen at a pause.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, FlockOperation, MemfdFlags, Mode, OFlags, SealFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use crate::area::Area;
use crate::guard;
use crate::number::{size, word};
use crate::page::PageKind;
use crate::source::Source;

/// An owned memfd or other tmpfs or hugetlbfs file that can be neither shortened nor lengthened.
#[derive(Debug)]
pub struct Memfd {
    fd: OwnedFd,
    bytes: u64,
    kind: PageKind,
}

/// Reason that a descriptor that was handed over cannot be used as guest memory.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// It is not a file in memory.
    #[error(
        "not a memfd, tmpfs or hugetlbfs file (file system type {filesystem:#x}); give one made by memfd_create"
    )]
    NotMemory {
        /// The type of its file system, from statfs.
        filesystem: u64,
    },
    /// Its pages are of a size that is not served.
    #[error("its pages have {page_bytes} bytes; 4096 and 2097152 are served")]
    PageSize {
        /// Bytes of one of its pages.
        page_bytes: u64,
    },
    /// It could be truncated under our mapping, and cannot be sealed against that.
    #[error(
        "it cannot be sealed against shrinking ({source}); make it with MFD_ALLOW_SEALING and pass it writable"
    )]
    Resizable {
        /// The kernel's error.
        source: io::Error,
    },
    /// The kernel's calls about it fail.
    #[error("cannot be looked at: {0}")]
    Io(#[from] io::Error),
}

const TMPFS_MAGIC: u64 = 0x0102_1994;
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

impl Memfd {
    /// A new memfd of `bytes` bytes, all holes, a multiple of the page size of `kind`.
    pub fn create(name: &str, bytes: u64, kind: PageKind) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let flags = match kind {
            PageKind::Small => flags,
            PageKind::Huge => flags | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
        };
        let fd = rustix::fs::memfd_create(name, flags)?;
        rustix::fs::ftruncate(&fd, bytes)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)?;
        Ok(Self { fd, bytes, kind })
    }

    /// Takes over a descriptor from outside, sealing its size.
    pub fn adopt(fd: OwnedFd) -> Result<Self, AdoptError> {
        let filesystem = rustix::fs::fstatfs(&fd).map_err(io::Error::from)?;
        let page_bytes = word(usize::try_from(filesystem.f_bsize).unwrap_or(0));
        let kind = match u64::try_from(filesystem.f_type).unwrap_or(0) {
            TMPFS_MAGIC => PageKind::Small,
            HUGETLBFS_MAGIC => PageKind::of_bytes(page_bytes).ok_or(AdoptError::PageSize { page_bytes })?,
            filesystem => return Err(AdoptError::NotMemory { filesystem }),
        };
        let wanted = SealFlags::SHRINK | SealFlags::GROW;
        let resizable = |errno: Errno| AdoptError::Resizable { source: errno.into() };
        let present = rustix::fs::fcntl_get_seals(&fd).map_err(resizable)?;
        if !present.contains(wanted) {
            rustix::fs::fcntl_add_seals(&fd, wanted).map_err(resizable)?;
        }
        let length = rustix::fs::fstat(&fd).map_err(io::Error::from)?.st_size;
        let bytes = u64::try_from(length).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Self { fd, bytes, kind })
    }

    /// Length in bytes; it never changes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Kind of its pages.
    pub fn page_kind(&self) -> PageKind {
        self.kind
    }

    /// Another handle of the same file.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, bytes: self.bytes, kind: self.kind })
    }

    /// The same file opened anew: unlike a clone, it has a lock of its own.
    pub fn reopen(&self) -> io::Result<Self> {
        let fd = rustix::fs::open(self.proc_path(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { fd, bytes: self.bytes, kind: self.kind })
    }

    /// Locks the file; false if it is locked through another opening.
    ///
    /// The lock ends with the last clone and mapping of this opening: after a kill, once the last thread of the process
    /// has left its last system call.
    pub fn try_lock(&self) -> io::Result<bool> {
        match rustix::fs::flock(&self.fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Writes all of `from` at `offset`, allocating its pages. After an error a first part may be written.
    ///
    /// hugetlb has no write call: the bytes go through a mapping that lives as long as the call.
    pub fn write_at(&self, from: &[u8], offset: u64) -> io::Result<()> {
        self.check_inside(offset, from.len())?;
        match self.kind {
            PageKind::Small => self.write_small(from, offset),
            PageKind::Huge => self.write_huge(from, offset),
        }
    }

    /// Writes the bytes of `from` at `offset`, which the kernel copies. After an error a first part may be written, and
    /// the pages after it may be zeroes that were holes: bytes that cannot be read are an error of [`Errno::FAULT`].
    ///
    /// hugetlb has no write call.
    pub fn write_from(&self, from: Source<'_>, offset: u64) -> io::Result<()> {
        self.check_inside(offset, from.bytes())?;
        let mut done = 0;
        while done < from.bytes() {
            let rest = from.slice(done, from.bytes() - done);
            let at = i64::try_from(offset + word(done)).map_err(|_| io::Error::from(Errno::OVERFLOW))?;
            let start = std::ptr::with_exposed_provenance::<libc::c_void>(rest.address());
            // SAFETY: the kernel reads from a source that is mapped as long as it lives, and answers EFAULT where it
            // is not readable.
            let written = unsafe { libc::pwrite64(self.fd.as_raw_fd(), start, rest.bytes(), at) };
            match usize::try_from(written) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => done += written,
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// The same file, open for reading only: it can be mapped privately, and its holder cannot write it by this.
    pub fn reopen_to_read(&self) -> io::Result<OwnedFd> {
        Ok(rustix::fs::open(self.proc_path(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// True if `other` is the same file.
    pub fn is_same_as(&self, other: &Self) -> io::Result<bool> {
        let [ours, theirs] = [rustix::fs::fstat(&self.fd)?, rustix::fs::fstat(&other.fd)?];
        Ok((ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino))
    }

    fn write_small(&self, from: &[u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < from.len() {
            match rustix::io::pwrite(&self.fd, &from[done..], offset + word(done)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => done += written,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn write_huge(&self, from: &[u8], offset: u64) -> io::Result<()> {
        let page = word(self.kind.bytes());
        let start = offset - offset % page;
        let end = (offset + word(from.len())).next_multiple_of(page);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // Without NORESERVE: if pages are short the kernel refuses the mapping, rather than the write.
        let area = Area::of_fd(self.fd.as_fd(), start, size(end - start), protection, MapFlags::SHARED)?;
        let into = area.at(size(offset - start), from.len());
        // SAFETY: `into` is that many bytes of a writable area of our own, `from` is borrowed; mapping installed the
        // guard.
        unsafe { guard::copy(into, from.as_ptr(), from.len()) }.expect("private memory can be read");
        Ok(())
    }

    /// Fills `into` from `offset`, allocating nothing: holes read as zeroes.
    pub fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.check_inside(offset, into.len())?;
        let mut done = 0;
        while done < into.len() {
            match rustix::io::pread(&self.fd, &mut into[done..], offset + word(done)) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => done += read,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Frees the pages that are completely in the range, and makes its other bytes zero.
    pub fn punch_hole(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.fd, flags, offset, bytes)?)
    }

    /// Bytes of memory that the file takes.
    pub fn allocated_bytes(&self) -> io::Result<u64> {
        let blocks = rustix::fs::fstat(&self.fd)?.st_blocks;
        Ok(u64::try_from(blocks).unwrap_or(0) * 512)
    }

    /// The stretches that have pages, in order; asking allocates nothing. A written page of zeroes counts.
    ///
    /// hugetlb calls everything data, so there this is an error of kind `Unsupported`.
    pub fn data_runs(&self) -> io::Result<Vec<Range<u64>>> {
        if self.kind == PageKind::Huge {
            let why = "hugetlbfs does not tell its holes from its data";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        let mut runs = Vec::new();
        let mut position = 0;
        while position < self.bytes {
            let start = match rustix::fs::seek(&self.fd, SeekFrom::Data(position)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                Err(errno) => return Err(errno.into()),
            };
            let end = rustix::fs::seek(&self.fd, SeekFrom::Hole(start))?;
            runs.push(start..end);
            position = end;
        }
        Ok(runs)
    }

    /// Seals the file against writing, for good; false while any process has a writable mapping of it.
    ///
    /// True proves that no process can write it any more.
    pub fn seal_writes(&self) -> io::Result<bool> {
        match rustix::fs::fcntl_add_seals(&self.fd, SealFlags::WRITE) {
            Ok(()) => Ok(true),
            Err(Errno::BUSY) => Ok(false),
            // No seal can be added to a file with F_SEAL_SEAL, not even one that it has.
            Err(Errno::PERM) if self.is_write_sealed()? => Ok(true),
            Err(errno) => Err(errno.into()),
        }
    }

    /// True if it is sealed against writing or can still be: it is open for writing, and its seals are not themselves
    /// sealed.
    pub fn can_seal_writes(&self) -> io::Result<bool> {
        let seals = rustix::fs::fcntl_get_seals(&self.fd)?;
        let mode = rustix::fs::fcntl_getfl(&self.fd)? & OFlags::RWMODE;
        Ok(seals.contains(SealFlags::WRITE) || (!seals.contains(SealFlags::SEAL) && mode != OFlags::RDONLY))
    }

    /// True if the file is sealed against writing.
    pub fn is_write_sealed(&self) -> io::Result<bool> {
        Ok(rustix::fs::fcntl_get_seals(&self.fd)?.contains(SealFlags::WRITE))
    }

    /// A path by which this process can open the file again.
    pub(crate) fn proc_path(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }

    fn check_inside(&self, offset: u64, bytes: usize) -> io::Result<()> {
        match offset.checked_add(word(bytes)) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "the bytes lie outside the memory file")),
        }
    }
}

impl AsFd for Memfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Memfd> for OwnedFd {
    fn from(memfd: Memfd) -> Self {
        memfd.fd
    }
}
