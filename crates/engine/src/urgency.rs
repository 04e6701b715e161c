//! The urgency of a read under way: it becomes that of the most urgent who waits for what the read brings.

use tokio::sync::Notify;

use crate::sync::{Mutex, lock};

/// Urgency of a read; those before it are served first, and have more of the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A guest or a caller waits for it.
    Fault,
    /// A guest may want it soon.
    Ahead,
    /// It saves work later, or checks what is there.
    Background,
}

/// The class of one piece of work, which only becomes more urgent.
#[derive(Debug)]
pub(crate) struct Urgency {
    class: Mutex<Class>,
    raised: Notify,
}

impl Urgency {
    pub(crate) fn of(class: Class) -> Self {
        Self { class: Mutex::new(class), raised: Notify::new() }
    }

    pub(crate) fn now(&self) -> Class {
        *lock(&self.class)
    }

    /// Makes it as urgent as `class`, if it is less so.
    pub(crate) fn raise(&self, class: Class) {
        let mut now = lock(&self.class);
        let is_raised = class < *now;
        *now = class.min(*now);
        drop(now);
        if is_raised {
            self.raised.notify_waiters();
        }
    }

    /// Waits until it is more urgent than `class`.
    pub(crate) async fn above(&self, class: Class) {
        loop {
            // It counts from here on.
            let raised = self.raised.notified();
            if self.now() < class {
                return;
            }
            raised.await;
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn work_becomes_as_urgent_as_the_most_urgent_who_waits_and_never_less() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let urgency = Urgency::of(Class::Background);
        runtime.block_on(async {
            let wait = urgency.above(Class::Ahead);
            let mut wait = std::pin::pin!(wait);
            for (class, now) in [(Class::Ahead, Class::Ahead), (Class::Background, Class::Ahead)] {
                urgency.raise(class);
                assert_eq!(urgency.now(), now);
                assert!(futures_util::poll!(&mut wait).is_pending(), "it is no more urgent than that");
            }
            urgency.raise(Class::Fault);
            wait.await;
            urgency.above(Class::Background).await;
        });
        assert_eq!(urgency.now(), Class::Fault);
    }
}
