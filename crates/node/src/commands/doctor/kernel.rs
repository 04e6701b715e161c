//! Checks of the kernel: each thing that rekindle needs of it is tried as this user.

use std::io;

use rekindle_kernel::userfaultfd::OpenError;
use rekindle_kernel::{
    Backing, FaultScope, Features, GuestMemory, GuestRange, Memfd, PAGE_BYTES, PageClass, PageKind, Pagemap,
    ProcessHandle, Protect, RegisterMode, Source, Userfaultfd, hugepages,
};

use super::Check;

/// Features of a userfaultfd that serves shared memory with tracked writes.
const FEATURES: Features = Features::EVENT_REMOVE
    .union(Features::MISSING_SHMEM)
    .union(Features::PAGEFAULT_FLAG_WP)
    .union(Features::WP_HUGETLBFS_SHMEM)
    .union(Features::WP_UNPOPULATED)
    .union(Features::WP_ASYNC);

/// Features of a userfaultfd that serves a private mapping of shared pages.
const SHARING: Features = Features::EVENT_REMOVE.union(Features::MISSING_SHMEM).union(Features::MINOR_SHMEM);

/// CAP_SYS_PTRACE (linux/capability.h).
const CAP_SYS_PTRACE: u32 = 19;

/// Looks at all of it.
pub(super) fn look() -> Vec<Check> {
    vec![
        release(),
        page_faults(),
        fault_features(),
        write_tracking(),
        page_sharing(),
        memory_files(),
        process_handles(),
        foreign_memory(),
        huge_pages(),
        kvm(),
    ]
}

fn release() -> Check {
    let name = "kernel";
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let mut numbers = release.split(['.', '-', '+']).map(|part| part.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) >= (6, 7) => Check::ok(name, format!("Linux {release}")),
        _ => Check::warn(
            name,
            format!("Linux {release}, older than 6.7"),
            "pauses cost more here, or fail as the lines below say; 6.7 and later have everything",
        ),
    }
}

fn page_faults() -> Check {
    let name = "page faults";
    match Userfaultfd::open(Features::NONE).map(|userfaultfd| userfaultfd.scope()) {
        Ok(Some(FaultScope::All)) => Check::ok(name, "of user and kernel code are served (userfaultfd)"),
        Ok(Some(FaultScope::UserOnly) | None) => Check::warn(
            name,
            "of user code alone are served (userfaultfd): process guests work, virtual machines under KVM do not",
            "for those, run as root, or let every user: sudo sysctl vm.unprivileged_userfaultfd=1",
        ),
        Err(error) => Check::fail(name, error.to_string(), refused_advice(&error)),
    }
}

fn refused_advice(error: &OpenError) -> &'static str {
    match error {
        OpenError::Refused { .. } => {
            "in a container, allow the userfaultfd system call (seccomp) or pass /dev/userfaultfd in; else use a \
             kernel with CONFIG_USERFAULTFD"
        }
        OpenError::Features { .. } | OpenError::Handshake(_) => "use Linux 6.7 or later",
    }
}

fn fault_features() -> Check {
    let name = "fault features";
    match Userfaultfd::offered() {
        Ok(offered) if offered.contains(FEATURES) => Check::ok(name, "all that are needed"),
        Ok(offered) => Check::fail(
            name,
            format!("this kernel's userfaultfd lacks {}", FEATURES.without(offered)),
            "use Linux 6.7 or later",
        ),
        Err(error) => Check::fail(name, error.to_string(), refused_advice(&error)),
    }
}

fn write_tracking() -> Check {
    let name = "write tracking";
    match written_page_is_found() {
        Ok(true) => Check::ok(name, "a page written after it was served is found (WP_ASYNC, PAGEMAP_SCAN)"),
        Ok(false) => Check::fail(
            name,
            "a page that was written was not found by a scan",
            "this kernel cannot be trusted with pauses; use another",
        ),
        Err(error) => Check::fail(
            name,
            format!("cannot be tried: {error}"),
            "use Linux 6.7 or later, where /proc/self/pagemap can be read",
        ),
    }
}

/// Serves two pages of memory as a guest's are served, writes one of them, and looks whether exactly that is found.
fn written_page_is_found() -> io::Result<bool> {
    const BYTES: u64 = 2 * 4096;
    let userfaultfd = Userfaultfd::open(FEATURES).map_err(io::Error::other)?;
    let memfd = Memfd::create("rekindle-doctor", BYTES, PageKind::Small)?;
    let memory = GuestMemory::map(Backing::Shared(&memfd, 0), 2 * PAGE_BYTES, 0)?;
    userfaultfd.register(memory.range(), RegisterMode::MissingAndWriteProtect)?;
    let pages = [1_u8; 2 * PAGE_BYTES];
    let installed = userfaultfd.copy(memory.range().start, Source::from(&pages[..]), Protect::Protected);
    if installed.installed_bytes(pages.len()) != BYTES {
        return Err(io::Error::other("two pages could not be installed"));
    }
    memory.touch_write(PAGE_BYTES, 2);
    let mut written = Vec::new();
    Pagemap::of_self()?.scan(memory.range(), PageClass::Written, &mut |range| written.push(range))?;
    written.dedup();
    Ok(written == [GuestRange { start: memory.range().start + 4096, bytes: 4096 }])
}

fn page_sharing() -> Check {
    let name = "shared pages";
    let advice = "forks have memory of their own here, which takes more RAM; use Linux 6.7 or later";
    match shared_page_is_kept() {
        Ok(true) => {
            Check::ok(name, "guests of one snapshot can share its pages (minor faults, PAGEMAP_SCAN)")
        }
        Ok(false) => {
            Check::warn(name, "a page that was written is not found, or its writer is not alone", advice)
        }
        Err(error) => Check::warn(name, format!("cannot be tried: {error}"), advice),
    }
}

/// Maps a memory file privately as guests that share pages do, writes a page of it, and looks whether that one is found and
/// the file is as it was.
fn shared_page_is_kept() -> io::Result<bool> {
    const BYTES: u64 = 2 * 4096;
    let userfaultfd = Userfaultfd::open(SHARING).map_err(io::Error::other)?;
    let memfd = Memfd::create("rekindle-doctor", BYTES, PageKind::Small)?;
    memfd.write_at(&[1; 2 * PAGE_BYTES], 0)?;
    let memory = GuestMemory::map(Backing::PrivateOf(&memfd, 0), 2 * PAGE_BYTES, 0)?;
    userfaultfd.register(memory.range(), RegisterMode::MissingAndMinor)?;
    let mapped = userfaultfd.continue_shared(memory.range(), Protect::Writable);
    if mapped.installed_bytes(2 * PAGE_BYTES) != BYTES {
        return Err(io::Error::other("two pages could not be mapped"));
    }
    memory.touch_write(PAGE_BYTES, 2);
    let (mut own, mut file) = (Vec::new(), [0; 1]);
    Pagemap::of_self()?.scan(memory.range(), PageClass::Diverged, &mut |range| own.push(range))?;
    own.dedup();
    memfd.read_at(&mut file, 4096)?;
    Ok(own == [GuestRange { start: memory.range().start + 4096, bytes: 4096 }] && file == [1])
}

fn memory_files() -> Check {
    let name = "memory files";
    let sealed =
        Memfd::create("rekindle-doctor", 4096, PageKind::Small).and_then(|memfd| memfd.seal_writes());
    match sealed {
        Ok(true) => Check::ok(name, "can be made and sealed (memfd)"),
        Ok(false) => Check::fail(name, "an unmapped memfd cannot be sealed", "use another kernel"),
        Err(error) => Check::fail(
            name,
            format!("cannot be made: {error}"),
            "allow memfd_create (seccomp), and see the sysctl vm.memfd_noexec",
        ),
    }
}

fn process_handles() -> Check {
    let name = "process handles";
    match ProcessHandle::open(std::process::id()) {
        Ok(_) => Check::ok(name, "can be had (pidfd)"),
        Err(error) => Check::fail(name, format!("cannot be had: {error}"), "allow pidfd_open (seccomp)"),
    }
}

/// Checks that memory of processes that are not our children can be copied, as pauses of private memory do.
fn foreign_memory() -> Check {
    let name = "guests' memory";
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok();
    let scope: u32 = scope.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let root = rustix::process::geteuid().is_root();
    match (has_capability(CAP_SYS_PTRACE), scope) {
        (true, 0..=2) => Check::ok(name, "of every user's processes can be copied (CAP_SYS_PTRACE)"),
        (false, 0) if !root => Check::ok(name, "of this user's processes can be copied"),
        (false, 0) => Check::warn(
            name,
            "of root's processes alone can be copied: CAP_SYS_PTRACE is missing",
            "give it to the service: AmbientCapabilities=CAP_SYS_PTRACE, or --cap-add SYS_PTRACE for a container",
        ),
        (_, scope) => Check::warn(
            name,
            format!(
                "cannot be copied (kernel.yama.ptrace_scope is {scope}): sandboxes with private memory cannot be paused"
            ),
            "run as root, give CAP_SYS_PTRACE, or: sudo sysctl kernel.yama.ptrace_scope=0; shared memory needs none of it",
        ),
    }
}

fn has_capability(number: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> number & 1 == 1)
}

fn huge_pages() -> Check {
    let name = "huge pages";
    match (hugepages::pages_in_pool(), hugepages::pages_free()) {
        (Ok(0), _) => Check::ok(
            name,
            "none are reserved; only sandboxes with `--backing huge` need them (echo 512 | sudo tee \
             /proc/sys/vm/nr_hugepages reserves 1 GiB)",
        ),
        (Ok(pages), Ok(free)) => Check::ok(name, format!("{free} of {pages} are free (2 MiB each)")),
        (Err(error), _) | (_, Err(error)) => Check::ok(
            name,
            format!("this kernel has none of 2 MiB ({error}); only `--backing huge` needs them"),
        ),
    }
}

fn kvm() -> Check {
    let name = "KVM";
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Check::ok(name, "/dev/kvm can be used"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Check::ok(name, "there is no /dev/kvm; process guests need none")
        }
        Err(error) => Check::warn(
            name,
            format!("/dev/kvm cannot be opened: {error}; process guests and QEMU's own emulation need none"),
            kvm_advice(),
        ),
    }
}

/// A group can be joined only where the device has one.
fn kvm_advice() -> &'static str {
    use std::os::unix::fs::MetadataExt as _;
    match std::fs::metadata("/dev/kvm") {
        Ok(about) if about.gid() != 0 && about.mode() & 0o060 == 0o060 => {
            "for virtual machines, add this user to the device's group: sudo usermod -aG $(stat -c %G /dev/kvm) \
             $USER, and log in again"
        }
        Ok(_) | Err(_) => "for virtual machines, run as root, or: sudo setfacl -m u:$USER:rw /dev/kvm",
    }
}
