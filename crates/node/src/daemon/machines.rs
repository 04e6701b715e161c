//! Makes the parts of a new virtual machine: its machine settled, its disks taken in as a first snapshot.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr as _;
use std::sync::Arc;

use anyhow::Context as _;
use rekindle_api::control::Answer;
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::{CreateSandbox, DiskImage, Labels, MemoryBacking, VmmKind};
use rekindle_disk::{ImageFile, ImportError};
use rekindle_engine::capture::CapturedPages;
use rekindle_engine::geometry::pages_covering;
use rekindle_engine::identity::{DomainName, SnapshotId, VolumeName};
use rekindle_engine::page_set::PageSet;
use rekindle_engine::pause::{Base, PausePermit, PausedGuest, PausedVolume};
use rekindle_engine::snapshot::Snapshot as EngineSnapshot;
use rekindle_input::asker::Asker;
use rekindle_kernel::{Memfd, PageKind};
use uuid::Uuid;

use super::about::About;
use super::guests::{firecracker, qemu};
use super::known::Known;
use super::network::Network;
use super::problems::{guest_failed, no_room_for_disks};
use super::sandboxes::Sandboxes;
use super::spec::GuestSpec;

impl Sandboxes {
    /// The parts of a new sandbox and, if it has disks, the snapshot that holds them as their images were.
    pub(super) fn made_of(
        &self,
        sandbox: Uuid,
        (wanted, network, disks_of): (&CreateSandbox, Network, Option<&Known>),
        domain: &DomainName,
        asker: &Asker,
    ) -> Answer<(GuestSpec, Option<Arc<EngineSnapshot>>)> {
        let (memory_bytes, backing) = (wanted.memory_bytes, wanted.backing);
        let Some(machine) = &wanted.machine else {
            return Ok((GuestSpec::Process { memory_bytes, backing }, None));
        };
        if backing != MemoryBacking::Shared && wanted.vmm != VmmKind::Firecracker {
            let why = "the memory of a machine in QEMU is `shared`: a pause takes it over as it is";
            return Err(Problem::new(Code::InvalidRequest, why));
        }
        if backing == MemoryBacking::PrivateHuge {
            let why = "`private_huge` is memory of a process guest; a machine in Firecracker has `private` or `huge`";
            return Err(Problem::new(Code::InvalidRequest, why));
        }
        let images = machine.disks.iter().map(open_image).collect::<Answer<Vec<_>>>()?;
        let disks = match disks_of.and_then(|known| known.about.spec.as_ref()) {
            Some(spec) => spec.disks().into_iter().map(of_volume).collect::<Answer<Vec<_>>>()?,
            None => images.iter().map(|image| (image.name.clone(), image.file.bytes())).collect(),
        };
        let spec = match wanted.vmm {
            VmmKind::Process | VmmKind::Qemu => {
                qemu::settle(&self.host, machine, memory_bytes, &disks, asker).map(|settled| {
                    GuestSpec::Qemu { machine: Box::new(settled), taps: network.taps, netns: network.netns }
                })
            }
            VmmKind::Firecracker => {
                firecracker::settle(&self.host, (machine, network), (memory_bytes, backing), &disks, asker)
                    .map(|settled| GuestSpec::Firecracker { machine: Box::new(settled) })
            }
        };
        let spec = spec.map_err(guest_failed)?;
        let memory = (memory_bytes, backing);
        let base = match disks_of {
            Some(known) => Some(self.with_empty_memory(sandbox, &known.snapshot, memory, asker)?),
            None if images.is_empty() => None,
            None => Some(self.first_snapshot(sandbox, domain, memory, images, asker)?),
        };
        Ok((spec, base))
    }

    /// A snapshot with empty memory and these disks. Their RAM is leased before the first of them is read.
    fn first_snapshot(
        &self,
        sandbox: Uuid,
        domain: &DomainName,
        (memory_bytes, backing): (u64, MemoryBacking),
        images: Vec<NamedImage>,
        asker: &Asker,
    ) -> Answer<Arc<EngineSnapshot>> {
        let images =
            images.into_iter().map(|image| self.measured(image, asker)).collect::<Answer<Vec<_>>>()?;
        let needed = images.iter().fold(0_u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let permit = self.host.engine.permit_pause_while(Base::Domain(domain), needed, &asker.still_waits());
        let permit = permit.map_err(no_room_for_disks)?;
        let import = |(image, bytes): (NamedImage, u64)| {
            let NamedImage { name, path, file } = image;
            let imported =
                file.import(bytes, asker).map_err(|error| wrong_image(name.as_str(), &path, &error))?;
            Ok(imported.into_volume(name))
        };
        let disks = images.into_iter().map(import).collect::<Answer<Vec<_>>>()?;
        let memory = empty_volume(VolumeName::memory(), memory_bytes, backing).map_err(guest_failed)?;
        self.images_of(sandbox, permit, std::iter::once(memory).chain(disks).collect())
    }

    /// A child of a snapshot that has its disks, and memory without a byte.
    fn with_empty_memory(
        &self,
        sandbox: Uuid,
        parent: &Arc<EngineSnapshot>,
        (memory_bytes, backing): (u64, MemoryBacking),
        asker: &Asker,
    ) -> Answer<Arc<EngineSnapshot>> {
        let permit = self.host.engine.permit_pause_while(Base::Snapshot(parent), 0, &asker.still_waits())?;
        let mut memory = empty_volume(VolumeName::memory(), memory_bytes, backing).map_err(guest_failed)?;
        memory.pages.zero = PageSet::full(memory.pages.zero.pages());
        let disks = parent.volumes()[1..].iter().map(|disk| {
            let bytes = u64::from(disk.view.pages()) * 4096;
            empty_volume(disk.name.clone(), bytes, MemoryBacking::Shared).map_err(guest_failed)
        });
        let volumes = std::iter::once(Ok(memory)).chain(disks).collect::<Answer<_>>()?;
        self.images_of(sandbox, permit, volumes)
    }

    /// A snapshot that is the disks of a sandbox's machine before its first start.
    fn images_of(
        &self,
        sandbox: Uuid,
        permit: PausePermit,
        volumes: Vec<PausedVolume>,
    ) -> Answer<Arc<EngineSnapshot>> {
        let labels = Labels::images_of(sandbox);
        let mut blobs = BTreeMap::new();
        About { labels, ..About::default() }.put_into(&mut blobs);
        let guest = PausedGuest { id: SnapshotId::new(), volumes, blobs, alongside: Vec::new() };
        self.host.engine.commit_pause(permit, guest).map_err(|error| guest_failed(error.into()))
    }

    /// An image with the bytes of RAM that importing it takes at most. One whose data is more than may be held at all is
    /// read for it: its zeroes take none.
    fn measured(&self, mut image: NamedImage, asker: &Asker) -> Answer<(NamedImage, u64)> {
        let measured = match image.file.data_bytes() {
            Ok(bytes) if bytes > self.host.settings().capture_bytes_max => image.file.count_bytes(asker),
            measured => measured.map_err(ImportError::from),
        };
        match measured {
            Ok(bytes) => Ok((image, bytes)),
            Err(error) => Err(wrong_image(image.name.as_str(), &image.path, &error)),
        }
    }

    /// Lets go of images that no machine came to be of.
    pub(super) fn forget_images(&self, images: Option<&Arc<EngineSnapshot>>) {
        if let Some(Err(error)) = images.map(|images| self.host.engine.delete(images)) {
            tracing::warn!(%error, "images of a machine that never came to be stay");
        }
    }
}

/// An image for a disk.
struct NamedImage {
    name: VolumeName,
    path: String,
    file: ImageFile,
}

fn open_image(disk: &DiskImage) -> Answer<NamedImage> {
    let name = VolumeName::from_str(&disk.name)
        .map_err(|error| Problem::new(Code::InvalidRequest, format!("disk {}: {error}", disk.name)))?;
    let file = ImageFile::open(Path::new(&disk.image))
        .map_err(|error| wrong_image(&disk.name, &disk.image, &error))?;
    Ok(NamedImage { name, path: disk.image.clone(), file })
}

/// The volume of a disk of these facts.
fn of_volume((name, bytes): (&str, u64)) -> Answer<(VolumeName, u64)> {
    let name = VolumeName::from_str(name)
        .map_err(|error| Problem::new(Code::InvalidRequest, format!("disk {name}: {error}")))?;
    Ok((name, bytes))
}

fn wrong_image(disk: &str, path: &str, error: &ImportError) -> Problem {
    Problem::new(Code::InvalidRequest, format!("disk {disk}: {path}: {error}"))
}

/// A volume of which nothing was kept.
fn empty_volume(name: VolumeName, bytes: u64, backing: MemoryBacking) -> anyhow::Result<PausedVolume> {
    let pages = pages_covering(bytes).context("it is more than a volume can have")?;
    let page_kind = if backing.is_huge() { PageKind::Huge } else { PageKind::Small };
    Ok(PausedVolume {
        name,
        page_kind,
        memfd: Memfd::create("rekindle-empty-volume", bytes, PageKind::Small)?,
        pages: CapturedPages { kept: PageSet::new(pages), zero: PageSet::new(pages) },
    })
}
