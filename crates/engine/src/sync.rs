//! The primitives through which threads share state; under Shuttle they are Shuttle's, so that it can schedule them.
//!
//! Counters on which no decision depends may use the standard library's atomics.

#[cfg(not(shuttle))]
mod imp {
    pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, RwLock, atomic, mpsc};
    pub(crate) use std::thread;

    use std::sync::Arc;

    use arc_swap::ArcSwap;

    pub(crate) use futures_executor::block_on;
    pub(crate) use rekindle_kernel::placement::idle_priority;

    /// Starts a thread in a scope; an error if the system has none left.
    pub(crate) fn spawn_scoped<'scope, T: Send + 'scope>(
        scope: &'scope thread::Scope<'scope, '_>,
        work: impl FnOnce() -> T + Send + 'scope,
    ) -> std::io::Result<thread::ScopedJoinHandle<'scope, T>> {
        thread::Builder::new().spawn_scoped(scope, work)
    }

    /// An immutable value with many readers and one writer that replaces it; reading takes no lock.
    #[derive(Debug)]
    pub(crate) struct Current<T>(ArcSwap<T>);

    impl<T> Current<T> {
        pub(crate) fn new(value: Arc<T>) -> Self {
            Self(ArcSwap::new(value))
        }

        pub(crate) fn load(&self) -> Arc<T> {
            self.0.load_full()
        }

        /// Runs `read` on the present value without cloning its `Arc`.
        pub(crate) fn with<R>(&self, read: impl FnOnce(&T) -> R) -> R {
            read(&self.0.load())
        }

        /// Replaces `expected` by `next`; false if the value is another one by now.
        pub(crate) fn replace(&self, expected: &Arc<T>, next: Arc<T>) -> bool {
            let found = self.0.compare_and_swap(expected, next);
            Arc::ptr_eq(&found, expected)
        }
    }
}

#[cfg(shuttle)]
mod imp {
    pub(crate) use shuttle::future::block_on;
    pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard, RwLock, atomic, mpsc};
    pub(crate) use shuttle::thread;

    use std::sync::Arc;

    use super::lock;

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
            let replaced = if unchanged { std::mem::replace(&mut *current, next) } else { next };
            drop(current);
            // Dropped without the lock, as in the other cell: it may be the last handle of a capture.
            drop(replaced);
            unchanged
        }
    }

    /// The standard library's `OnceLock`, which Shuttle lacks, with a scheduling point before each use.
    #[derive(Debug)]
    pub(crate) struct OnceLock<T> {
        value: std::sync::OnceLock<T>,
        uses: atomic::AtomicU64,
    }

    impl<T> OnceLock<T> {
        pub(crate) fn new() -> Self {
            Self { value: std::sync::OnceLock::new(), uses: atomic::AtomicU64::new(0) }
        }

        pub(crate) fn get(&self) -> Option<&T> {
            self.used().get()
        }

        pub(crate) fn set(&self, value: T) -> Result<(), T> {
            self.used().set(value)
        }

        pub(crate) fn get_or_init(&self, value: impl FnOnce() -> T) -> &T {
            self.used().get_or_init(value)
        }

        fn used(&self) -> &std::sync::OnceLock<T> {
            self.uses.fetch_add(1, atomic::Ordering::Relaxed);
            &self.value
        }
    }

    /// Starts a thread in a scope; never fails under Shuttle.
    pub(crate) fn spawn_scoped<'scope, T: Send + 'scope>(
        scope: &'scope thread::Scope<'scope, '_>,
        work: impl FnOnce() -> T + Send + 'scope,
    ) -> std::io::Result<thread::ScopedJoinHandle<'scope, T>> {
        Ok(scope.spawn(work))
    }

    /// Does nothing: Shuttle's threads are not threads of the system, and have no priority.
    pub(crate) fn idle_priority() -> std::io::Result<()> {
        Ok(())
    }
}

pub(crate) use imp::{
    Condvar, Current, Mutex, MutexGuard, OnceLock, RwLock, atomic, block_on, idle_priority, mpsc,
    spawn_scoped, thread,
};

/// Locks; panics if a thread panicked while it held the lock, since the guarded value cannot be trusted then.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics while it holds a lock")
}
