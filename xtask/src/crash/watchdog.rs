//! Ends a campaign that does not move any more, or that somebody interrupts, with everything it started.

use std::process;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rekindle_kernel::SignalReader;
use rekindle_kernel::signals::Arrived;
use rekindle_testkit::black_box::BlackBox;

/// How long nothing may be heard of a campaign.
const SILENT_MAX: Duration = Duration::from_secs(300);
/// Between two looks for an interruption.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Watches while it lives.
#[derive(Debug)]
pub(crate) struct Watchdog {
    alive: Sender<()>,
}

impl Watchdog {
    /// Watches over everything that runs in `place`. For the program's first thread, before it starts others.
    pub(crate) fn over(place: &Arc<BlackBox>) -> anyhow::Result<Self> {
        let signals = SignalReader::block().context("taking signals")?;
        let (alive, heard) = channel();
        let place = Arc::clone(place);
        thread::Builder::new().name("watchdog".to_owned()).spawn(move || watch(&place, &signals, &heard))?;
        Ok(Self { alive })
    }

    /// Something was done.
    pub(crate) fn is_alive(&self) {
        // The watchdog listens as long as this is there.
        self.alive.send(()).ok();
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
