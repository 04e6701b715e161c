//! Guests whose parent is the keeper: they outlive their driver, and another driver goes on with them.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use rekindle_engine::image::Image;
use rekindle_guest::process::arguments::IMAGE_FD;
use rekindle_guest::process::protocol::Hello;
use rekindle_keeper::{Held, KeeperClient, KeeperError, Role, Spawn};
use rekindle_kernel::Memfd;

use super::{GuestControl, GuestError, GuestOptions, ProcessGuest};
use crate::vmm_process::{ProcessError, VmmProcess, take_process};

/// The name of a guest's control socket among what the keeper holds.
pub const CONTROL: &str = "control";
/// The name of a guest's memfd among what the keeper holds.
pub const MEMORY: &str = "memory";

/// The words of the environment that a guest under the keeper shares with its driver.
const SHARED_ENVIRONMENT: [&str; 2] = ["RUST_LOG", "RUST_BACKTRACE"];

/// Parts with which a driver attaches to a guest that another driver left under the keeper.
#[derive(Debug)]
pub struct KeptParts {
    /// Its process id.
    pub pid: u32,
    /// Its pidfd.
    pub process: OwnedFd,
    /// The driver's end of its control socket.
    pub control: OwnedFd,
    /// Its memfd, if its memory is shared and not served.
    pub memory: Option<OwnedFd>,
    /// Its own facts from its start.
    pub hello: Hello,
}

impl KeptParts {
    /// Takes them out of what the keeper holds under a guest's key; none if that is not all of a guest.
    ///
    /// The memfd is taken only where the guest's driver got it from the guest, not from its hand-over.
    pub fn take(held: &mut Held, hello: Hello) -> Option<Self> {
        // A keeper that was given a guest after its start knows only the pidfd.
        let pid = held.process.as_ref().map_or(hello.pid, |process| process.pid);
        let process = take_process(held)?;
        let control = held.fds.remove(CONTROL)?;
        let memory = if hello.user_faults_only.is_none() { held.fds.remove(MEMORY) } else { None };
        Some(Self { pid, process, control, memory, hello })
    }
}

impl ProcessGuest {
    /// Starts a guest as a child of the keeper, and waits as [`Self::spawn`] does. Under `key` the keeper then holds
    /// its pidfd, its control socket and, where it sent one, its memfd: all that [`Self::attach`] takes but the hello.
    /// A guest whose memory is a private mapping of an image gets that.
    ///
    /// On failure no guest runs; the holdings under `key` are the caller's to forget.
    pub fn spawn_under(
        keeper: &KeeperClient,
        key: &str,
        options: &GuestOptions,
        image: Option<&Image>,
    ) -> Result<Self, GuestError> {
        let started = |source| GuestError::Start { program: options.program.clone(), source };
        let (ours, theirs) = UnixStream::pair().map_err(started)?;
        let mut fds = vec![(Role::Child(0), theirs.as_fd()), (Role::Held(CONTROL), ours.as_fd())];
        let image = image.map(|image| image.memfd().reopen_to_read()).transpose().map_err(started)?;
        fds.extend(image.as_ref().map(|image| (Role::Child(IMAGE_FD), image.as_fd())));
        let spawned = VmmProcess::spawn_under(keeper, key, &options.under_keeper(), &fds);
        drop(theirs);
        // From here on the guest is ended if anything fails.
        let process = match spawned {
            Ok(process) => process,
            Err(ProcessError::NotStarted { source }) => return Err(started(source)),
            Err(gone @ ProcessError::Gone { pid, .. }) => {
                // It ended at once; why is what it said before that.
                return Err(GuestControl::greet(pid, ours).err().unwrap_or(gone.into()));
            }
            Err(error) => return Err(error.into()),
        };
        let (control, hello, memfd) = GuestControl::greet(process.process().id(), ours)?;
        if let Some(memfd) = &memfd {
            let held = keeper.add(key, &[(MEMORY, memfd.as_fd())]);
            held.map_err(|source| ProcessError::Keeper { key: key.to_owned(), source })?;
        }
        Ok(Self { control, process: process.finish(), hello, memfd })
    }

    /// Hands a guest to a keeper that does not hold it: the one that did is gone.
    pub fn keep_under(&self, keeper: &KeeperClient, key: &str) -> Result<(), KeeperError> {
        let mut fds = vec![(CONTROL, self.control.as_fd())];
        fds.extend(self.memfd.as_ref().map(|memfd| (MEMORY, memfd.as_fd())));
        self.process.keep_under(keeper, key, &fds)
    }

    /// Goes on with a guest that another driver left under the keeper, even in the middle of a command.
    pub fn attach(parts: KeptParts) -> Result<Self, GuestError> {
        let KeptParts { pid, process, control, memory, hello } = parts;
        let process = VmmProcess::attach(pid, process.as_fd())?;
        let control = GuestControl::take_over(pid, UnixStream::from(control));
        let adopt = |fd| Memfd::adopt(fd).map_err(io::Error::other);
        let memfd = memory.map(adopt).transpose();
        let memfd = memfd.map_err(|source| GuestError::Process { pid, doing: "attaching to", source })?;
        Ok(Self { control, process, hello, memfd })
    }
}

impl GuestOptions {
    fn under_keeper(&self) -> Spawn {
        let arguments = self.leading.iter().cloned().chain(self.guest.to_words()).collect();
        let word = |name: &&str| Some((OsString::from(name), std::env::var_os(name)?));
        Spawn {
            program: self.program.clone(),
            arguments,
            environment: SHARED_ENVIRONMENT.iter().filter_map(word).collect(),
            log: self.log.clone(),
            user_id: self.user_id,
            directory: None,
        }
    }
}
