//! Work that takes too long for the keeper's loop, on threads of their own.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// A thread that does one kind of work. It ends with the process or once this is dropped.
#[derive(Debug)]
pub(super) struct Worker<T> {
    /// None where no thread could be started.
    sender: Option<Sender<T>>,
    work: fn(T),
}

impl<T: Send + 'static> Worker<T> {
    /// A thread that prepares itself, and then does the work that is handed in.
    pub(super) fn start(name: &str, prepare: fn(), work: fn(T)) -> Self {
        let (sender, receiver): (_, Receiver<T>) = channel();
        let run = move || {
            prepare();
            receiver.iter().for_each(work);
        };
        let started = thread::Builder::new().name(name.to_owned()).stack_size(64 << 10).spawn(run);
        Self { sender: started.is_ok().then_some(sender), work }
    }

    /// Has the work done there; here and now where there is no such thread.
    pub(super) fn hand(&self, thing: T) {
        let left = match &self.sender {
            Some(sender) => sender.send(thing).err().map(|unsent| unsent.0),
            None => Some(thing),
        };
        if let Some(thing) = left {
            (self.work)(thing);
        }
    }
}
