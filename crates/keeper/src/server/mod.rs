//! The keeper's server: one loop that waits, carries out requests, and answers.

mod worker;
mod desk;
mod holdings;
mod link;
mod processes;
mod socket;
mod turns;

use std::io::Write as _;
use std::process::ExitCode;
use std::{fmt, io};

use anyhow::Context as _;
use rekindle_kernel::{SignalReader, Spawner, placement};

use super::arguments::KeeperArguments;
use desk::Desk;
use processes::Ends;
use socket::Listening;
use turns::Keeper;

/// The exit status of a keeper that found another one at its socket.
const ANOTHER_RUNS: u8 = 4;

/// When memory runs out the kernel never ends the keeper, where that may be said: all guests would be lost with it.
const OOM_SCORE: i16 = -1000;
/// It ends guests before the keeper, the daemon and all programs without a score of their own.
const CHILD_OOM_SCORE: i16 = 800;

/// Runs the keeper until it is told to end and holds nothing, or is told to end with all its holdings.
///
/// It ends by nothing else: it ignores every signal that can be ignored, and answers what it cannot do.
pub fn run(arguments: &KeeperArguments) -> anyhow::Result<ExitCode> {
    rekindle_engine::private::keep_to_this_user();
    let signals = SignalReader::block().context("taking signals")?;
    let spawner = Spawner::prepare().context("preparing to start processes")?.with_oom_score(CHILD_OOM_SCORE);
    let ends = Ends::new().context("preparing to hear of their ends")?;
    let socket = std::path::absolute(&arguments.socket).context("finding the socket")?;
    // Fails if its parent gave it a session or a group of its own, which is as good.
    rustix::process::setsid().ok();
    rustix::process::chdir("/").context("leaving the directory it was started in")?;
    let Some(listening) = Listening::at(&socket)? else {
        log(format_args!("another keeper runs at {}", socket.display()));
        return Ok(ExitCode::from(ANOTHER_RUNS));
    };
    // One that may not is as likely to be ended as its user's other processes, and later than its children.
    placement::outlive_others(OOM_SCORE).ok();
    let keeper = Keeper::new(listening, signals, Desk::new(spawner, ends));
    log(format_args!("listening at {}", socket.display()));
    // The parent may wait for this line, or be gone.
    writeln!(io::stdout(), "listening at {}", socket.display()).ok();
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).ok();
    // A child that has ended gives its memory back before the kernel ends another one for want of it. A keeper that may
    // not run first notices ends as soon as the processors have time for that.
    placement::first_priority().ok();
    keeper.run();
    log(format_args!("ended as it was told"));
    Ok(ExitCode::SUCCESS)
}

/// Writes a line to standard error, if anybody takes it.
fn log(what: fmt::Arguments<'_>) {
    writeln!(io::stderr(), "rekindle keeper {}: {what}", std::process::id()).ok();
}
