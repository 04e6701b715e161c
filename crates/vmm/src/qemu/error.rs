//! Errors of a QEMU.

use std::io;
use std::time::Duration;

use super::misfit::Misfit;
use crate::vmm_process::ProcessError;

/// A QEMU did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// Nothing was started: it could not have worked.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// Something it needs could not be made.
    #[error("{doing}: {source}")]
    Prepare {
        /// The action that failed.
        doing: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// Its process did not do what it was told to.
    #[error("QEMU: {0}")]
    Process(#[from] ProcessError),
    /// It ended before it had answered.
    #[error("QEMU {pid} ended before it could {doing}{}", said(log))]
    Ended {
        /// Its process id.
        pid: u32,
        /// The task it was given.
        doing: &'static str,
        /// The last lines it printed; empty if there were none or they were not kept.
        log: String,
    },
    /// No answer came in time: it is frozen, or waits for a page.
    #[error("QEMU {pid} did not {doing} within {limit:?}: it is frozen or waits for a page")]
    Silent {
        /// Its process id.
        pid: u32,
        /// The task it was given.
        doing: &'static str,
        /// The limit of the wait.
        limit: Duration,
    },
    /// It refused a command and said why.
    #[error("QEMU {pid} refused to {doing}: {reason}")]
    Refused {
        /// Its process id.
        pid: u32,
        /// The task it was given.
        doing: &'static str,
        /// The reason, in its words.
        reason: String,
    },
    /// Its answer was not understood.
    #[error("QEMU {pid} was to {doing} and answered something else: {answer}")]
    Answer {
        /// Its process id.
        pid: u32,
        /// The task it was given.
        doing: &'static str,
        /// The beginning of its answer.
        answer: String,
    },
    /// The device state could not be moved in or out.
    #[error("QEMU {pid}: device state was not {moved}: {reason}")]
    DeviceState {
        /// Its process id.
        pid: u32,
        /// `saved` or `loaded`.
        moved: &'static str,
        /// The reason.
        reason: String,
    },
    /// It stopped the machine by itself, so that no machine is left to go on.
    #[error("{why}: QEMU {pid} cannot be paused in this state; end it, and resume its last snapshot")]
    Stopped {
        /// Its process id.
        pid: u32,
        /// The reason that it stopped the machine.
        why: String,
    },
    /// It was resumed and never loaded: there is no guest in it that could run.
    #[error("QEMU {pid} has no guest yet: its device state was not loaded")]
    NotLoaded {
        /// Its process id.
        pid: u32,
    },
    /// The connection to it failed.
    #[error("QEMU {pid} could not be asked to {doing}: {source}")]
    Connection {
        /// Its process id.
        pid: u32,
        /// The task it was given.
        doing: &'static str,
        /// The reason.
        source: io::Error,
    },
}

fn said(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!("; it said: {log}") }
}
