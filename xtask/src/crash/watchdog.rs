//! Ends a campaign that hangs or is interrupted, with everything it started.

use std::process;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rekindle_kernel::SignalReader;
use rekindle_kernel::signals::Arrived;
use rekindle_testkit::black_box::BlackBox;

/// Longest silence of a campaign.
const SILENT_MAX: Duration = Duration::from_secs(300);
/// Between two looks for an interruption.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Watches while it lives.
#[derive(Debug)]
pub(crate) struct Watchdog {
    alive: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Watches over everything that runs in `place`. For the program's first thread, before it starts others.
    pub(crate) fn over(place: &Arc<BlackBox>) -> anyhow::Result<Self> {
        let signals = SignalReader::block().context("taking signals")?;
        let (alive, heard) = channel();
        let place = Arc::clone(place);
        let watching = move || watch(&place, &signals, &heard);
        let thread = thread::Builder::new().name("watchdog".to_owned()).spawn(watching)?;
        Ok(Self { alive: Some(alive), thread: Some(thread) })
    }

    /// Something was done.
    pub(crate) fn is_alive(&self) {
        if let Some(alive) = &self.alive {
            // The watchdog listens as long as this is there.
            alive.send(()).ok();
        }
    }
}

impl Drop for Watchdog {
    /// Lets go of the place, so that it ends with its owner.
    fn drop(&mut self) {
        drop(self.alive.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the watchdog does not panic");
        }
    }
}

fn watch(place: &BlackBox, signals: &SignalReader, heard: &Receiver<()>) {
    let mut last = Instant::now();
    loop {
        match heard.recv_timeout(LOOK_EVERY) {
            Ok(()) => last = Instant::now(),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if last.elapsed() > SILENT_MAX {
            end(
                place,
                &format!(
                    "nothing has moved for {SILENT_MAX:?}; the daemon's log ends with:\n{}",
                    place.log_end()
                ),
            );
        }
        while let Ok(Some(arrived)) = signals.next() {
            if arrived == Arrived::End {
                end(place, "interrupted");
            }
        }
    }
}

/// Ends everything, this program too: its other threads may wait for what never comes.
fn end(place: &BlackBox, why: &str) {
    eprintln!("{why}");
    eprintln!("what there is is left in {}", place.leave().display());
    if let Err(error) = place.end_all() {
        eprintln!("processes may be left over: {error}");
    }
    process::exit(1);
}
