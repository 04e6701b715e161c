//! The one thread that gives large memory back to the system, so that no guest and no request pays for it.

use std::any::Any;

use crate::sync::mpsc::{Receiver, Sender, channel};
use crate::sync::thread::{Builder, JoinHandle};

type Discarded = Box<dyn Any + Send>;

#[derive(Debug)]
enum Message {
    Discard(Discarded),
    Stop,
}

/// The reaper's owner: dropping it stops and joins the thread after everything handed in before is freed.
#[derive(Debug)]
pub struct Reaper {
    handle: ReaperHandle,
    thread: Option<JoinHandle<()>>,
}

/// Takes memory that is to be freed. After the reaper has ended, things are freed where they are handed in.
#[derive(Debug, Clone)]
pub struct ReaperHandle(Sender<Message>);

impl Reaper {
    /// Starts the thread, at normal priority: a pause may be waiting for the bytes it frees.
    pub fn start() -> std::io::Result<Self> {
        let (sender, receiver) = channel();
        let thread = Builder::new().name("reaper".into()).spawn(move || reap(&receiver))?;
        Ok(Self { handle: ReaperHandle(sender), thread: Some(thread) })
    }

    /// A handle to hand things in by.
    pub fn handle(&self) -> ReaperHandle {
        self.handle.clone()
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        // A failed send means that the thread has ended already, as wanted.
        self.handle.0.send(Message::Stop).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the reaper only drops values");
        }
    }
}

impl ReaperHandle {
    /// Frees `thing` on the reaper's thread.
    pub fn discard(&self, thing: impl Any + Send) {
        self.0.send(Message::Discard(Box::new(thing))).ok();
    }
}

fn reap(receiver: &Receiver<Message>) {
    while let Ok(Message::Discard(thing)) = receiver.recv() {
        drop(thing);
    }
}
