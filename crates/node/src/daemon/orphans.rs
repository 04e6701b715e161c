//! Ends guests whose keeper and daemon died together. Most end by themselves, as their control sockets have no other
//! end any more; one that was frozen for a pause cannot, and no process is left to thaw it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rekindle_kernel::{ProcessHandle, Signal};
use rekindle_vmm::vmm_process::KEEPER;

/// Kills every guest of the keeper at `socket` whose pid is not among `known`.
pub(super) fn end(socket: &Path, known: &BTreeSet<u32>) -> io::Result<()> {
    let mark = [KEEPER.as_bytes(), b"=", socket.as_os_str().as_bytes()].concat();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if known.contains(&pid) || !is_marked(pid, &mark) {
            continue;
        }
        let Ok(process) = ProcessHandle::open(pid) else { continue };
        // Asked once more: the handle is of the process that has the pid now.
        if is_marked(pid, &mark) {
            tracing::warn!(pid, "a guest outlived its keeper: it is ended");
            // An error says that it has ended.
            process.signal(Signal::Kill).ok();
        }
    }
    Ok(())
}

/// True if the process was started with these bytes in its environment, and may be asked.
fn is_marked(pid: u32, mark: &[u8]) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|word| word == mark)
}
