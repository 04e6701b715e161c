//! The one thread that frees large memory, so that no guest and no request waits for that.

use std::any::Any;

use tokio::sync::oneshot;

use crate::sync::mpsc::{Receiver, Sender, channel};
use crate::sync::thread::{Builder, JoinHandle};

type Discarded = Box<dyn Any + Send>;

#[derive(Debug)]
enum Message {
    Discard(Discarded),
    Stop,
}

/// The reaper's owner. Dropping it frees everything handed in before, then stops and joins the thread.
#[derive(Debug)]
pub struct Reaper {
    handle: ReaperHandle,
    thread: Option<JoinHandle<()>>,
}

/// A handle that takes memory to be freed. After the reaper has ended, memory is freed by the caller.
#[derive(Debug, Clone)]
pub struct ReaperHandle(Sender<Message>);

impl Reaper {
    /// Starts the thread, at normal priority: a pause may be waiting for the bytes it frees.
    pub fn start() -> std::io::Result<Self> {
        let (sender, receiver) = channel();
        let thread = Builder::new().name("reaper".into()).spawn(move || reap(&receiver))?;
        Ok(Self { handle: ReaperHandle(sender), thread: Some(thread) })
    }

    /// A handle to hand in memory.
    pub fn handle(&self) -> ReaperHandle {
        self.handle.clone()
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        // A failed send means that the thread has ended already.
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

    /// Waits until all that was handed in before is freed.
    pub async fn freed(&self) {
        let (last, freed) = oneshot::channel::<()>();
        self.discard(last);
        // The sender sends nothing: the reaper drops it.
        freed.await.ok();
    }
}

fn reap(receiver: &Receiver<Message>) {
    while let Ok(Message::Discard(thing)) = receiver.recv() {
        drop(thing);
    }
}
