//! A frozen VM's volumes: its memory as Firecracker wrote it, and its disks.

use std::fs;

use rekindle_engine::geometry::pages_covering;
use rekindle_engine::identity::VolumeName;
use rekindle_engine::page_set::PageSet;
use rekindle_engine::pause::PausedVolume;
use rekindle_engine::serve::Epoch;
use rekindle_engine::tracking::{diff_pages, shared_diff_pages};
use rekindle_kernel::Memfd;

use super::drives::{self, Chunks};
use super::spec::Drive;
use super::{FirecrackerError, FirecrackerGuest, files};
use crate::copied_memory::copy_volume;

impl FirecrackerGuest {
    /// The volumes of a VM that was suspended and whose process stands still, memory first: the pages changed in
    /// `epoch`, or all pages there.
    pub fn volumes(&self, epoch: Option<&Epoch>) -> Result<Vec<PausedVolume>, FirecrackerError> {
        let written = self.files.memory(self.facts.spec.memory_bytes)?;
        let memory = self.memory(epoch, written)?;
        let drive = |(drive, name)| self.drive(drive, name).map(|(volume, _)| volume);
        let drives = self.facts.spec.writable_drives().map(drive);
        std::iter::once(Ok(memory)).chain(drives).collect()
    }

    /// The same in files of their own, for a VM that goes on: see [`Self::goes_on_from_checkpoint`].
    pub fn copied_volumes(&self, epoch: Option<&Epoch>) -> Result<Vec<PausedVolume>, FirecrackerError> {
        let written = self.files.copied_memory(self.facts.spec.memory_bytes)?;
        let mut memory = self.memory(epoch, written)?;
        if self.shared(epoch).is_some() {
            let failed = FirecrackerError::system("copying the memory that Firecracker shares");
            memory = copy_volume(memory).map_err(failed)?;
        }
        let (mut volumes, next) = (vec![memory], self.facts.after_checkpoint());
        for (drive, name) in self.facts.spec.writable_drives() {
            let (volume, chunks) = self.drive(drive, name)?;
            let beside = next.chunks_of(drive).expect("a checkpoint has its disks");
            chunks.save(&beside).map_err(FirecrackerError::file("writing", beside))?;
            volumes.push(volume);
        }
        Ok(volumes)
    }

    /// Goes on from a snapshot of its copied volumes; it stands still.
    pub fn goes_on_from_checkpoint(&mut self, is_served: bool) -> Result<(), FirecrackerError> {
        let after = self.facts.after_checkpoint();
        let before = std::mem::replace(&mut self.facts, after);
        for (drive, _) in before.spec.writable_drives() {
            if let Some(old) = before.chunks_of(drive) {
                files::if_there(fs::remove_file(&old)).map_err(FirecrackerError::file("removing", old))?;
            }
        }
        // What a balloon takes from a guest that is not served is told by nothing but all of its memory.
        if is_served || self.facts.spec.balloon.is_none() {
            self.files.taken().map_err(FirecrackerError::system("noting that a capture was taken"))?;
        }
        Ok(())
    }

    /// Bytes of RAM that the capture of its disks can take, beside its memory.
    pub fn disk_bytes_held(&self) -> u64 {
        let held =
            |drive: &Drive| drives::bytes_held(&self.facts.directory.file(&drive.file_name())).unwrap_or(0);
        self.facts.spec.writable_drives().map(|(drive, _)| held(drive)).sum()
    }

    /// Memory that Firecracker wrote is of the same instant as its state. Memory that it shares is adopted as it is,
    /// and what was written only says which pages; but with a network interface frames may have come into memory since,
    /// and a file that can never be sealed is less sure than the one that was written.
    fn memory(&self, epoch: Option<&Epoch>, written: Memfd) -> Result<PausedVolume, FirecrackerError> {
        let spec = &self.facts.spec;
        let (name, page_kind) = (VolumeName::memory(), spec.page_kind());
        let nothing = PageSet::new(pages_covering(spec.memory_bytes).expect("it was validated"));
        let removed = epoch.map_or(&nothing, Epoch::removed);
        let failed = || FirecrackerError::system("finding the pages that Firecracker wrote");
        if let Some(shared) = self.shared(epoch) {
            let pages = shared_diff_pages(&written, removed, shared).map_err(failed())?;
            let memfd = shared.try_clone().map_err(failed())?;
            return Ok(PausedVolume { name, page_kind, memfd, pages });
        }
        let pages = diff_pages(&written, removed).map_err(failed())?;
        Ok(PausedVolume { name, page_kind, memfd: written, pages })
    }

    /// The memory that Firecracker shares, where a capture can have it.
    fn shared<'a>(&self, epoch: Option<&'a Epoch>) -> Option<&'a Memfd> {
        let shared = epoch.and_then(Epoch::memfd).filter(|_| self.facts.spec.interfaces.is_empty());
        shared.filter(|shared| shared.can_seal_writes().unwrap_or(false))
    }

    fn drive(&self, drive: &Drive, name: VolumeName) -> Result<(PausedVolume, Chunks), FirecrackerError> {
        let base = match self.facts.chunks_of(drive) {
            None => Chunks::none(pages_covering(drive.bytes).expect("it was validated")),
            Some(beside) => Chunks::load(&beside).map_err(FirecrackerError::file("reading", beside))?,
        };
        drives::capture(drive, name, &self.facts.directory.file(&drive.file_name()), &base)
    }
}
