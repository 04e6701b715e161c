//! The end of a thread that waits for descriptors.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rekindle_kernel::wakeup::Wakeup;

/// Says to a thread that it is over, and wakes it.
#[derive(Debug)]
pub(super) struct Over {
    is_over: AtomicBool,
    wakeup: Wakeup,
}

impl Over {
    /// It is not over yet.
    pub(super) fn not_yet() -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self { is_over: AtomicBool::new(false), wakeup: Wakeup::new()? }))
    }

    /// Says so.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.wakeup.wake();
    }

    /// True once the end was signalled.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Wakes the thread beside its work.
    pub(super) fn wakeup(&self) -> &Wakeup {
        &self.wakeup
    }
}
