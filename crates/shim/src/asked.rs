//! Requests to this library in the environment.

use std::mem::MaybeUninit;
use std::path::PathBuf;

use libc::c_int;

use crate::refusal::Refusal;

/// The variable with the path of the socket at which the handler listens.
const HANDOVER: &str = "REKINDLE_HANDOVER";
/// The variable with the device, inode and length of the memory file: three numbers with colons between them.
const MEMORY: &str = "REKINDLE_MEMORY";
/// The variable that, if set, says that the memory file is to be mapped privately, whatever the program asks for.
const PRIVATE: &str = "REKINDLE_PRIVATE";
/// The variable that, if set, says that the kernel itself never touches guest memory.
const USER_FAULTS: &str = "REKINDLE_USER_FAULTS";

/// The memory file, and the socket to hand it over at.
pub(crate) struct Asked {
    pub(crate) socket: PathBuf,
    pub(crate) bytes: u64,
    /// True if a userfaultfd without faults of the kernel is enough.
    pub(crate) user_faults_suffice: bool,
    /// True if the memory file is an image that other programs map as well, so that writes must not reach it.
    pub(crate) is_private: bool,
    device: u64,
    inode: u64,
}

impl Asked {
    /// The request in the environment; none if neither variable is set.
    pub(crate) fn of_environment() -> Result<Option<Self>, Refusal> {
        let (socket, memory) = (std::env::var_os(HANDOVER), std::env::var_os(MEMORY));
        if socket.is_none() && memory.is_none() {
            return Ok(None);
        }
        let socket = socket.map(PathBuf::from).filter(|socket| socket.is_absolute());
        let socket = socket.ok_or(Refusal::Variable { name: HANDOVER })?;
        let numbers = memory.as_ref().and_then(|memory| numbers(memory.to_str()?));
        let [device, inode, bytes] = numbers.ok_or(Refusal::Variable { name: MEMORY })?;
        let user_faults_suffice = std::env::var_os(USER_FAULTS).is_some();
        let is_private = std::env::var_os(PRIVATE).is_some();
        Ok(Some(Self { socket, bytes, user_faults_suffice, is_private, device, inode }))
    }

    /// True if `fd` is the memory file, opened by any path.
    pub(crate) fn is_behind(&self, fd: c_int) -> bool {
        if fd < 0 {
            return false;
        }
        let mut status = MaybeUninit::<libc::stat64>::uninit();
        // SAFETY: the kernel fills the structure, or says that it did not.
        let result = unsafe { libc::fstat64(fd, status.as_mut_ptr()) };
        if result != 0 {
            return false;
        }
        // SAFETY: the call succeeded.
        let status = unsafe { status.assume_init_ref() };
        (status.st_dev, status.st_ino) == (self.device, self.inode)
    }
}

fn numbers(text: &str) -> Option<[u64; 3]> {
    let numbers: Option<Vec<u64>> = text.split(':').map(|number| number.parse().ok()).collect();
    numbers?.try_into().ok()
}
