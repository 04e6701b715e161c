//! The QEMU of this machine.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rekindle_vmm::qemu::{NoQemu, QemuProgram};

/// The QEMU of this host, asked what it can do once for each time it is installed.
#[derive(Debug, Default)]
pub(super) struct HostQemu {
    known: Mutex<Option<Known>>,
    /// Number of times it was asked.
    times_asked: AtomicU64,
    asking: Mutex<Option<JoinHandle<()>>>,
}

/// Answer of the QEMU at a path.
#[derive(Debug)]
struct Known {
    path: PathBuf,
    /// None where there is no file to be looked at.
    stamp: Option<FileStamp>,
    said: Result<QemuProgram, NoQemu>,
}

/// Identity of a program's file.
type FileStamp = (u64, u64, i64);

impl HostQemu {
    /// Asks in the background, so that the first machine does not wait for the 60 ms that the answers take.
    pub(super) fn ask_ahead(self: &Arc<Self>) -> std::io::Result<()> {
        let asked = Arc::clone(self);
        // A host without QEMU is told when a machine is asked for.
        let ask = move || drop(asked.get());
        let thread = std::thread::Builder::new().name("host-qemu".into()).spawn(ask)?;
        *self.asking.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    /// Waits until nothing is asked any more.
    pub(super) fn finish(&self) {
        if let Some(thread) = self.asking.lock().unwrap_or_else(PoisonError::into_inner).take() {
            drop(thread.join());
        }
    }

    /// The QEMU that the search path has now.
    pub(super) fn get(&self) -> anyhow::Result<QemuProgram> {
        // Another one may have come before it in the search path.
        let path = QemuProgram::locate()?;
        let since = self.times_asked.load(Ordering::Acquire);
        Ok(self.ask(path, since, |path| QemuProgram::find(Some(path)))?)
    }

    /// The QEMU at `path`; `since` is the number of times it was asked when the caller wanted to know. One that did not
    /// answer since then is not asked once more by each that waited meanwhile.
    fn ask(
        &self,
        path: PathBuf,
        since: u64,
        find: impl FnOnce(&Path) -> Result<QemuProgram, NoQemu>,
    ) -> Result<QemuProgram, NoQemu> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamp_of(&path);
        if let Some(known) = &*known
            && (&known.path, known.stamp) == (&path, stamp)
            && (known.said.is_ok() || self.times_asked.load(Ordering::Acquire) != since)
        {
            return known.said.clone();
        }
        let said = find(&path);
        self.times_asked.fetch_add(1, Ordering::Release);
        *known = Some(Known { path, stamp, said: said.clone() });
        said
    }
}

fn stamp_of(path: &Path) -> Option<FileStamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.mtime()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qemu_that_does_not_answer_is_asked_once_for_all_that_wait_for_it() {
        let host = HostQemu::default();
        let none = |path: &Path| Err(NoQemu::NotFound { looked_for: path.display().to_string() });
        let again = |_: &Path| Err(NoQemu::NotFound { looked_for: "asked again".to_owned() });
        let ask = |since, find: &dyn Fn(&Path) -> Result<QemuProgram, NoQemu>| {
            host.ask("/no/qemu".into(), since, find).expect_err("there is none").to_string()
        };
        assert!(ask(0, &none).starts_with("/no/qemu is not here"));
        assert!(ask(0, &again).starts_with("/no/qemu is not here"), "it has waited for that very answer");
        assert!(ask(1, &again).starts_with("asked again is not here"), "it came later");
    }
}
