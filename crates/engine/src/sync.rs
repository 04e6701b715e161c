//! The primitives through which threads share state; under Shuttle they are Shuttle's, so that it can order them.

#[cfg(not(shuttle))]
mod imp {
    pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};

    use std::sync::Arc;

    use arc_swap::ArcSwap;

    /// One immutable value that everybody reads and one writer replaces; reading takes no lock.
    #[derive(Debug)]
    pub(crate) struct Current<T>(ArcSwap<T>);

    impl<T> Current<T> {
        pub(crate) fn new(value: Arc<T>) -> Self {
            Self(ArcSwap::new(value))
        }

        pub(crate) fn load(&self) -> Arc<T> {
            self.0.load_full()
        }

        /// Runs `read` on the present value without taking a share of it.
        pub(crate) fn with<R>(&self, read: impl FnOnce(&T) -> R) -> R {
            read(&self.0.load())
        }

        /// Puts `next` in the place of `expected`; false if something else stands there by now.
        pub(crate) fn replace(&self, expected: &Arc<T>, next: Arc<T>) -> bool {
            let found = self.0.compare_and_swap(expected, next);
            Arc::ptr_eq(&found, expected)
        }
    }
}

#[cfg(shuttle)]
mod imp {
    pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard};

    use std::sync::Arc;

    /// The same cell with every read and replacement visible to Shuttle's scheduler.
    #[derive(Debug)]
    pub(crate) struct Current<T>(Mutex<Arc<T>>);

    impl<T> Current<T> {
        pub(crate) fn new(value: Arc<T>) -> Self {
            Self(Mutex::new(value))
        }

        pub(crate) fn load(&self) -> Arc<T> {
            Arc::clone(&lock(&self.0))
        }

        pub(crate) fn with<R>(&self, read: impl FnOnce(&T) -> R) -> R {
            read(&self.load())
        }

        pub(crate) fn replace(&self, expected: &Arc<T>, next: Arc<T>) -> bool {
            let mut current = lock(&self.0);
            let unchanged = Arc::ptr_eq(&current, expected);
            if unchanged {
                *current = next;
            }
            unchanged
        }
    }

    use super::lock;
}

pub(crate) use imp::{Condvar, Current, Mutex, MutexGuard};

/// Locks; a thread that panicked while it held the lock was a bug, and nothing it guarded can be trusted.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics while it holds a lock")
}
