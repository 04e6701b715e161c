//! What a new virtual machine is made of: its machine settled, its disks taken in as a first snapshot.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr as _;
use std::sync::Arc;

use anyhow::Context as _;
use rekindle_engine::capture::CapturedPages;
use rekindle_engine::geometry::pages_covering;
use rekindle_engine::identity::{SnapshotId, VolumeName};
use rekindle_engine::page_set::PageSet;
use rekindle_engine::pause::{PausedGuest, PausedVolume};
use rekindle_engine::snapshot::Snapshot as EngineSnapshot;
use rekindle_kernel::{Memfd, PageKind};
use uuid::Uuid;

use super::Daemon;
use super::about::About;
use super::guests::{GuestSpec, firecracker, qemu};
use super::problems::guest_failed;
use crate::api::control::Answer;
use crate::api::problem::{Code, Problem};
use crate::api::types::{CreateSandbox, DiskImage, Labels, MemoryBacking, VmmKind};
use crate::disk::{Imported, import};

/// The label of a snapshot that is nothing but the images a machine's disks began as.
const IMAGES_LABEL: &str = "rekindle/images-of";

impl Daemon {
    /// What a new sandbox is made of and, where it has disks, the snapshot in which they are as their images were.
    pub(super) fn made_of(
        &self,
        sandbox: Uuid,
        wanted: &CreateSandbox,
    ) -> Answer<(GuestSpec, Option<Arc<EngineSnapshot>>)> {
        let (memory_bytes, backing) = (wanted.memory_bytes, wanted.backing);
        let Some(machine) = &wanted.machine else {
            return Ok((GuestSpec::Process { memory_bytes, backing }, None));
        };
        if backing != MemoryBacking::Shared && wanted.vmm != VmmKind::Firecracker {
            let why = "the memory of a machine in QEMU is `shared`: a pause takes it over as it is";
            return Err(Problem::new(Code::InvalidRequest, why));
        }
        let images = self.images(&machine.disks)?;
        let disks: Vec<_> = images.iter().map(|(name, image)| (name.clone(), image.bytes)).collect();
        let spec = match wanted.vmm {
            VmmKind::Process | VmmKind::Qemu => {
                qemu::settle(self, machine, memory_bytes, &disks).map(|settled| GuestSpec::Qemu {
                    machine: Box::new(settled),
                    taps: machine.taps.iter().map(|tap| tap.device.0.clone()).collect(),
                })
            }
            VmmKind::Firecracker => firecracker::settle(self, machine, (memory_bytes, backing), &disks)
                .map(|settled| GuestSpec::Firecracker { machine: Box::new(settled) }),
        };
        let spec = spec.map_err(guest_failed)?;
        let base = match images.is_empty() {
            true => None,
            false => {
                Some(self.first_snapshot(sandbox, (memory_bytes, backing), images).map_err(guest_failed)?)
            }
        };
        Ok((spec, base))
    }

    fn images(&self, disks: &[DiskImage]) -> Answer<Vec<(VolumeName, Imported)>> {
        let take = |disk: &DiskImage| {
            let wrong =
                |why: String| Problem::new(Code::InvalidRequest, format!("disk {}: {why}", disk.name));
            let name = VolumeName::from_str(&disk.name).map_err(|error| wrong(error.to_string()))?;
            let image = import(Path::new(&disk.image), self.settings().capture_bytes_max);
            Ok((name, image.map_err(|error| wrong(format!("{}: {error}", disk.image)))?))
        };
        disks.iter().map(take).collect()
    }

    /// A snapshot with empty memory and these disks.
    fn first_snapshot(
        &self,
        sandbox: Uuid,
        (memory_bytes, backing): (u64, MemoryBacking),
        images: Vec<(VolumeName, Imported)>,
    ) -> anyhow::Result<Arc<EngineSnapshot>> {
        let held =
            images.iter().map(|(_, image)| image.memfd.allocated_bytes()).sum::<std::io::Result<u64>>()?;
        let permit = self.engine.permit_pause(None, held).map_err(Problem::from)?;
        let disks = images.into_iter().map(|(name, image)| image.into_volume(name));
        let volumes = std::iter::once(empty_memory(memory_bytes, backing)?).chain(disks).collect();
        let labels = Labels::from([(IMAGES_LABEL.to_owned(), sandbox.to_string())]);
        let mut blobs = BTreeMap::new();
        About { labels, ..About::default() }.put_into(&mut blobs);
        let guest = PausedGuest { id: SnapshotId::new(), volumes, blobs, alongside: Vec::new() };
        Ok(self.engine.commit_pause(permit, guest)?)
    }

    /// Lets go of images that no machine came to be of.
    pub(super) fn forget_images(&self, images: Option<&Arc<EngineSnapshot>>) {
        if let Some(Err(error)) = images.map(|images| self.engine.delete(images)) {
            tracing::warn!(%error, "images of a machine that never came to be stay");
        }
    }
}

fn empty_memory(bytes: u64, backing: MemoryBacking) -> anyhow::Result<PausedVolume> {
    let pages = pages_covering(bytes).context("it is more memory than a volume can have")?;
    let page_kind = match backing {
        MemoryBacking::Shared | MemoryBacking::Private => PageKind::Small,
        MemoryBacking::Huge => PageKind::Huge,
    };
    Ok(PausedVolume {
        name: VolumeName::memory(),
        page_kind,
        memfd: Memfd::create("rekindle-empty-memory", bytes, PageKind::Small)?,
        pages: CapturedPages { kept: PageSet::new(pages), zero: PageSet::new(pages) },
    })
}
