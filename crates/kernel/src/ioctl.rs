//! The ioctls of userfaultfd and page maps, by number and by the structure they take.

use std::os::fd::AsFd;

use linux_raw_sys::general::{
    pm_scan_arg, uffdio_api, uffdio_continue, uffdio_copy, uffdio_poison, uffdio_range, uffdio_register,
    uffdio_writeprotect, uffdio_zeropage,
};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};

/// A structure and the one ioctl it is the argument of.
///
/// # Safety
/// The ioctl reads and writes exactly this structure; the documentation of each call that fills it in names the memory
/// that its addresses point to.
pub(crate) unsafe trait Argument {
    /// The ioctl's number.
    const OPCODE: Opcode;
}

/// The group of all userfaultfd ioctls (linux/userfaultfd.h).
const UFFDIO: u8 = 0xaa;

// UNREGISTER and WAKE are `_IOR` although the kernel only reads: so linux/userfaultfd.h has it.
macro_rules! arguments {
    ($($structure:ty => $opcode:expr,)*) => {
        $(
            // SAFETY: linux/userfaultfd.h and linux/fs.h pair this number with this structure.
            unsafe impl Argument for $structure {
                const OPCODE: Opcode = $opcode;
            }
        )*
    };
}

arguments! {
    uffdio_api => opcode::read_write::<uffdio_api>(UFFDIO, 0x3f),
    uffdio_register => opcode::read_write::<uffdio_register>(UFFDIO, 0x00),
    Unregister => opcode::read::<uffdio_range>(UFFDIO, 0x01),
    Wake => opcode::read::<uffdio_range>(UFFDIO, 0x02),
    uffdio_copy => opcode::read_write::<uffdio_copy>(UFFDIO, 0x03),
    uffdio_zeropage => opcode::read_write::<uffdio_zeropage>(UFFDIO, 0x04),
    uffdio_writeprotect => opcode::read_write::<uffdio_writeprotect>(UFFDIO, 0x06),
    uffdio_continue => opcode::read_write::<uffdio_continue>(UFFDIO, 0x07),
    uffdio_poison => opcode::read_write::<uffdio_poison>(UFFDIO, 0x08),
}

/// The range of UFFDIO_UNREGISTER.
#[repr(transparent)]
pub(crate) struct Unregister(pub(crate) uffdio_range);

/// The range of UFFDIO_WAKE.
#[repr(transparent)]
pub(crate) struct Wake(pub(crate) uffdio_range);

/// Performs the ioctl that `argument` belongs to. The kernel's output is in `argument`, also after a failure.
///
/// # Safety
/// The addresses in `argument` may be read and written by the kernel as that ioctl does.
#[inline]
pub(crate) unsafe fn perform<A: Argument>(fd: impl AsFd, argument: &mut A) -> Result<(), Errno> {
    // SAFETY: the trait pairs the number with the structure; the addresses are the caller's promise.
    unsafe { rustix::ioctl::ioctl(fd, Update(argument)) }
}

/// Rustix's updater with the number taken from the argument's type.
struct Update<'a, A>(&'a mut A);

// SAFETY: the argument is valid for the kernel to read and write for as long as the reference lives.
unsafe impl<A: Argument> Ioctl for Update<'_, A> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        A::OPCODE
    }

    fn as_ptr(&mut self) -> *mut rustix::ffi::c_void {
        std::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut rustix::ffi::c_void) -> Result<(), Errno> {
        Ok(())
    }
}

/// PAGEMAP_SCAN, whose answer is the number of regions found.
pub(crate) struct Scan<'a>(pub(crate) &'a mut pm_scan_arg);

/// PAGEMAP_SCAN (linux/fs.h).
const PAGEMAP_SCAN: Opcode = opcode::read_write::<pm_scan_arg>(b'f', 16);

// SAFETY: linux/fs.h pairs this number with this structure; the kernel writes `walk_end` in it and at most `vec_len`
// regions at `vec`, which the caller promises to be writable.
unsafe impl Ioctl for Scan<'_> {
    type Output = usize;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        PAGEMAP_SCAN
    }

    fn as_ptr(&mut self) -> *mut rustix::ffi::c_void {
        std::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut rustix::ffi::c_void) -> Result<usize, Errno> {
        usize::try_from(output).map_err(|_| Errno::INVAL)
    }
}

/// USERFAULTFD_IOC_NEW on /dev/userfaultfd: the flags are the argument itself, the answer is a descriptor.
pub(crate) struct NewUserfaultfd {
    pub(crate) flags: usize,
}

/// USERFAULTFD_IOC_NEW (linux/userfaultfd.h).
const USERFAULTFD_IOC_NEW: Opcode = opcode::none(UFFDIO, 0x00);

// SAFETY: linux/userfaultfd.h: the argument is a number, the answer a new descriptor.
unsafe impl Ioctl for NewUserfaultfd {
    type Output = rustix::fd::OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        USERFAULTFD_IOC_NEW
    }

    fn as_ptr(&mut self) -> *mut rustix::ffi::c_void {
        std::ptr::without_provenance_mut(self.flags)
    }

    unsafe fn output_from_ptr(
        output: IoctlOutput,
        _: *mut rustix::ffi::c_void,
    ) -> Result<rustix::fd::OwnedFd, Errno> {
        // SAFETY: a success of this ioctl is a descriptor with no other owner.
        Ok(unsafe { rustix::fd::FromRawFd::from_raw_fd(output) })
    }
}

#[cfg(test)]
mod tests {
    use linux_raw_sys::general::{page_region, uffd_msg};

    use super::*;

    /// Numbers as a C compiler prints them from linux/userfaultfd.h and linux/fs.h of Linux 6.12 on x86-64.
    #[test]
    fn ioctl_numbers_are_those_of_the_kernel() {
        assert_eq!(uffdio_api::OPCODE, 0xc018_aa3f);
        assert_eq!(uffdio_register::OPCODE, 0xc020_aa00);
        assert_eq!(Unregister::OPCODE, 0x8010_aa01);
        assert_eq!(Wake::OPCODE, 0x8010_aa02);
        assert_eq!(uffdio_copy::OPCODE, 0xc028_aa03);
        assert_eq!(uffdio_zeropage::OPCODE, 0xc020_aa04);
        assert_eq!(uffdio_writeprotect::OPCODE, 0xc018_aa06);
        assert_eq!(uffdio_continue::OPCODE, 0xc020_aa07);
        assert_eq!(uffdio_poison::OPCODE, 0xc020_aa08);
        assert_eq!(PAGEMAP_SCAN, 0xc060_6610);
        assert_eq!(USERFAULTFD_IOC_NEW, 0x0000_aa00);
    }

    #[test]
    fn structures_have_the_sizes_of_the_kernel() {
        assert_eq!(size_of::<uffd_msg>(), 32);
        assert_eq!(size_of::<uffdio_copy>(), 40);
        assert_eq!(size_of::<pm_scan_arg>(), 96);
        assert_eq!(size_of::<page_region>(), 24);
    }
}
