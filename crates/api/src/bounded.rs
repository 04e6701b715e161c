//! The daemon as the routes ask it: on threads of their own, so that a client that goes away interrupts no step half-way.

use std::sync::Arc;

use rekindle_input::asker::Asker;
use tokio::sync::watch;
use tokio::task::JoinError;
use tracing::Span;

use super::audit::About;
use super::control::{Answer, Asked, Control, IdempotencyKey};
use super::places::Place;
use super::problem::{Code, Problem};

/// The daemon and the signal of its end, as every handler has them.
#[derive(Clone, Debug)]
pub(crate) struct BoundedControl {
    control: Arc<dyn Control>,
    ending: Ending,
}

impl BoundedControl {
    pub(crate) fn new(control: Arc<dyn Control>, ending: Ending) -> Self {
        Self { control, ending }
    }

    /// Asks what changes something: a line in the log says what came of it.
    pub(crate) async fn change<T, Q>(
        &self,
        place: Place,
        key: Option<IdempotencyKey>,
        question: Q,
    ) -> Answer<T>
    where
        T: About + Send + 'static,
        Q: FnOnce(&dyn Control, Asked) -> Answer<T> + Send + 'static,
    {
        let audit = place.audit().cloned();
        let noted = move |control: &dyn Control, asked: Asked| {
            let answer = question(control, asked);
            if let Some(audit) = audit {
                audit.came_to(&answer);
            }
            answer
        };
        self.ask_while(place, key, noted).await
    }

    /// Asks what hears when the one who asked goes away.
    pub(crate) async fn ask_while<T, Q>(
        &self,
        place: Place,
        key: Option<IdempotencyKey>,
        question: Q,
    ) -> Answer<T>
    where
        T: Send + 'static,
        Q: FnOnce(&dyn Control, Asked) -> Answer<T> + Send + 'static,
    {
        let asked = Asked { key, asker: Asker::default() };
        let waiting = asked.asker.waits();
        let answer = self.ask(place, move |control| question(control, asked)).await;
        drop(waiting);
        answer
    }

    /// Asks on a thread that may block. The question is asked to its end and keeps its place until then, even if the
    /// future is dropped.
    pub(crate) async fn ask<T, Q>(&self, place: Place, question: Q) -> Answer<T>
    where
        T: Send + 'static,
        Q: FnOnce(&dyn Control) -> Answer<T> + Send + 'static,
    {
        let control = Arc::clone(&self.control);
        let span = Span::current();
        let asked = tokio::task::spawn_blocking(move || {
            let answer = span.in_scope(|| question(&*control));
            drop(place);
            answer
        });
        asked.await.unwrap_or_else(|broken| Err(bug(&broken)))
    }

    pub(crate) fn ending(&self) -> Ending {
        self.ending.clone()
    }
}

fn bug(broken: &JoinError) -> Problem {
    tracing::error!(%broken, "a request met a bug");
    Problem::new(Code::Internal, "this request met a bug in rekindle: the daemon's log says where")
}

/// Signal that the daemon ends.
#[derive(Clone, Debug)]
pub(crate) struct Ending(watch::Receiver<bool>);

impl Ending {
    /// One that comes when `true` is sent or the sender is gone.
    pub(crate) fn new(sent: watch::Receiver<bool>) -> Self {
        Self(sent)
    }

    /// True once it was given.
    pub(crate) fn has_come(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Returns when it has come.
    pub(crate) async fn comes(&mut self) {
        // An error says that the sender is gone, which is an end too.
        drop(self.0.wait_for(|ends| *ends).await);
    }
}
