//! Preloaded into an unmodified QEMU: hands its memory over to be served.
//!
//! The library replaces `mmap`. It opens a userfaultfd for the one mapping of the memory file that the environment
//! names, and sends it with the file to the handler; all other mappings go to the kernel unchanged. If anything does
//! not fit, the library says so in one line and ends the program before its guest runs.

mod asked;
mod handover;
mod refusal;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{c_int, c_void, off64_t};

use asked::Asked;
use handover::Mapped;
use refusal::{Refusal, end};

/// True once the memory was handed over: a second mapping of it would see other pages than the first.
static HANDED_OVER: AtomicBool = AtomicBool::new(false);

/// mmap(2), by the name that programs with 64-bit file offsets call.
///
/// # Safety
///
/// As mmap(2): the mapping that `MAP_FIXED` replaces must have no other owner.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap64(
    address: *mut c_void,
    bytes: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: off64_t,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { map(Request { address, bytes, protection, flags, fd, offset }) }
}

/// mmap(2), by its own name.
///
/// # Safety
///
/// As mmap(2): the mapping that `MAP_FIXED` replaces must have no other owner.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap(
    address: *mut c_void,
    bytes: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: off64_t,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { map(Request { address, bytes, protection, flags, fd, offset }) }
}

/// The arguments of one call.
#[derive(Clone, Copy)]
struct Request {
    address: *mut c_void,
    bytes: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: off64_t,
}

/// Maps like the kernel, and hands over the memory to be served before its caller knows the address.
///
/// # Safety
///
/// As mmap(2).
unsafe fn map(mut request: Request) -> *mut c_void {
    let asked = asked();
    let is_memory = asked.is_some_and(|asked| asked.is_behind(request.fd));
    if let (Some(asked), true) = (asked, is_memory)
        && let Err(refusal) = check(asked, request)
    {
        end(&refusal);
    }
    if asked.is_some_and(|asked| is_memory && asked.is_private) {
        request.flags = (request.flags & !libc::MAP_TYPE) | libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    }
    let Request { address, bytes, protection, flags, fd, offset } = request;
    // SAFETY: the caller's promise; the call behind `mmap` is this one.
    let result = unsafe { libc::syscall(libc::SYS_mmap, address, bytes, protection, flags, fd, offset) };
    if let (Some(asked), true, Ok(start @ 1..)) = (asked, is_memory, u64::try_from(result)) {
        let mapped = Mapped { start, bytes: asked.bytes, fd };
        if let Err(refusal) = handover::send(asked, mapped) {
            end(&refusal);
        }
    }
    std::ptr::with_exposed_provenance_mut(usize::try_from(result).unwrap_or(usize::MAX))
}

/// The request of the environment, read once; `None` without one.
fn asked() -> Option<&'static Asked> {
    static ASKED: OnceLock<Option<Asked>> = OnceLock::new();
    ASKED.get_or_init(|| Asked::of_environment().unwrap_or_else(|refusal| end(&refusal))).as_ref()
}

/// Checks that this is the mapping that the handler expects: the whole file, writable, shared, and the only one.
fn check(asked: &Asked, request: Request) -> Result<(), Refusal> {
    let writable = request.protection & libc::PROT_WRITE != 0;
    if !writable || request.flags & libc::MAP_TYPE == libc::MAP_PRIVATE {
        return Err(Refusal::NotShared);
    }
    if u64::try_from(request.bytes) != Ok(asked.bytes) || request.offset != 0 {
        return Err(Refusal::Size { asked: asked.bytes, mapped: request.bytes, offset: request.offset });
    }
    match HANDED_OVER.swap(true, Ordering::SeqCst) {
        true => Err(Refusal::Twice),
        false => Ok(()),
    }
}
