//! The driver of QEMU: an unmodified one whose memory is a file of ours, started, served, paused and resumed.

mod error;
mod machine;
mod misfit;
mod program;
mod boot_file;
mod spec;
mod launch;
mod command_line;
mod qmp;
mod events;
mod device_state;
mod kept;
mod version;

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rekindle_engine::image::Image;
use rekindle_keeper::{KeeperClient, Role};
use rekindle_kernel::wakeup::wait_readable;
use rekindle_kernel::{Memfd, PageKind};
use serde_json::Value;
use uuid::Uuid;

use super::vmm_process::{Unfinished, VmmProcess};
use command_line::{Beginning, CHANNEL_FD, CONTROL_FD, EVENTS_FD, MEMORY_FD, Mapped, SERIAL_FD, SHIM_FD};
use events::QemuEvents;
use qmp::Qmp;

pub use boot_file::{BootFile, BootFileError, BootRole};
pub use error::QemuError;
pub use events::{MachineWatch, told_end};
pub use kept::{CHANNEL, CONTROL, EVENTS, KeptParts, MEMORY, SERIAL};
pub use launch::{Launch, Places};
pub use machine::{Accelerator, Machine};
pub use misfit::{FoundInstead, Misfit};
pub use program::{NoQemu, QemuProgram};
pub use spec::{DiskSpec, NicSpec, QemuOptions, QemuSpec, SPEC_BLOB};
pub use version::Version;

/// A QEMU with its guest. Dropped, it runs on under the keeper.
#[derive(Debug)]
pub struct QemuGuest {
    /// The process it is.
    pub process: VmmProcess,
    qmp: Qmp,
    contact: Contact,
    serial: UnixStream,
    channel: Option<Arc<UnixStream>>,
    events: Option<QemuEvents>,
    memory: Option<Memfd>,
}

/// Stage of the contact between a driver and its QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contact {
    /// It was started, and has not said yet that it is up.
    New,
    /// Another driver talked to it, and may have stopped in the middle of a word.
    Strange,
    /// It takes commands.
    Known,
}

impl QemuGuest {
    /// Starts a guest on empty memory as a child of the keeper, which holds under `key` its pidfd, [`CONTROL`],
    /// [`SERIAL`], [`EVENTS`], [`MEMORY`] and, if it has one, [`CHANNEL`]. It runs when this returns.
    ///
    /// On failure no QEMU runs; the holdings under `key` are the caller's to forget.
    pub fn start(keeper: &KeeperClient, key: &str, launch: &Launch) -> Result<Self, QemuError> {
        let memory = empty_memory(launch)?;
        let begun = Begun::spawn(keeper, key, launch, &memory, Beginning::Boot)?;
        let Begun { process, control, serial, channel, events } = begun;
        let mut qmp = Qmp::new(process.process().id(), control, launch.places.log.clone());
        qmp.greet()?;
        device_state::prepare(&mut qmp)?;
        let (contact, memory) = (Contact::Known, Some(memory));
        Ok(Self { process: process.finish(), qmp, contact, serial, channel, events: Some(events), memory })
    }

    /// Starts a QEMU as a child of the keeper, whose memory is handed over at the socket `handover`, which listens
    /// already; see [`Self::handed_over`]. Its guest stands until [`Self::load`]. The keeper holds under `key` its
    /// pidfd, [`CONTROL`], [`SERIAL`], [`EVENTS`] and, if it has one, [`CHANNEL`]; the memory comes with the hand-over,
    /// unless it is a private mapping of `image`.
    ///
    /// Once this has returned, ending the process is the caller's, after any failure.
    pub fn resume(
        keeper: &KeeperClient,
        key: &str,
        launch: &Launch,
        handover: &Path,
        image: Option<&Image>,
    ) -> Result<Self, QemuError> {
        let (memory, mapped) = match image {
            // QEMU opens the file by its path, for writing; the library then maps it privately.
            Some(image) => (image.memfd().try_clone().map_err(no_memory)?, Mapped::Privately),
            None => (empty_memory(launch)?, Mapped::Shared),
        };
        let begun = Begun::spawn(keeper, key, launch, &memory, Beginning::Resume(handover, mapped))?;
        let Begun { process, control, serial, channel, events } = begun;
        let qmp = Qmp::new(process.process().id(), control, launch.places.log.clone());
        let (contact, events) = (Contact::New, Some(events));
        Ok(Self { process: process.finish(), qmp, contact, serial, channel, events, memory: None })
    }

    /// Waits for the connection over which a resumed guest hands over its memory, at most `limit`. A QEMU that ends
    /// instead has said why, which is in the error.
    pub fn handed_over(&self, listener: &UnixListener, limit: Duration) -> Result<UnixStream, QemuError> {
        const DOING: &str = "hand over its memory";
        let failed = |source| QemuError::Connection { pid: self.id(), doing: DOING, source };
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let process = self.process.handle();
            let fds = [Some(listener.as_fd()), Some(process.as_fd())];
            let [connected, ended] = wait_readable(fds, Some(left)).map_err(failed)?;
            if connected.readable {
                return Ok(listener.accept().map_err(failed)?.0);
            }
            if ended.readable {
                return Err(self.qmp.ended(DOING));
            }
            if left.is_zero() {
                return Err(QemuError::Silent { pid: self.id(), doing: DOING, limit });
            }
        }
    }

    /// Puts device state into a QEMU that was started by [`Self::resume`], and lets its guest go on from there. Its
    /// faults begin before this returns, so another thread is serving them.
    pub fn load(&mut self, state: &[u8]) -> Result<(), QemuError> {
        self.become_known()?;
        device_state::prepare(&mut self.qmp)?;
        device_state::load(&mut self.qmp, state)?;
        self.qmp.execute("go on", "cont", &Value::Null).map(drop)
    }

    /// Has every CPU and device of the guest stand, and takes its device state. The guest is still served meanwhile: a
    /// CPU stands once it has the page it waits for. On failure, call [`Self::go_on`].
    pub fn suspend(&mut self) -> Result<Bytes, QemuError> {
        self.become_known()?;
        // Asked for both at once: a machine that QEMU stopped before is no other for being told to stop.
        let [stop, status] =
            ["stop", "query-status"].map(|word| self.qmp.tell("stop", word, &Value::Null, &[]));
        self.qmp.answer("stop", stop?)?;
        let told = self.qmp.answer("stop", status?)?;
        if let Some(why) = events::stopped_by_itself(told["status"].as_str().unwrap_or_default()) {
            return Err(QemuError::Stopped { pid: self.id(), why });
        }
        Ok(device_state::save(&mut self.qmp)?.into())
    }

    /// Has the guest run again after a pause that did not come to pass, wherever that stopped. One that runs goes on.
    pub fn go_on(&mut self) -> Result<(), QemuError> {
        let gone_on = self.try_go_on();
        if let Err(QemuError::Silent { .. }) = &gone_on {
            // It may yet come to do what it was told before; then this is to be the last of it.
            self.qmp.tell("go on", "cont", &Value::Null, &[])?;
        }
        gone_on
    }

    fn try_go_on(&mut self) -> Result<(), QemuError> {
        self.become_known()?;
        device_state::give_up(&mut self.qmp)?;
        let told = self.qmp.execute("go on", "query-status", &Value::Null)?;
        if told["status"] == "inmigrate" {
            return Err(QemuError::NotLoaded { pid: self.id() });
        }
        self.qmp.execute("go on", "cont", &Value::Null).map(drop)
    }

    /// The generation id that the guest sees now: another one after each resume. None where the machine has no such
    /// device.
    pub fn generation_id(&mut self) -> Result<Option<Uuid>, QemuError> {
        const DOING: &str = "tell its generation id";
        self.become_known()?;
        let told = match self.qmp.execute(DOING, "query-vm-generation-id", &Value::Null) {
            Err(QemuError::Refused { .. }) => return Ok(None),
            told => told?,
        };
        let id = told["guid"].as_str().and_then(|id| id.parse().ok());
        let answer = || QemuError::Answer { pid: self.id(), doing: DOING, answer: told.to_string() };
        id.map(Some).ok_or_else(answer)
    }

    /// QEMU's own actions on the machine; none are known of a QEMU that an older rekindle started.
    pub fn watch(&self) -> Option<MachineWatch> {
        self.events.as_ref().map(QemuEvents::watch)
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Our end of the serial console: the guest's output, and its input. A guest whose output is not read stands still
    /// when it prints.
    pub fn serial(&self) -> BorrowedFd<'_> {
        self.serial.as_fd()
    }

    /// Our end of the channel to the guest's agent, if the machine has one. QEMU reads nothing of it while the guest stands.
    pub fn channel(&self) -> Option<&Arc<UnixStream>> {
        self.channel.as_ref()
    }

    /// The file behind the memory of a guest that was started on empty memory; once the guest stands still, its pages
    /// are all there is to capture (`rekindle_engine::tracking::file_pages`).
    pub fn memory(&self) -> Option<&Memfd> {
        self.memory.as_ref()
    }

    /// Closes that file.
    pub fn close_memory(&mut self) {
        self.memory = None;
    }

    fn become_known(&mut self) -> Result<(), QemuError> {
        match self.contact {
            Contact::New => self.qmp.greet()?,
            Contact::Strange => self.qmp.take_over()?,
            Contact::Known => {}
        }
        self.contact = Contact::Known;
        Ok(())
    }
}

/// A QEMU that was started and is killed on drop, with our ends of its connections.
struct Begun {
    process: Unfinished,
    control: UnixStream,
    serial: UnixStream,
    channel: Option<Arc<UnixStream>>,
    events: QemuEvents,
}

impl Begun {
    fn spawn(
        keeper: &KeeperClient,
        key: &str,
        launch: &Launch,
        memory: &Memfd,
        beginning: Beginning<'_>,
    ) -> Result<Self, QemuError> {
        let spawn = command_line::spawn(launch, memory, beginning);
        let (control, their_control) = pair()?;
        let (serial, their_serial) = pair()?;
        let (events, their_events) = pair()?;
        let channel = launch.spec.options.channel.then(pair).transpose()?;
        let mut fds = vec![
            (Role::Child(CONTROL_FD), their_control.as_fd()),
            (Role::Child(SERIAL_FD), their_serial.as_fd()),
            (Role::Child(MEMORY_FD), memory.as_fd()),
            (Role::Child(EVENTS_FD), their_events.as_fd()),
            (Role::Held(CONTROL), control.as_fd()),
            (Role::Held(SERIAL), serial.as_fd()),
            (Role::Held(EVENTS), events.as_fd()),
        ];
        if let Some((channel, their_channel)) = &channel {
            fds.push((Role::Child(CHANNEL_FD), their_channel.as_fd()));
            fds.push((Role::Held(CHANNEL), channel.as_fd()));
        }
        match beginning {
            Beginning::Boot => fds.push((Role::Held(MEMORY), memory.as_fd())),
            Beginning::Resume(..) => fds.push((Role::Child(SHIM_FD), launch.program.shim().as_fd())),
        }
        let process = VmmProcess::spawn_under(keeper, key, &spawn, &fds)?;
        // Their ends are QEMU's alone: so its end is the end of what is read.
        drop((their_control, their_serial, their_events));
        let channel = channel.map(|(channel, _theirs)| Arc::new(channel));
        let disks = launch.spec.options.disks.iter().map(|disk| disk.name.clone()).collect();
        let log = launch.places.log.clone();
        let events = QemuEvents::follow(process.process().id(), events, log, disks).map_err(not_followed)?;
        Ok(Self { process, control, serial, channel, events })
    }
}

fn not_followed(source: io::Error) -> QemuError {
    QemuError::Prepare { doing: "a reader of QEMU's events", source }
}

fn pair() -> Result<(UnixStream, UnixStream), QemuError> {
    UnixStream::pair().map_err(|source| QemuError::Prepare { doing: "a connection to QEMU", source })
}

fn empty_memory(launch: &Launch) -> Result<Memfd, QemuError> {
    let bytes = launch.spec.options.memory_bytes;
    Memfd::create("guest-memory", bytes, PageKind::Small).map_err(no_memory)
}

fn no_memory(source: io::Error) -> QemuError {
    QemuError::Prepare { doing: "memory for the guest", source }
}
