//! Linux for rekindle: memory files, mappings, userfaultfd, page-table scans, fd passing, other processes.
//!
//! All unsafe code of the engine and of the program is here, behind calls that cannot be misused, and without policy.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!(
    "rekindle runs on Linux on x86-64 only: its SIGBUS guard and its kernel ABI are written for that"
);

mod area;
pub mod event_buffer;
pub mod fd_passing;
mod guard;
pub mod guest_memory;
pub mod guest_range;
pub mod holders;
pub mod hugepages;
mod ioctl;
pub mod mapping;
pub mod memfd;
pub mod network_device;
mod number;
pub mod page;
pub mod pagemap;
pub mod placement;
pub mod process;
pub mod program_output;
pub mod shared_buffer;
pub mod signals;
pub mod source;
pub mod spawn;
pub mod tsc;
pub mod userfaultfd;
pub mod virtual_machine;
pub mod wakeup;
pub mod writable;

pub use event_buffer::{Event, EventBuffer, FaultKind};
pub use guest_memory::{Backing, Discard, GuestMemory};
pub use guest_range::GuestRange;
pub use holders::{Holder, Holding};
pub use hugepages::HugepageReservation;
pub use mapping::{LostBytes, Mapping};
pub use memfd::Memfd;
pub use network_device::NetworkDevice;
pub use page::{HUGE_PAGE_BYTES, PAGE_BYTES, PageKind};
pub use pagemap::{PageClass, Pagemap, Written};
pub use placement::ThreadCpu;
pub use process::{ProcessHandle, Signal};
pub use shared_buffer::SharedBuffer;
pub use signals::SignalReader;
pub use source::Source;
pub use spawn::Spawner;
pub use tsc::tsc_khz;
pub use userfaultfd::{FaultScope, Features, Install, Protect, RegisterMode, RegisteredIoctls, Userfaultfd};
pub use virtual_machine::{Exit, VirtualMachine};
pub use writable::WritableMapping;
