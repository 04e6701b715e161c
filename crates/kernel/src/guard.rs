//! Copies and compares memory that may raise SIGBUS when it is read; only that one read then fails.
//!
//! Each call goes through a few lines of assembly that note the stack pointer in a thread-local slot and call libc's
//! `memcpy` or `memcmp`, or a loop of ours where libc is slow. If the slot is set and the address is in a guarded
//! range, the SIGBUS handler sends the thread to the end of those lines: no Rust frame is skipped. Any other SIGBUS
//! goes to the previous handler.

use std::arch::global_asm;
use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::{Once, OnceLock};

use crate::page::{HUGE_PAGE_BYTES, PAGE_BYTES};

/// A guarded range could not be read; with the address that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) address: usize,
}

/// The calling thread's guarded read, if one is under way. The assembly knows the offset of `stack`: 0.
#[repr(C)]
struct Slot {
    /// Stack pointer inside the assembly; 0 while nothing is guarded.
    stack: Cell<usize>,
    first: Cell<Span>,
    second: Cell<Span>,
    /// Address that could not be read; 0 while none.
    lost: Cell<usize>,
}

/// Addresses `start..end`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Span {
    start: usize,
    end: usize,
}

impl Span {
    const NONE: Self = Self { start: 0, end: 0 };

    fn of(start: *const u8, bytes: usize) -> Self {
        Self { start: start.addr(), end: start.addr().saturating_add(bytes) }
    }

    /// True if the block of `grain` bytes around `address` touches the span: the kernel reports no finer address.
    fn touches(self, address: usize, grain: usize) -> bool {
        let block = address & !(grain - 1);
        block < self.end && block.saturating_add(grain) > self.start
    }
}

thread_local! {
    // Const and without drop, so that the signal handler reaches it without allocating.
    static SLOT: Slot = const {
        Slot { stack: Cell::new(0), first: Cell::new(Span::NONE), second: Cell::new(Span::NONE), lost: Cell::new(0) }
    };
}

// libc copies blocks from 4 KiB up to 1 MiB by `rep movsb`, which takes two to eight times as long into memory that is not at
// the start of a cache line (measured with glibc 2.36 on an EPYC); there, whole blocks of 128 bytes are copied by our loop.
//
// Arguments: the slot, then those of the libc function. Every callee-saved register lies on the stack at the address
// noted in the slot, so the landing restores them even if the libc function changed them before it faulted.
global_asm!(
    ".pushsection .text.rekindle_guarded, \"ax\", @progbits",
    ".balign 16",
    ".globl rekindle_guarded_compare",
    ".hidden rekindle_guarded_compare",
    ".type rekindle_guarded_compare, @function",
    ".globl rekindle_guarded_copy",
    ".hidden rekindle_guarded_copy",
    ".type rekindle_guarded_copy, @function",
    ".globl rekindle_guarded_landing",
    ".hidden rekindle_guarded_landing",
    ".cfi_startproc",
    "rekindle_guarded_compare:",
    "mov rax, qword ptr [rip + memcmp@GOTPCREL]",
    "jmp 2f",
    "rekindle_guarded_copy:",
    "mov rax, qword ptr [rip + memcpy@GOTPCREL]",
    "test sil, 63",
    "jz 2f",
    "test cl, 127",
    "jnz 2f",
    "lea rax, [rip + 3f]",
    "2:",
    "push rbx",
    ".cfi_adjust_cfa_offset 8",
    "push rbp",
    ".cfi_adjust_cfa_offset 8",
    "push r12",
    ".cfi_adjust_cfa_offset 8",
    "push r13",
    ".cfi_adjust_cfa_offset 8",
    "push r14",
    ".cfi_adjust_cfa_offset 8",
    "push r15",
    ".cfi_adjust_cfa_offset 8",
    "push rdi",
    ".cfi_adjust_cfa_offset 8",
    "mov qword ptr [rdi], rsp",
    "mov rdi, rsi",
    "mov rsi, rdx",
    "mov rdx, rcx",
    "call rax",
    "rekindle_guarded_landing:",
    "pop rdi",
    ".cfi_adjust_cfa_offset -8",
    "mov qword ptr [rdi], 0",
    "pop r15",
    ".cfi_adjust_cfa_offset -8",
    "pop r14",
    ".cfi_adjust_cfa_offset -8",
    "pop r13",
    ".cfi_adjust_cfa_offset -8",
    "pop r12",
    ".cfi_adjust_cfa_offset -8",
    "pop rbp",
    ".cfi_adjust_cfa_offset -8",
    "pop rbx",
    ".cfi_adjust_cfa_offset -8",
    "ret",
    ".cfi_endproc",
    ".balign 16",
    ".cfi_startproc",
    "3:",
    "test rdx, rdx",
    "jz 5f",
    "4:",
    "movups xmm0, [rsi]",
    "movups xmm1, [rsi + 16]",
    "movups xmm2, [rsi + 32]",
    "movups xmm3, [rsi + 48]",
    "movups xmm4, [rsi + 64]",
    "movups xmm5, [rsi + 80]",
    "movups xmm6, [rsi + 96]",
    "movups xmm7, [rsi + 112]",
    "movups [rdi], xmm0",
    "movups [rdi + 16], xmm1",
    "movups [rdi + 32], xmm2",
    "movups [rdi + 48], xmm3",
    "movups [rdi + 64], xmm4",
    "movups [rdi + 80], xmm5",
    "movups [rdi + 96], xmm6",
    "movups [rdi + 112], xmm7",
    "sub rsi, -128",
    "sub rdi, -128",
    "add rdx, -128",
    "jnz 4b",
    "5:",
    "ret",
    ".cfi_endproc",
    ".popsection",
);

unsafe extern "C" {
    fn rekindle_guarded_copy(slot: *const Slot, into: *mut u8, from: *const u8, bytes: usize) -> *mut u8;
    fn rekindle_guarded_compare(slot: *const Slot, left: *const u8, right: *const u8, bytes: usize) -> c_int;
    /// The address to which the handler sends a thread whose read failed; not a function to call.
    fn rekindle_guarded_landing();
}

/// Copies `bytes` bytes; a SIGBUS while `from` is read ends the copy half-way.
///
/// # Safety
/// `from` is `bytes` bytes of a mapping that stays until the call returns; `into` is `bytes` writable bytes that
/// nothing else touches meanwhile, apart from `from`; [`install`] was called; no signal handler calls this.
#[inline]
pub(crate) unsafe fn copy(into: *mut u8, from: *const u8, bytes: usize) -> Result<(), Lost> {
    SLOT.with(|slot| {
        slot.arm(Span::of(from, bytes), Span::NONE);
        // SAFETY: the caller's promise; the slot is this thread's, lives as long as it, and names what is read.
        unsafe { rekindle_guarded_copy(ptr::from_ref(slot), into, from, bytes) };
        slot.outcome()
    })
}

/// True if two stretches of `bytes` bytes are equal; a SIGBUS while either is read ends the comparison.
///
/// # Safety
/// Both are `bytes` readable bytes of mappings that stay until the call returns; [`install`] was called; no signal
/// handler calls this.
#[inline]
pub(crate) unsafe fn equal(left: *const u8, right: *const u8, bytes: usize) -> Result<bool, Lost> {
    SLOT.with(|slot| {
        slot.arm(Span::of(left, bytes), Span::of(right, bytes));
        // SAFETY: the caller's promise; the slot is this thread's, lives as long as it, and names what is read.
        let order = unsafe { rekindle_guarded_compare(ptr::from_ref(slot), left, right, bytes) };
        slot.outcome().map(|()| order == 0)
    })
}

impl Slot {
    #[inline]
    fn arm(&self, first: Span, second: Span) {
        self.first.set(first);
        self.second.set(second);
        self.lost.set(0);
    }

    #[inline]
    fn outcome(&self) -> Result<(), Lost> {
        match self.lost.get() {
            0 => Ok(()),
            address => Err(Lost { address }),
        }
    }
}

/// Installs the SIGBUS handler, once in the life of the process; the earlier handler of SIGBUS is called for the rest.
pub(crate) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        PREVIOUS.set(exchange_action(None)).expect("only this closure sets it, and it runs once");
        let mut action = default_action();
        action.sa_sigaction = address_of_handler();
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        exchange_action(Some(&action));
    });
}

/// The earlier action for SIGBUS; set before our handler can run.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Sets the action for SIGBUS, if one is given, and returns the one that stood.
fn exchange_action(action: Option<&libc::sigaction>) -> libc::sigaction {
    let new = action.map_or(ptr::null(), ptr::from_ref);
    let mut old = default_action();
    // SAFETY: `new` is null or an initialised action whose handler is of the kind its flags say; `old` is writable.
    let result = unsafe { libc::sigaction(libc::SIGBUS, new, &raw mut old) };
    assert!(result == 0, "sigaction fails only for a bad signal number or a bad address");
    old
}

fn default_action() -> libc::sigaction {
    let action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all zeroes is a valid sigaction: SIG_DFL, no flags, an empty mask, no restorer.
    unsafe { action.assume_init() }
}

#[expect(clippy::as_conversions, reason = "sigaction wants the handler's address as a number")]
fn address_of_handler() -> usize {
    on_sigbus as *const () as usize
}

#[expect(clippy::as_conversions, reason = "the saved instruction pointer is a number")]
fn address_of_landing() -> usize {
    rekindle_guarded_landing as *const () as usize
}

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel calls with SA_SIGINFO: both point to valid structures of this handler's frame.
    let recovered = unsafe { recover(info, context.cast()) };
    if !recovered {
        // SAFETY: as above.
        unsafe { pass_on(signal, info, context) };
    }
}

/// Sends the interrupted thread to the landing if it was in a guarded read of the address that failed.
///
/// # Safety
/// Called by the SIGBUS handler with its own arguments.
unsafe fn recover(info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) -> bool {
    // SAFETY: the caller's promise.
    let code = unsafe { (*info).si_code };
    let grain = match code {
        libc::BUS_ADRERR | libc::BUS_OBJERR => PAGE_BYTES,
        // A bad frame of memory; hugetlb loses the whole huge page.
        libc::BUS_MCEERR_AR => HUGE_PAGE_BYTES,
        _ => return false,
    };
    // SAFETY: the caller's promise.
    let info = unsafe { &*info };
    // SAFETY: a SIGBUS with one of these codes carries an address.
    let address = unsafe { info.si_addr() }.addr();
    SLOT.with(|slot| {
        let stack = slot.stack.get();
        let guarded = slot.first.get().touches(address, grain) || slot.second.get().touches(address, grain);
        if stack == 0 || !guarded {
            return false;
        }
        slot.lost.set(address.max(1));
        // SAFETY: the caller's promise: these are the registers the thread goes on with.
        let registers = unsafe { &mut (*context).uc_mcontext.gregs };
        set_register(registers, libc::REG_RSP, stack);
        set_register(registers, libc::REG_RIP, address_of_landing());
        // The landing is entered as if by a return: with the direction flag clear.
        registers[register_index(libc::REG_EFL)] &= !0x400;
        true
    })
}

fn register_index(register: c_int) -> usize {
    usize::try_from(register).expect("register numbers are small and positive")
}

fn set_register(registers: &mut [libc::greg_t], register: c_int, value: usize) {
    registers[register_index(register)] = i64::try_from(value).expect("user addresses have 47 bits");
}

/// Passes the signal on to the handler that was installed before ours.
///
/// # Safety
/// Called by the SIGBUS handler with its own arguments.
unsafe fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let previous = PREVIOUS.get().copied().unwrap_or_else(default_action);
    // SAFETY: the caller's promise.
    let raised_by_access = unsafe { (*info).si_code } > 0;
    match previous.sa_sigaction {
        libc::SIG_IGN if !raised_by_access => {}
        // The access is repeated when we return, or the signal delivered again, and ends the process.
        libc::SIG_DFL | libc::SIG_IGN => {
            exchange_action(Some(&default_action()));
            if !raised_by_access {
                // SAFETY: raises a signal in this thread, which is what there was before.
                unsafe { libc::raise(signal) };
            }
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            let handler = ptr::with_exposed_provenance::<()>(handler);
            // SAFETY: SA_SIGINFO says that the address is that of a function with these arguments.
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            let handler = ptr::with_exposed_provenance::<()>(handler);
            // SAFETY: neither SIG_DFL, SIG_IGN nor SA_SIGINFO: a function that takes the signal's number.
            let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}
