//! The client of a request, as long work for it needs to know it: still waiting, or gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Tells if the client that asked for some work still waits for it. Copying ends once it is gone.
#[derive(Clone, Debug, Default)]
pub struct Asker {
    gone: Arc<AtomicBool>,
}

/// Held while the client waits: dropped, it is gone.
#[derive(Debug)]
#[must_use = "dropped at once, it says that the client is gone"]
pub struct Waiting(Asker);

impl Asker {
    /// The client waits from now on, until the answer is dropped.
    pub fn waits(&self) -> Waiting {
        Waiting(self.clone())
    }

    /// True if the client is gone.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// A question for long work: whether the client still waits.
    pub fn still_waits(&self) -> impl Fn() -> bool {
        let asker = self.clone();
        move || !asker.is_gone()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.gone.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_gone_once_it_waits_no_longer() {
        let asker = Asker::default();
        let waiting = asker.waits();
        assert!(!asker.is_gone());
        drop(waiting);
        assert!(asker.is_gone());
    }
}
