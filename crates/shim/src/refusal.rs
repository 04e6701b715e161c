//! Reasons that a program's memory is not handed over, and the end of that program.

use std::io::{self, Write as _};
use std::path::PathBuf;

use rekindle_kernel::userfaultfd::OpenError;

/// Reason for the refusal.
pub(crate) enum Refusal {
    /// A variable of the environment is absent or makes no sense.
    Variable { name: &'static str },
    /// The memory file is mapped so that its pages could not be served.
    NotShared,
    /// Only a part of the memory file is mapped, or more than it.
    Size { asked: u64, mapped: usize, offset: i64 },
    /// The memory file is mapped again.
    Twice,
    /// No userfaultfd can be opened.
    NoUserfaultfd { source: OpenError },
    /// This user's userfaultfd does not receive the faults of the kernel.
    UserFaultsOnly,
    /// The memory cannot be registered.
    NotRegistered { source: io::Error },
    /// The memory cannot be sent to the handler.
    NotSent { socket: PathBuf, source: io::Error },
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Variable { name } => write!(f, "{name} is absent or makes no sense"),
            Self::NotShared => write!(f, "guest memory must be mapped shared and writable (share=on)"),
            Self::Size { asked, mapped, offset } => {
                write!(f, "guest memory has {asked} bytes, but {mapped} are mapped from byte {offset} on")
            }
            Self::Twice => write!(f, "guest memory is mapped a second time: only one mapping can be served"),
            Self::NoUserfaultfd { source } => write!(f, "{source}"),
            Self::UserFaultsOnly => write!(
                f,
                "KVM and disks need the kernel's own faults served: give this user read and write access to \
                 /dev/userfaultfd, or CAP_SYS_PTRACE"
            ),
            Self::NotRegistered { source } => write!(f, "guest memory cannot be registered: {source}"),
            Self::NotSent { socket, source } => {
                write!(f, "guest memory cannot be handed over at {}: {source}", socket.display())
            }
        }
    }
}

/// Prints the reason and ends the program at once: a guest whose memory is not served would read zeroes.
pub(crate) fn end(refusal: &Refusal) -> ! {
    // If the line cannot be written, nobody reads it.
    writeln!(io::stderr(), "rekindle: not started: {refusal}").ok();
    // SAFETY: ends the process without running anything of the program's own.
    unsafe { libc::_exit(1) }
}
