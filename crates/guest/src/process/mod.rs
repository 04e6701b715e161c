//! The process guest: a test process that stands in for a VM, with memory, faults and work of its own.
//!
//! It maps guest memory, hands its faults over if told to, and runs commands from the socket on its standard input. Its
//! device state is the list of operations it has run; the expected content of each page follows from it.

pub mod arguments;
pub mod content;
pub mod handover;
pub mod history;
pub mod protocol;
pub mod trace;

mod control;
mod memory;
mod touching;
mod workload;

use std::ffi::OsString;

use anyhow::Context as _;

use arguments::GuestArguments;
use control::Control;
use handover::{HandedOver, SentFds};
use memory::GuestSpace;
use workload::Workload;

/// Runs a process guest until it is told to exit, with the words after the subcommand's name as arguments. A program
/// that can be started as a guest calls this first if its first argument says so.
pub fn run(words: impl IntoIterator<Item = OsString>) -> anyhow::Result<()> {
    run_with(&GuestArguments::parse_words(words)?)
}

/// Runs a process guest until it is told to exit.
pub fn run_with(arguments: &GuestArguments) -> anyhow::Result<()> {
    let control = Control::from_standard_input()?;
    let started = start(arguments);
    let (memory, handed_over) = match started {
        Ok(started) => started,
        Err(error) => return control.send_failure(&error),
    };
    control.end_with_other_side()?;
    control.send_hello(&memory, handed_over.as_ref())?;
    control.run(&mut Workload::new(memory, arguments.threads))
}

fn start(arguments: &GuestArguments) -> anyhow::Result<(GuestSpace, Option<HandedOver>)> {
    let memory = GuestSpace::map(arguments.kind, arguments.memory, arguments.regions)
        .with_context(|| format!("mapping {} bytes of {:?} memory", arguments.memory, arguments.kind))?;
    let fds = if arguments.send_memfd { SentFds::UserfaultfdAndMemfd } else { SentFds::Userfaultfd };
    let hand_over = |socket| HandedOver::send(&memory, socket, arguments.tracking, fds);
    let handed_over = arguments.handover.as_deref().map(hand_over).transpose()?;
    Ok((memory, handed_over))
}
