//! QEMUs whose driver is gone: the keeper's holdings of them, from which the next driver goes on.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use rekindle_keeper::{Held, KeeperClient, KeeperError};
use rekindle_kernel::Memfd;

use super::error::QemuError;
use super::events::QemuEvents;
use super::qmp::Qmp;
use super::{Contact, QemuGuest, not_followed};
use crate::vmm_process::{VmmProcess, take_process};

/// The name of the control connection among what the keeper holds.
pub const CONTROL: &str = "control";
/// The name of the serial console among what the keeper holds.
pub const SERIAL: &str = "serial";
/// The name of the connection for events among what the keeper holds.
pub const EVENTS: &str = "events";
/// The name of the channel to the guest's agent among what the keeper holds.
pub const CHANNEL: &str = "channel";
/// The name of the memory file among what the keeper holds.
pub const MEMORY: &str = "memory";

/// Parts with which a driver attaches to a QEMU that another driver left under the keeper.
#[derive(Debug)]
pub struct KeptParts {
    /// Its process id.
    pub pid: u32,
    /// Its pidfd.
    pub process: OwnedFd,
    /// Our end of its control connection.
    pub control: OwnedFd,
    /// Our end of its serial console.
    pub serial: OwnedFd,
    /// Our end of the channel to its agent, if the machine has one.
    pub channel: Option<OwnedFd>,
    /// Our end of its connection for events; none of a QEMU that an older rekindle started.
    pub events: Option<OwnedFd>,
    /// The file behind its memory, if that is not served.
    pub memory: Option<OwnedFd>,
    /// The file that gets what it prints.
    pub log: PathBuf,
    /// The names of its disks, in the machine's order.
    pub disks: Vec<String>,
}

impl KeptParts {
    /// Takes them out of what the keeper holds under the QEMU's key; none if that is not all of one. `pid` counts where
    /// the keeper is not its parent. Of a guest that is served, its epoch is taken out before: the memory is a part of
    /// that.
    pub fn take(held: &mut Held, pid: u32, log: PathBuf, disks: Vec<String>) -> Option<Self> {
        let pid = held.process.as_ref().map_or(pid, |process| process.pid);
        let process = take_process(held)?;
        let (control, serial) = (held.fds.remove(CONTROL)?, held.fds.remove(SERIAL)?);
        let (events, memory) = (held.fds.remove(EVENTS), held.fds.remove(MEMORY));
        let channel = held.fds.remove(CHANNEL);
        Some(Self { pid, process, control, serial, channel, events, memory, log, disks })
    }
}

impl QemuGuest {
    /// Hands the guest to a keeper that does not hold it: the one that did is gone.
    pub fn keep_under(&self, keeper: &KeeperClient, key: &str) -> Result<(), KeeperError> {
        let mut fds: Vec<(&str, BorrowedFd<'_>)> =
            vec![(CONTROL, self.qmp.as_fd()), (SERIAL, self.serial.as_fd())];
        fds.extend(self.channel.as_ref().map(|channel| (CHANNEL, channel.as_fd())));
        fds.extend(self.events.as_ref().map(|events| (EVENTS, events.as_fd())));
        fds.extend(self.memory.as_ref().map(|memory| (MEMORY, memory.as_fd())));
        self.process.keep_under(keeper, key, &fds)
    }

    /// Finds a guest again that another driver left under the keeper. Nothing is said to it yet: it may be frozen.
    /// [`Self::go_on`] makes it run, also after an operation that was cut short.
    pub fn attach(parts: KeptParts) -> Result<Self, QemuError> {
        let KeptParts { pid, process, control, serial, channel, events, memory, log, disks } = parts;
        let process = VmmProcess::attach(pid, process.as_fd())?;
        let adopt = |fd| Memfd::adopt(fd).map_err(std::io::Error::other);
        let memory = memory.map(adopt).transpose();
        let memory =
            memory.map_err(|source| QemuError::Prepare { doing: "the guest's memory file", source })?;
        let channel = channel.map(|channel| Arc::new(UnixStream::from(channel)));
        let follow = |events| QemuEvents::follow(pid, UnixStream::from(events), log.clone(), disks);
        let events = events.map(follow).transpose().map_err(not_followed)?;
        let qmp = Qmp::new(pid, UnixStream::from(control), log);
        let serial = UnixStream::from(serial);
        Ok(Self { process, qmp, contact: Contact::Strange, serial, channel, events, memory })
    }
}
