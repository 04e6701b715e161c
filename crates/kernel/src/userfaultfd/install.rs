//! Result of one install of pages into a guest.

use std::io;

use rustix::io::Errno;

use crate::number::word;

/// Result of one install; no call is repeated here.
#[derive(Debug)]
pub enum Install {
    /// All pages are installed, and their waiters run.
    Installed,
    /// A page, or only a marker of its protection, was there already (check before relying on a page).
    ///
    /// The kernel reports this for the first page only: a copy that meets one later is `Interrupted` before it.
    Present {
        /// Bytes installed before that page.
        installed_bytes: u64,
    },
    /// The address space is changing (an unread remove event, an unmap), or a page further on cannot be installed.
    Interrupted {
        /// Bytes installed so far, whose waiters run.
        installed_bytes: u64,
    },
    /// The process has ended, and its memory with it.
    Gone,
    /// The range is no longer in one registered mapping: a part was unmapped, remapped, or unregistered, or it is in
    /// several mappings now. The process is alive.
    Unmapped,
    /// The bytes to install cannot be read.
    SourceLost,
    /// Any other error.
    Failed(io::Error),
}

impl Install {
    /// Interprets an ioctl's result and the count it wrote, which is sometimes a negative errno.
    #[inline]
    pub(super) fn of(result: Result<(), Errno>, count: i64, wanted: u64) -> Self {
        let installed_bytes = u64::try_from(count).unwrap_or(0);
        match result {
            Ok(()) if installed_bytes == wanted => Self::Installed,
            Ok(()) | Err(Errno::AGAIN) => Self::Interrupted { installed_bytes },
            Err(Errno::EXIST) => Self::Present { installed_bytes },
            Err(Errno::SRCH) => Self::Gone,
            Err(Errno::NOENT) => Self::Unmapped,
            Err(Errno::FAULT | Errno::HWPOISON) => Self::SourceLost,
            Err(errno) => Self::Failed(errno.into()),
        }
    }

    /// Bytes of `wanted` that were installed.
    pub fn installed_bytes(&self, wanted: usize) -> u64 {
        match self {
            Self::Installed => word(wanted),
            Self::Present { installed_bytes } | Self::Interrupted { installed_bytes } => *installed_bytes,
            Self::Gone | Self::Unmapped | Self::SourceLost | Self::Failed(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_is_a_negative_errno_is_no_bytes() {
        let install = Install::of(Err(Errno::AGAIN), -11, 4096);
        assert!(matches!(install, Install::Interrupted { installed_bytes: 0 }), "{install:?}");
        let install = Install::of(Err(Errno::EXIST), -17, 4096);
        assert!(matches!(install, Install::Present { installed_bytes: 0 }), "{install:?}");
    }

    #[test]
    fn a_short_success_is_not_taken_for_a_whole_one() {
        let install = Install::of(Ok(()), 4096, 8192);
        assert!(matches!(install, Install::Interrupted { installed_bytes: 4096 }), "{install:?}");
    }

    #[test]
    fn every_errno_keeps_its_meaning() {
        assert!(matches!(Install::of(Ok(()), 4096, 4096), Install::Installed));
        assert!(matches!(Install::of(Err(Errno::SRCH), -3, 1), Install::Gone));
        assert!(matches!(Install::of(Err(Errno::NOENT), -2, 1), Install::Unmapped));
        assert!(matches!(Install::of(Err(Errno::FAULT), -14, 1), Install::SourceLost));
        assert!(matches!(Install::of(Err(Errno::INVAL), 0, 1), Install::Failed(_)));
    }
}
