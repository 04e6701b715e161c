//! The demo's output while it runs: progress bars on a terminal, plain lines into a pipe, nothing beside JSON.

use std::io::IsTerminal as _;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::report::seconds;

/// Between two looks at how far a step has come.
const LOOK: Duration = Duration::from_millis(80);

/// The demo's steps as they happen.
#[derive(Debug)]
pub(super) struct Timeline {
    started: Instant,
    output: Output,
}

#[derive(Debug)]
enum Output {
    Bars(MultiProgress),
    Lines,
    Nothing,
}

impl Timeline {
    pub(super) fn new(json: bool) -> Self {
        let output = if json {
            Output::Nothing
        } else if std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
            Output::Bars(MultiProgress::new())
        } else {
            Output::Lines
        };
        Self { started: Instant::now(), output }
    }

    /// Says something that has happened.
    pub(super) fn say(&self, text: &str) {
        let line = format!("{:>9}  {text}", seconds(self.started.elapsed().as_secs_f64()));
        match &self.output {
            // The terminal may go away in the middle of a demo; the demo does not depend on it.
            Output::Bars(bars) => bars.println(line).unwrap_or_default(),
            Output::Lines => println!("{line}"),
            Output::Nothing => {}
        }
    }

    /// Does `work` and shows, out of `total`, how far `reached` says it is.
    pub(super) fn during<T>(
        &self,
        text: &str,
        total: u64,
        reached: impl Fn() -> u64 + Sync,
        work: impl FnOnce() -> T,
    ) -> T {
        let Output::Bars(bars) = &self.output else { return work() };
        let bar = bars.add(bar(text, total));
        let (done, is_done) = channel::<()>();
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                let is_done = is_done;
                while is_done.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                    bar.set_position(reached().min(total));
                }
            });
            let result = work();
            drop(done);
            result
        });
        bar.finish_and_clear();
        result
    }
}

fn bar(text: &str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{elapsed:>9}  {msg:<34} {wide_bar} {percent:>3}%")
        .expect("the template is well formed");
    ProgressBar::new(total).with_style(style).with_message(text.to_owned())
}
