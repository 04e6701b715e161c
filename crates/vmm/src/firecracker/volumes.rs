//! A frozen VM's volumes: its memory as Firecracker wrote it, and its disks.

use rekindle_engine::geometry::pages_covering;
use rekindle_engine::identity::VolumeName;
use rekindle_engine::page_set::PageSet;
use rekindle_engine::pause::PausedVolume;
use rekindle_engine::serve::Epoch;
use rekindle_engine::tracking::{diff_pages, shared_diff_pages};
use rekindle_kernel::Memfd;

use super::drives::{self, Chunks};
use super::kept::Origin;
use super::spec::Drive;
use super::{FirecrackerError, FirecrackerGuest};

impl FirecrackerGuest {
    /// The volumes of a VM that was suspended and whose process stands still, memory first: the pages changed in
    /// `epoch`, or all pages there.
    pub fn volumes(&self, epoch: Option<&Epoch>) -> Result<Vec<PausedVolume>, FirecrackerError> {
        let mut volumes = vec![self.memory(epoch)?];
        for (drive, name) in self.facts.spec.writable_drives() {
            volumes.push(self.drive(drive, name)?);
        }
        Ok(volumes)
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
    fn memory(&self, epoch: Option<&Epoch>) -> Result<PausedVolume, FirecrackerError> {
        let spec = &self.facts.spec;
        let (name, page_kind) = (VolumeName::memory(), spec.page_kind());
        let written = self.files.memory(spec.memory_bytes)?;
        let nothing = PageSet::new(pages_covering(spec.memory_bytes).expect("it was validated"));
        let removed = epoch.map_or(&nothing, Epoch::removed);
        let failed = || FirecrackerError::system("finding the pages that Firecracker wrote");
        let can_be_sealed = |shared: &&Memfd| shared.can_seal_writes().unwrap_or(false);
        let shared = epoch.and_then(Epoch::memfd).filter(|_| spec.interfaces.is_empty());
        if let Some(shared) = shared.filter(can_be_sealed) {
            let pages = shared_diff_pages(&written, removed, shared).map_err(failed())?;
            let memfd = shared.try_clone().map_err(failed())?;
            return Ok(PausedVolume { name, page_kind, memfd, pages });
        }
        let pages = diff_pages(&written, removed).map_err(failed())?;
        Ok(PausedVolume { name, page_kind, memfd: written, pages })
    }

    fn drive(&self, drive: &Drive, name: VolumeName) -> Result<PausedVolume, FirecrackerError> {
        let directory = &self.facts.directory;
        let base = match self.facts.origin {
            Origin::Images => Chunks::none(pages_covering(drive.bytes).expect("it was validated")),
            Origin::Disks | Origin::Snapshot => {
                let beside = directory.beside(&drive.file_name());
                Chunks::load(&beside).map_err(FirecrackerError::file("reading", beside))?
            }
        };
        drives::capture(drive, name, &directory.file(&drive.file_name()), &base)
    }
}
